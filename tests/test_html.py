"""The page of a report: complete, alone, accessible, for any screen and for paper."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import figures
import pytest
from browser import axe, chromium
from playwright.sync_api import Browser, Page

from analytic.errors import UllageError
from analytic.report.html import html
from analytic.report.parts import Figure, Lines, Report, Status, Table

EVIL = '<script>alert(1)</script> & "quotes" $x$'
FIGURES = ("one-gpu", "eight-ranks", "below-zero", "ten-by-ten", "few", "bunched", "wild", "overheads")
LEDGER = Table(
    title="Where the bytes go",
    columns=("", "GiB", "low", "high", "basis"),
    rows=(("weights", "39.60", "39.60", "39.60", "exact"), ("= device", "56.08", "54.40", "57.77", "assumed")),
    note="Peak in prefill.",
)
WIDE = Table(
    title=EVIL,
    columns=("model", "engine", *(f"measured in run {run}" for run in range(9))),
    rows=tuple((f"{figures.LONG_MODEL}-{row}", EVIL, *(f"{row * run:,}" for run in range(9))) for row in range(3)),
    words=2,
)
WORDS = Table(title="Only words", columns=("what", "why"), rows=(("attention", "flash 2 is not there"),), words=-1)


def report(status: Status | None = "tight", names: tuple[str, ...] = FIGURES) -> Report:
    chosen: list[Figure] = [figure for figure in figures.all_figures() if figure.name in names]
    titled = [dataclasses.replace(figure, title=f"{figure.title} ({figure.name})") for figure in chosen]
    return Report(
        title=f"{figures.LONG_MODEL} on 8 × {figures.LONG_GPU} {EVIL}",
        assumptions=figures.WORDS["assumptions"],
        headline="fits with 22.92 GiB to spare.",
        status=status,
        blocks=(
            LEDGER,
            *titled,
            WIDE,
            WORDS,
            Lines(title="What is not modelled", lines=("One thing.", figures.LONG_MODEL * 3)),
            Lines(title="To know", lines=(EVIL, "another"), kind="warnings"),
            Lines(title="What would help", lines=("ullage estimate " + "--prompt-tokens 8192 " * 9,), kind="code"),
        ),
        command=f"ullage estimate '{figures.LONG_MODEL}' --gpu {figures.LONG_GPU}:8 --prompt-tokens 8192",
    )


@pytest.fixture(scope="module")
def text() -> str:
    return html(report())


@pytest.fixture(scope="module")
def file(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("page") / "report.html"
    written.write_text(text)
    return written


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def opened(browser: Browser, file: Path, width: int = 1280, scheme: Any = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_page_is_accessible_and_never_scrolls_sideways(browser: Browser, file: Path, width: int, scheme: Any) -> None:
    page = opened(browser, file, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = [(v["id"], [node["html"] for node in v["nodes"]]) for v in axe(page)]
    assert found == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


def test_a_page_asks_for_nothing_and_runs_nothing(browser: Browser, file: Path) -> None:
    page, asked, said = browser.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri(), wait_until="networkidle")
    assert asked == [file.as_uri()]
    assert said == []
    assert page.evaluate("document.scripts.length") == 0
    page.close()


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.policies: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [named[name] or "" for name in ("src", "href", "xlink:href", "data", "srcset") if name in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(named["content"] or "")


def test_nothing_in_a_page_points_outside_it(text: str) -> None:
    links = _Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith("#") for link in links.found)
    assert not re.search(r"url\((?!#)|@import", text)
    assert links.policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_same_report_is_the_same_text(text: str) -> None:
    assert html(report()) == text


def test_a_page_shows_all_that_the_report_has(browser: Browser, file: Path) -> None:
    page, shown = opened(browser, file), report()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.title() == page.inner_text("h1") == shown.title
    headings = [block.title for block in shown.blocks] + ["The same answer from the command line"]
    assert [h.text_content() for h in page.query_selector_all("h2")] == headings
    cells = page.evaluate(
        "[...document.querySelectorAll('table')].map(t => [...t.rows].map(r => [...r.cells].map(c => c.innerText)))"
    )
    expected = [
        table
        for block in shown.blocks
        if (table := block if isinstance(block, Table) else getattr(block, "data", None))
    ]
    assert cells == [[[*table.columns], *([*row] for row in table.rows)] for table in expected]
    read = page.inner_text("main")
    lines = [line for block in shown.blocks if isinstance(block, Lines) for line in block.lines]
    for words in (shown.assumptions, shown.headline, shown.command, LEDGER.note, *lines):
        assert (words or "").strip() in read
    captions = [c.inner_text() for c in page.query_selector_all("figcaption")]
    assert len(captions) == len(shown.figures) == page.evaluate("document.querySelectorAll('figure svg').length")
    for figure, caption in zip(shown.figures, captions, strict=True):
        assert figure.assumptions in caption
        assert "exact: weights, sequence state; traced: activations; fitted: allocator slack; assumed:" in caption
    page.close()


@pytest.mark.parametrize(
    ("status", "word"), [("fits", "● fits"), ("tight", "◐ tight"), ("no", "○ does not fit"), (None, None)]
)
def test_the_verdict_is_a_mark_and_a_word(status: Status | None, word: str | None) -> None:
    head = re.search(r'<p class="headline[^>]*>(.*?)</p>', html(report(status, names=())), re.DOTALL)
    assert head is not None
    said = re.sub(r"<[^>]*>", "", head[1]).strip()
    assert said == f"{word or ''}fits with 22.92 GiB to spare."


def test_numbers_stand_right_and_words_left(browser: Browser, file: Path) -> None:
    page = opened(browser, file)
    sides = page.evaluate(
        """[...document.querySelectorAll('table')].map(
            t => [...t.rows[1].cells].map(c => getComputedStyle(c).textAlign))"""
    )
    assert sides[0] == ["left", "right", "right", "right", "left"]
    assert sides[-2] == ["left", "left", *["right"] * 9]
    assert sides[-1] == ["left", "left"]
    assert page.evaluate("document.querySelectorAll('table')[0].rows[1].cells[0].tagName") == "TH"
    page.close()


def test_what_is_wide_scrolls_by_keyboard_in_its_own_box(browser: Browser, file: Path) -> None:
    page = opened(browser, file, 360)
    box = page.get_by_role("region", name="Table: <script>")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())
    page.close()


def test_on_paper_all_is_light_open_and_within_the_page(browser: Browser, file: Path) -> None:
    page = opened(browser, file, 680, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == "rgb(27, 27, 27)"
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('svg.drawing')].map(s => s.getBoundingClientRect().right))"
    )
    assert widest <= 680
    assert page.get_by_role("region", name="Table: one-gpu as figures").is_visible()
    page.close()


def test_without_jinja_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from analytic.report import html as module

    module._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UllageError, match="a page needs jinja2") as caught:
        html(report(names=()))
    assert "pip install" in caught.value.hint
