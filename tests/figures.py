"""Figures of every kind for tests: ordinary ones, and ones that go as far as answers can."""

import random

from analytic.quantity import Basis, GiB
from analytic.report.parts import (
    Bar,
    Figure,
    FormatMap,
    HeatMap,
    Interval,
    Intervals,
    Line,
    Point,
    Predicted,
    Segment,
    Span,
    Spot,
    StackedBars,
    Status,
    Step,
    Table,
    Timeline,
    Waterfall,
)

LONG_MODEL = "deepseek-ai/DeepSeek-R1-Distill-Llama-70B-some-very-long-suffix"
LONG_GPU = "rtx-pro-6000-blackwell-server"
COMPONENTS = ("weights", "sequence state", "activations", "workspace", "allocator slack", "context")
GROUNDS: tuple[Basis, ...] = ("exact", "exact", "traced", "assumed", "fitted", "assumed")
ORDER: tuple[Status, ...] = ("fits", "tight", "no")

WORDS = {
    "assumptions": f"{LONG_MODEL} (70.55 B) in bnb-nf4 and bfloat16, transformers 5.17 with sdpa, "
    f"4 sequences of 8,192 + 512 tokens, 8 × {LONG_GPU}",
    "basis": tuple(zip(COMPONENTS, GROUNDS, strict=True)),
    "description": 'What it shows: parts & bounds, with <angles> and "quotes".',
}


def bar(label: str, *sizes: int, slack: float = 0.03) -> Bar:
    segments = tuple(
        Segment(label=name, bytes=size, basis=ground)
        for name, size, ground in zip(COMPONENTS, sizes, GROUNDS, strict=False)
    )
    total = sum(sizes)
    return Bar(
        label=label, segments=segments, low_bytes=round(total * (1 - slack)), high_bytes=round(total * (1 + slack))
    )


def bars(name: str, *drawn: Bar, capacity: int | None = 80 * GiB, label: str = LONG_GPU) -> StackedBars:
    data = Table(title=f"{name} as figures", columns=("part", "GiB"), rows=(("weights", "1.00"),))
    return StackedBars(
        name=name,
        title=f"Where the memory of {name} goes",
        bars=drawn,
        capacity_bytes=capacity,
        capacity_label=label,
        data=data,
        **WORDS,
    )


def all_bars() -> list[StackedBars]:
    mib = 2**20
    usual = (int(39.6 * GiB), 11 * GiB, 4 * GiB, 700 * mib, 300 * mib, 520 * mib)
    eight = (bar(f"{n} {LONG_MODEL} on {LONG_GPU}", *(n * size // 5 for size in usual)) for n in range(1, 9))
    ranks = (bar(f"{rank}: layers {rank * 10}–{rank * 10 + 9}", *usual) for rank in range(8))
    return [
        bars("one-gpu", bar("h100-80gb", *usual)),
        bars("eight-ways", *eight),
        bars("eight-ranks", *ranks, capacity=79 * GiB, label="usable of each"),
        bars("far-below", bar(LONG_MODEL * 3, *usual), capacity=2 * GiB, label=LONG_MODEL),
        bars("far-above", bar("tiny", 5 * mib, 1 * mib, 0, 0, 0, 200 * mib), capacity=275 * GiB, label="gb300"),
        bars("zeros", bar("nothing", 0, 0, 0, slack=0), bar("some", 7, 0, 3, slack=0), capacity=None),
        bars("no-capacity", bar("99 % weights", 990 * GiB, *(GiB,) * 5), bar("", 1, 1, 1), capacity=None),
    ]


def step(label: str, count: int, basis: Basis = "exact", *, level: bool = False, spread: int = 0) -> Step:
    low, high = (count - spread, count + spread) if spread else (None, None)
    return Step(label=label, bytes=count, is_level=level, basis=basis, low_bytes=low, high_bytes=high)


def waterfall(name: str, *steps: Step) -> Waterfall:
    return Waterfall(name=name, title="From the guide's rule to what was measured", steps=steps, **WORDS)


def all_waterfalls() -> list[Waterfall]:
    usual = (
        step("the guide's rule: 70.55 B × 4 bytes × 4 / 32 + 20 %", int(39.4 * GiB), "assumed", level=True),
        step("not 20 % overhead", int(-6.57 * GiB)),
        step("scales, zero points and tensors that stay in bfloat16", int(6.8 * GiB)),
        step("sequence state", int(2.66 * GiB)),
        step("activations", int(1.2 * GiB), "traced"),
        step("workspace and allocator slack", int(0.9 * GiB), "assumed"),
        step("CUDA context", int(0.5 * GiB), "fitted"),
        step("estimate", int(44.89 * GiB), "assumed", level=True, spread=GiB),
        step("not explained", int(-0.3 * GiB), "measured"),
        step("measured", int(44.59 * GiB), "measured", level=True),
    )
    odd = (
        step(LONG_MODEL * 2, 0, level=True),
        step(f"without {LONG_MODEL}", -3 * 2**20, "fitted"),
        step("nothing", 0, "assumed"),
        step("back above", 5 * 2**20, "assumed"),
        step("in the end", 2 * 2**20, "measured", level=True, spread=4 * 2**20),
    )
    return [waterfall("guide-to-measured", *usual), waterfall("below-zero", *odd), waterfall("lone", usual[0])]


def staircase(random_state: random.Random, rows: int, columns: int) -> tuple[tuple[Status, ...], ...]:
    fits = sorted((random_state.randint(0, columns) for _ in range(rows)), reverse=True)
    tight = [min(columns, first + random_state.randint(0, 2)) for first in fits]
    return tuple(
        tuple("fits" if place < a else "tight" if place < b else "no" for place in range(columns))
        for a, b in zip(fits, tight, strict=True)
    )


def heat(name: str, cells: tuple[tuple[Status, ...], ...], asked: tuple[int, int] | None) -> HeatMap:
    return HeatMap(
        name=name,
        title="How long and how many",
        contexts=tuple(1024 * 2**row for row in range(len(cells))),
        concurrencies=tuple(2**column for column in range(len(cells[0]))),
        cells=cells,
        asked=asked,
        **WORDS,
    )


def all_heats() -> list[HeatMap]:
    source = random.Random(7)
    scattered = tuple(tuple(source.choice(ORDER) for _ in range(10)) for _ in range(10))
    return [
        heat("ten-by-ten", staircase(source, 10, 10), (8192, 4)),
        heat("scattered", scattered, (3_000_000, 77)),
        heat("one-cell", (("tight",),), (1024, 1)),
        heat("wide", staircase(source, 2, 15), None),
    ]


def formats(name: str, gpus: tuple[str, ...], names: tuple[str, ...]) -> FormatMap:
    source = random.Random(3)

    def spot() -> Spot | None:
        status = source.choice((*ORDER, None))
        return (
            None if status is None else Spot(status=status, text=f"{source.randint(1, 16)} × {source.randint(1, 275)}")
        )

    spots = tuple(tuple(spot() for _ in names) for _ in gpus)
    return FormatMap(name=name, title="Which GPU in which format", gpus=gpus, formats=names, spots=spots, **WORDS)


def all_formats() -> list[FormatMap]:
    twelve = ("as published", "bfloat16", "float32", "bnb-nf4", "bnb-int8", "fp8", "compressed-tensors-w4a16-g128",
              "gptq-int4-group-128-desc-act", "awq", "mxfp4", "nvfp4", "q4_k_m")  # fmt: skip
    many = tuple(f"{LONG_GPU}-{place}" if place % 9 == 0 else f"gpu-{place}" for place in range(101))
    return [
        formats("few", ("h100-80gb", "l4", LONG_GPU), ("bfloat16", "fp8", "bnb-nf4")),
        formats("hundred-and-one", many, twelve),
        formats("one-spot", (LONG_MODEL,), ("fp8",)),
    ]


def timeline(name: str, points: int, spans: tuple[Span, ...], capacity: int | None, top: int = 40 * GiB) -> Timeline:
    source = random.Random(points)
    allocated = [(float(place), source.randint(0, top)) for place in range(points)]
    reserved = [(time, count + top // 8) for time, count in allocated]
    return Timeline(
        name=name,
        title="What was held when",
        unit="allocations and frees",
        lines=(
            Line(label="allocated", points=tuple(allocated)),
            Line(label="reserved by the allocator", points=tuple(reserved)),
        ),
        spans=spans,
        peak=max(allocated, key=lambda point: point[1]),
        peak_label=f"{LONG_MODEL}, model.layers.79.mlp.down_proj: the output of a linear layer, 1.25 GiB",
        capacity_bytes=capacity,
        **WORDS,
    )


def all_timelines() -> list[Timeline]:
    def spans(*edges: float) -> tuple[Span, ...]:
        names = ("context", "load", "prefill", "decode")
        return tuple(Span(label=n, start=a, end=b) for n, a, b in zip(names, edges, edges[1:], strict=False))

    return [
        timeline("five-thousand", 5000, spans(0, 10, 4000, 4020, 4999), 48 * GiB),
        timeline("two", 2, spans(0, 1), 275 * GiB),
        timeline("bunched", 100, spans(0, 97, 97.5, 98, 99), None, top=2**20),
    ]


def all_predicted() -> list[Predicted]:
    def points(count: int, spread: float) -> tuple[Point, ...]:
        source = random.Random(count)
        drawn = []
        for place in range(count):
            measured = int(10 ** source.uniform(6, 11)) if place % 40 or count == 1 else 0
            predicted = int(measured * (1 + source.gauss(0, spread)))
            slack = int(abs(measured) * spread)
            drawn.append(
                Point(
                    series=(*COMPONENTS, "device")[place % 7] if count > 1 else LONG_MODEL,
                    label=f"run {place}",
                    measured_bytes=measured,
                    predicted_bytes=max(predicted, 0),
                    low_bytes=max(predicted - slack, 0),
                    high_bytes=max(predicted, 0) + slack,
                )
            )
        return tuple(drawn)

    return [
        Predicted(name=name, title="Predicted against measured", points=points(count, spread), **WORDS)
        for name, count, spread in (("four-hundred", 400, 0.05), ("wild", 40, 3.0), ("one-point", 1, 0.01))
    ]


def intervals(name: str, *rows: tuple[str, float, float, float], reference: float | None, unit: str) -> Intervals:
    drawn = tuple(
        Interval(label=label, value=value, low=low, high=high, text=f"{value:g} ({low:g} to {high:g}) {unit}")
        for label, low, value, high in rows
    )
    return Intervals(name=name, title="What was fitted", unit=unit, intervals=drawn, reference=reference, **WORDS)


def all_intervals() -> list[Intervals]:
    return [
        intervals(
            "overheads",
            ("bfloat16", 4.1, 6.2, 9.4),
            ("bnb-nf4", 11, 18.3, 31),
            ("bnb-int8", -3, 2, 7),
            reference=20,
            unit="%",
        ),
        intervals("huge", (LONG_MODEL, -1e3, 5, 1e9), ("small", 1, 1, 1), reference=None, unit="bytes a token"),
        intervals("same", ("context", 3, 3, 3), reference=3, unit="MiB"),
    ]


def all_figures() -> list[Figure]:
    return [
        *all_bars(),
        *all_waterfalls(),
        *all_heats(),
        *all_formats(),
        *all_timelines(),
        *all_predicted(),
        *all_intervals(),
    ]
