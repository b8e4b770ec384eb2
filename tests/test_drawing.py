"""Figures as drawn: every place on paper is where the data says, and words never lie on words."""

import io
import itertools
import math
import random
import re
import sys
from bisect import bisect
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import figures
import pytest
from browser import chromium
from playwright.sync_api import Browser, Page

from analytic.errors import UllageError
from analytic.quantity import GiB
from analytic.report.drawing import save, svg
from analytic.report.drawing.markup import CLASS, LEGIBLE
from analytic.report.drawing.palette import HATCHES, PALETTE, dark_rules
from analytic.report.drawing.scale import even_values, unit_of
from analytic.report.parts import Figure

SVG = "{http://www.w3.org/2000/svg}"
PLACE = 0.02
"""Pixels to which places are written."""

BOXES = """(svg) => [...svg.querySelectorAll("text")].filter(t => t.textContent.trim()).map(t => {
    const box = t.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom, t.textContent];
})"""


# Reading a drawing back


def parse(drawn: str) -> ElementTree.Element:
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return ElementTree.fromstring(drawn.replace("<svg", head, 1))


def marked(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = marks_of(root)[name]
    return found


@lru_cache
def marks_of(root: ElementTree.Element) -> dict[str, list[ElementTree.Element]]:
    marks: dict[str, list[ElementTree.Element]] = {}
    for element in root.iter():
        if "data-mark" in element.attrib:
            marks.setdefault(element.attrib["data-mark"], []).append(element)
    return marks


def corners(element: ElementTree.Element) -> list[tuple[float, float]]:
    """The points of a path; those of curves are not among them."""
    path = element if element.tag == SVG + "path" else element.find(f".//{SVG}path[@d]")
    assert path is not None
    numbers = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d", ""))
    return [(float(x), float(y)) for x, y in numbers]


def box(root: ElementTree.Element, name: str) -> tuple[float, float, float, float]:
    xs, ys = zip(*corners(marked(root, name)), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def fill_of(root: ElementTree.Element, name: str) -> str:
    path = next(element for element in marked(root, name).iter() if element.get("fill"))
    return path.get("fill", "")


def spot_of(root: ElementTree.Element, name: str) -> tuple[float, float]:
    use = marked(root, name).find(f".//{SVG}use")
    assert use is not None
    return float(use.get("x", "")), float(use.get("y", ""))


def texts(root: ElementTree.Element) -> list[tuple[float, float, str, str]]:
    return [
        (float(t.get("x", "")), float(t.get("y", "")), t.get("text-anchor", "start"), t.text or "")
        for t in root.iter(SVG + "text")
    ]


UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}


def read_ticks(labels: list[tuple[float, str]], unit: float) -> list[tuple[float, float]]:
    """Place and value of an axis' labels but the first, which gives way at the sheet's edge."""
    named = re.search(r"[A-Z]iB|bytes", labels[0][1])
    return [
        (place, float(words.split()[0].replace(",", "").replace("−", "-")) * (UNITS[named[0]] if named else unit))
        for place, words in labels
    ][1:]


def row_of(root: ElementTree.Element, y: float) -> list[tuple[float, str]]:
    return sorted((x, words) for x, at, anchor, words in texts(root) if abs(at - y) < 0.1 and anchor == "middle")


class Axis:
    """From values to pixels, by two of the labels."""

    def __init__(self, ticks: list[tuple[float, float]], warp: Any = float) -> None:
        (a, first), *_, (b, last) = ticks
        self.warp = warp
        self.slope = (b - a) / (warp(last) - warp(first))
        self.zero = a - warp(first) * self.slope
        for place, value in ticks:
            assert self(value) == pytest.approx(place, abs=PLACE)

    def __call__(self, value: float) -> float:
        return self.zero + self.warp(value) * self.slope


def lowest_axis(root: ElementTree.Element, unit: float = 1) -> Axis:
    """That of the labels at the bottom."""
    bottom = max(y for _, y, anchor, _ in texts(root) if anchor == "middle")
    return Axis(read_ticks(row_of(root, bottom), unit))


@lru_cache
def once(figure: Figure) -> str:
    return svg(figure)


def drawn(figure: Figure) -> ElementTree.Element:
    return parse(once(figure))


# Values


@pytest.mark.parametrize("seed", range(6))
def test_bars_are_as_long_as_their_bytes(seed: int) -> None:
    source = random.Random(seed)
    top = 10 ** source.uniform(4, 13)
    bars = [figures.bar(f"bar {n}", *(int(source.random() * top) for _ in range(6))) for n in range(1 + seed)]
    capacity = int(source.uniform(0.2, 4) * top)
    root = drawn(figures.bars("x", *bars, capacity=capacity))
    axis = lowest_axis(root)
    for place, bar in enumerate(bars):
        sums = [*itertools.accumulate((segment.bytes for segment in bar.segments), initial=0)]
        for part, (start, end) in enumerate(itertools.pairwise(sums)):
            left, _, right, _ = box(root, f"bar-{place}-{part}")
            assert (left, right) == pytest.approx((axis(start), axis(end)), abs=3 * PLACE)
        left, _, right, _ = box(root, f"bounds-{place}")
        assert (left, right) == pytest.approx((axis(bar.low_bytes), axis(bar.high_bytes)), abs=3 * PLACE)
        assert box(root, f"capacity-{place}")[0] == pytest.approx(axis(capacity), abs=3 * PLACE)


def test_what_is_fitted_or_assumed_is_hatched_and_nothing_else() -> None:
    root = drawn(figures.bars("x", figures.bar("bar", *(6 * [GiB]))))
    for part, basis in enumerate(figures.GROUNDS):
        is_hatched = fill_of(root, f"bar-0-{part}").startswith("url(")
        assert is_hatched is (basis in ("fitted", "assumed")) is (HATCHES[basis] is not None)


@pytest.mark.parametrize("seed", range(4))
def test_a_waterfall_falls_by_its_changes(seed: int) -> None:
    source = random.Random(seed)
    changes = [source.randint(-30 * GiB, 40 * GiB) for _ in range(5)]
    first, end = source.randint(0, 99 * GiB), source.randint(0, 99 * GiB)
    steps = [figures.step("rule", first, level=True), *(figures.step("change", change) for change in changes)]
    root = drawn(figures.waterfall("x", *steps, figures.step("end", end, level=True, spread=2 * GiB)))
    axis = lowest_axis(root)
    levels = [*itertools.accumulate(changes, initial=first)]
    spans = [(0, first), *itertools.pairwise(levels), (0, end)]
    for place, span in enumerate(spans):
        left, _, right, _ = box(root, f"step-{place}")
        assert [left, right] == pytest.approx(sorted(map(axis, span)), abs=3 * PLACE)
    left, _, right, _ = box(root, f"bounds-{len(spans) - 1}")
    assert (left, right) == pytest.approx((axis(end - 2 * GiB), axis(end + 2 * GiB)), abs=3 * PLACE)
    signed = [f"{change / GiB:+,.2f}".replace("-", "−") for change in changes]
    assert [w for _, _, anchor, w in texts(root) if anchor == "end" and w[0] in "+−"] == signed


@pytest.mark.parametrize("heat", figures.all_heats(), ids=lambda figure: figure.name)
def test_the_border_of_a_heat_map_separates_exactly_the_cells(heat: Any) -> None:
    root = drawn(heat)
    rows, columns = len(heat.contexts), len(heat.concurrencies)
    cells = {(r, c): box(root, f"cell-{r}-{c}-{heat.cells[r][c]}") for r in range(rows) for c in range(columns)}
    expected = set()
    for (r, c), (left, top, right, bottom) in cells.items():
        if c + 1 < columns and heat.cells[r][c] != heat.cells[r][c + 1]:
            expected.add(((right, top), (right, bottom)))
        if r + 1 < rows and heat.cells[r][c] != heat.cells[r + 1][c]:
            expected.add(((left, bottom), (right, bottom)))
    if expected:
        points = corners(marked(root, "border"))
        lines = {tuple(sorted(pair)) for pair in zip(points[::2], points[1::2], strict=True)}
        assert lines == {tuple(sorted(pair)) for pair in expected}
    labels = {(anchor, words): (x, y) for x, y, anchor, words in texts(root)}
    for (r, c), (left, top, right, bottom) in cells.items():
        assert left < labels["middle", f"{heat.concurrencies[c]:,}"][0] < right
        assert top < labels["end", f"{heat.contexts[r]:,}"][1] < bottom
        assert fill_of(root, f"cell-{r}-{c}-{heat.cells[r][c]}") == PALETTE[heat.cells[r][c]].light


def test_what_was_asked_for_is_outlined() -> None:
    heat = figures.all_heats()[0]
    assert heat.asked == (8192, 4)
    left, top, right, bottom = box(drawn(heat), "asked")
    cell = box(drawn(heat), f"cell-3-2-{heat.cells[3][2]}")
    assert cell[0] < left < right < cell[2]
    assert cell[1] < top < bottom < cell[3]


@pytest.mark.parametrize("figure", figures.all_formats(), ids=lambda figure: figure.name)
def test_a_format_map_has_each_spot_in_its_row_and_column(figure: Any) -> None:
    root = drawn(figure)
    words, marks = texts(root), set(marks_of(root))
    spots = {(r, c): spot for r, row in enumerate(figure.spots) for c, spot in enumerate(row) if spot is not None}
    assert marks == {f"spot-{r}-{c}-{spot.status}" for (r, c), spot in spots.items()}
    boxes = {(r, c): box(root, f"spot-{r}-{c}-{spot.status}") for (r, c), spot in spots.items()}
    first = min(top for _, top, _, _ in boxes.values())
    for (r, c), (left, top, right, bottom) in boxes.items():
        beside = [(x, w) for x, y, _, w in words if top < y < bottom]
        assert [w for x, w in beside if left < x < right] == [spots[r, c].text]
        assert "".join(w for x, w in beside if x < 10) == figure.gpus[r]
        heads = sorted((y, w) for x, y, _, w in words if left < x < right and 20 < y < first)
        assert "".join(w for _, w in heads).replace(" ", "") == figure.formats[c].replace(" ", "")
        assert fill_of(root, f"spot-{r}-{c}-{spots[r, c].status}") == PALETTE[spots[r, c].status].light


@pytest.mark.parametrize("points", [100, 5000])
def test_a_timeline_goes_through_its_points_and_loses_no_extreme(points: int) -> None:
    figure = figures.timeline("x", points, (figures.Span(label="load", start=0, end=points * 0.4),), 50 * GiB)
    root = drawn(figure)
    across = lowest_row(root)
    left = min(x for x, _ in across)
    up = sorted(((y, words) for x, y, anchor, words in texts(root) if anchor == "end" and x < left), reverse=True)
    vertical, horizontal = Axis(raised(read_ticks(up, 1))), Axis(read_ticks(across, 1))
    for place, line in enumerate(figure.lines):
        path = corners(marked(root, f"line-{place}"))
        for time, count in line.points:
            x, y, reach = horizontal(time), vertical(count), 0.25 + 3 * PLACE
            first, last = (bisect(path, x + side, key=lambda point: point[0]) for side in (-reach, reach))
            near = [other for _, other in path[first:last]]
            assert min(near) - 3 * PLACE <= y <= max(near) + 3 * PLACE
            assert points > 100 or any(other == pytest.approx(y, abs=3 * PLACE) for other in near)
        heights, drawn_heights = [vertical(count) for _, count in line.points], [y for _, y in path]
        assert (min(drawn_heights), max(drawn_heights)) == pytest.approx((min(heights), max(heights)), abs=3 * PLACE)
    assert figure.peak is not None
    time, count = figure.peak
    assert spot_of(root, "peak") == pytest.approx((horizontal(time), vertical(count)), abs=3 * PLACE)
    assert box(root, "capacity")[1] == pytest.approx(vertical(50 * GiB), abs=3 * PLACE)
    start, _, end, _ = box(root, "phase-0")
    assert (start, end) == pytest.approx((horizontal(0), horizontal(points * 0.4)), abs=3 * PLACE)


def raised(ticks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Level labels stand 4 pixels below the line they name."""
    return [(place - 4, value) for place, value in ticks]


def lowest_row(root: ElementTree.Element) -> list[tuple[float, str]]:
    return row_of(root, max(y for _, y, anchor, _ in texts(root) if anchor == "middle"))


@pytest.mark.parametrize("figure", figures.all_predicted(), ids=lambda figure: figure.name)
def test_predicted_and_measured_stand_where_they_are_and_so_do_their_errors(figure: Any) -> None:
    root = drawn(figure)
    rows = sorted({y for _, y, anchor, words in texts(root) if anchor == "middle"})
    assert len(rows) <= 2
    labels = [(x, words) for y in rows for x, words in row_of(root, y)]
    across = [(x, w) for x, w in labels if x < 370]
    errors = Axis([(x, float(w.replace("−", "-"))) for x, w in labels if x > 370], math.asinh)
    unit = UNITS[next(w.split()[-1] for _, _, _, w in texts(root) if w.startswith("measured, "))]
    square = Axis([(x, float(w.replace(",", "")) * unit) for x, w in across], math.log10)
    for place, point in enumerate(figure.points):
        if point.measured_bytes:
            error = 100 * (point.predicted_bytes - point.measured_bytes) / point.measured_bytes
            assert spot_of(root, f"error-{place}")[0] == pytest.approx(errors(error), abs=0.2)
            assert spot_of(root, f"point-{place}")[0] == pytest.approx(square(point.measured_bytes), abs=0.2)
        is_inside = point.low_bytes <= point.measured_bytes <= point.high_bytes
        use = marked(root, f"point-{place}").find(f".//{SVG}use")
        assert use is not None
        assert (use.get("fill") == use.get("stroke")) is is_inside


@pytest.mark.parametrize("figure", figures.all_intervals()[:2], ids=lambda figure: figure.name)
def test_intervals_reach_from_low_to_high(figure: Any) -> None:
    root = drawn(figure)
    axis = lowest_axis(root)
    for place, row in enumerate(figure.intervals):
        left, _, right, _ = box(root, f"interval-{place}")
        assert (left, right) == pytest.approx((axis(row.low), axis(row.high)), abs=3 * PLACE)
        assert spot_of(root, f"value-{place}")[0] == pytest.approx(axis(row.value), abs=3 * PLACE)


@pytest.mark.parametrize("seed", range(20))
def test_an_axis_has_a_few_round_values(seed: int) -> None:
    source = random.Random(seed)
    low = source.choice((0, -1, 1)) * 10 ** source.uniform(-3, 9)
    high = low + 10 ** source.uniform(-3, 9)
    values = even_values(low, high)
    steps = {float(f"{b - a:.6g}") for a, b in itertools.pairwise(values)}
    assert 2 <= len(values) <= 7
    assert len(steps) == 1
    assert f"{steps.pop():e}"[:8] in ("1.000000", "2.000000", "5.000000")
    slack = (high - low) * 1e-6
    assert all(low - slack <= value <= high + slack for value in values)


def test_bytes_are_read_in_gib_down_to_a_tenth_of_one() -> None:
    assert unit_of([GiB // 10 + 1]).named(3 * GiB // 2) == "1.50\u00a0GiB"
    assert unit_of([GiB // 10 - 1]).name == "MiB"
    assert unit_of([0, -3]).named(-3) == "−3\u00a0bytes"


# Words, in the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def sheet() -> str:
    """Every figure below the other, each in a container that scrolls."""
    drawings = "".join(f'<div style="overflow-x:auto">{once(figure)}</div>' for figure in figures.all_figures())
    css = f"body{{margin:16px;font-family:system-ui,sans-serif;background:#fff}}.{CLASS}{{font-family:inherit}}"
    dark = "@media (prefers-color-scheme:dark){body{background:#141414}}"
    return f"<!doctype html><style>{css}{dark}{dark_rules('.' + CLASS)}</style>{drawings}"


def overlaps(page: Page) -> list[str]:
    """Words on words, and words beside the sheet, in any drawing."""
    found = []
    for one in page.query_selector_all("svg"):
        frame = one.evaluate(
            "svg => { const b = svg.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }"
        )
        boxes = sorted(one.evaluate(BOXES))
        for place, (left, top, right, bottom, words) in enumerate(boxes):
            is_in = (
                left > frame[0] - 0.5 and top > frame[1] - 0.5 and right < frame[2] + 0.5 and bottom < frame[3] + 0.5
            )
            found += [] if is_in else [f"outside: {words}"]
            for x, y, _, end, others in boxes[place + 1 :]:
                if x >= right - 0.5:
                    break
                if y < bottom - 0.5 and end > top + 0.5:
                    found.append(f"{words} | {others}")
    return found


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_words_do_not_overlap_leave_the_sheet_or_get_too_small(
    browser: Browser, sheet: str, width: int, scheme: Any
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.set_content(sheet)
    assert overlaps(page) == []
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll("text")].map(
            t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""
    )
    assert smallest >= LEGIBLE - 0.01
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


ONE_OF_EACH = ("eight-ways", "below-zero", "one-cell", "one-spot", "two", "wild", "huge")


def test_files_hold_the_figure_and_its_words(browser: Browser, tmp_path: Path) -> None:
    from PIL import Image

    page = browser.new_page(color_scheme="dark")
    chosen = [figure for figure in figures.all_figures() if figure.name in ONE_OF_EACH]
    assert len({type(figure) for figure in chosen}) == len(ONE_OF_EACH)
    for figure in chosen:
        vector, raster = save(figure, tmp_path / "new")
        assert (vector.name, raster.name) == (f"{figure.name}.svg", f"{figure.name}.png")
        page.goto(vector.as_uri())
        assert overlaps(page) == []
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == rgb(PALETTE["paper"].dark)
        read = page.evaluate("[...document.querySelectorAll('text')].map(t => t.textContent).join('')")
        for words in (figure.title, figure.assumptions, "exact: weights, sequence state; traced: activations"):
            assert words.replace(" ", "") in read.replace(" ", "")
        size = page.evaluate("['width', 'height'].map(side => document.documentElement.viewBox.baseVal[side])")
        assert Image.open(io.BytesIO(raster.read_bytes())).size == pytest.approx([2 * side for side in size], abs=1)
    page.close()


def test_a_dark_screen_turns_every_colour_that_has_a_dark_one(browser: Browser) -> None:
    drawing = svg(figures.all_predicted()[1])
    page = browser.new_page(color_scheme="dark")
    page.set_content(f"<style>{dark_rules('.' + CLASS)}</style>{drawing}")
    seen = set(
        page.evaluate(
            """() => [...document.querySelectorAll("text, path, use")].flatMap(
                e => [getComputedStyle(e).fill, getComputedStyle(e).stroke])"""
        )
    )
    for name in ("ink", "muted", "rule", "paper"):
        assert rgb(PALETTE[name].light) not in seen - {"rgb(0, 0, 0)"}
        assert rgb(PALETTE[name].dark) in seen
    page.close()


def test_a_hollow_mark_is_seen_in_the_dark(browser: Browser) -> None:
    from PIL import Image

    page = browser.new_page(color_scheme="dark")
    page.set_content(
        f"<style>{dark_rules('.' + CLASS)} body{{background:#141414}}</style>{once(figures.all_timelines()[1])}"
    )
    ring = page.query_selector_all("use")[-1]
    pixels = Image.open(io.BytesIO(ring.screenshot())).convert("L").getextrema()
    assert pixels[0] < 40
    assert pixels[1] > 180
    page.close()


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


# Colours and the markup


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(share * weight for share, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(one: str, other: str) -> float:
    dark, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_legible_on_every_ground(scheme: str) -> None:
    pairs = [("ink", ground) for ground in ("paper", "band", "fits", "tight", "no")]
    for words, ground in [*pairs, ("muted", "paper"), ("muted", "band")]:
        assert contrast(getattr(PALETTE[words], scheme), getattr(PALETTE[ground], scheme)) >= 4.5


def test_a_light_colour_stands_for_one_dark_one() -> None:
    pairs = {(colour.light, colour.dark) for colour in PALETTE.values()}
    assert len({light for light, _ in pairs}) == len(pairs)


def test_the_same_figure_is_drawn_in_the_same_bytes(tmp_path: Path) -> None:
    figure = figures.all_predicted()[1]
    assert svg(figure) == svg(figure)
    first, again = (save(figure, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]


def test_no_id_of_a_figure_is_in_another_and_every_reference_is_in_its_own() -> None:
    seen: set[str] = set()
    for figure in (*figures.all_bars(), *figures.all_waterfalls(), *figures.all_predicted()):
        drawing = once(figure)
        own = re.findall(r' id="([^"]*)"', drawing)
        assert len(own) == len(set(own))
        assert not seen & set(own)
        assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', drawing)) <= {(i, "") for i in own} | {
            ("", i) for i in own
        }
        seen |= set(own)


def test_names_are_text_not_markup() -> None:
    name = "<script>alert('$x$ & y')</script>"
    figure = figures.bars("x", figures.bar(name, GiB), label=name)
    assert "<script" not in svg(figure)
    assert name in [words for _, _, _, words in texts(drawn(figure))]


def test_an_svg_says_what_it_is() -> None:
    figure = figures.all_bars()[0]
    root = drawn(figure)
    named = {element.get("id"): element.text for element in root}
    assert root.get("role") == "img"
    assert [named[name] for name in root.get("aria-labelledby", "").split()] == [figure.title, figure.description]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UllageError, match="figures need matplotlib") as caught:
        svg(figures.all_bars()[0])
    assert "pip install" in caught.value.hint
