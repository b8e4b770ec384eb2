"""Writes docs/startup-logs.md: public start-up logs beside their estimates, one row a run.

Run ``python tests/startup_logs_page.py`` in the repository; no GPU, torch or network is needed.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from start_cases import NOT_HELD, Case, of_0_19, of_lengths, of_starts, others, quoted, read

from analytic.starts.beside import Beside, Row
from analytic.starts.fit import fit
from analytic.starts.vllm import budget_of

PAGE = Path(__file__).parent.parent / "docs" / "startup-logs.md"

COLUMNS = ("weights", "activations", "libraries", "graphs", "KV cache", "of budget", "tokens")
OUTSIDE = "†"

HEAD = """# Public start-up logs beside the estimates

What engines printed when they started on real GPUs, as quoted in public threads and repositories, beside what ullage
estimates of the same start (`ullage calibrate --engine-log FILE`). Figures are the estimate's error relative to what
was printed, as far as the printed digits tell. {outside} marks figures that the bounds do not hold. `of budget` is the
error of the KV cache relative to the share of the GPU that vLLM may use; `tokens` (or blocks) are those that follow
from the printed bytes of KV cache. Weights are exact, but for the ends of the allocator's blocks.

Activations are those of the release that wrote the log, where it samples otherwise than 0.33, which is modelled.
Libraries and CUDA graphs are fitted intervals, whose middle is that of 0.33 (libraries on Hopper: that of the logs of
0.19 below, whose errors of it are not those of unseen starts): logs of one's own machine narrow them
(`ullage calibrate --engine-log FILE -o CALIBRATION`).

This page is written by `tests/startup_logs_page.py`, and `tests/test_starts.py` holds each row.
"""


def error_of_budget(found: Beside, row: Row) -> float | None:
    """The error of a row relative to what the engine may use."""
    budget = None if found.asked is None else budget_of(found.run, found.asked)
    return None if budget is None or row.error is None else row.error * row.printed / budget


def worst(rows: Sequence[Row]) -> Row | None:
    """Of several ranks, the one that is furthest off."""
    return max(rows, key=lambda row: abs(row.error or 0), default=None)


def of_component(found: Beside, name: str) -> Row | None:
    """The row of a column."""
    names = {"tokens": ("tokens", "blocks"), "of budget": ("KV cache",)}.get(name, (name, f"{name} and graphs"))
    return worst([row for row in found.rows if row.component in names and row.error is not None])


def _cell(found: Beside, name: str) -> str:
    row = of_component(found, name)
    error = None if row is None else error_of_budget(found, row) if name == "of budget" else row.error
    if row is None or error is None:
        return ""
    is_marked = name not in ("weights", "of budget", "tokens") and not row.is_within
    return f"{error:+.1%}".replace("-0.0%", "0.0%").replace("+0.0%", "0.0%") + (OUTSIDE if is_marked else "")


def _link(source: str) -> str:
    match = re.match(r"https://github\.com/([^/]+/[^/]+)/(issues|pull|blob)/(.*)", source)
    assert match, source
    name = match[1].rpartition("/")[2]
    label = f"{name} {Path(match[3]).name[:44]}" if match[2] == "blob" else f"{name}#{match[3]}"
    return f"[{label}]({source})"


def _where(found: Beside) -> tuple[str, str]:
    asked = found.asked
    gpu = asked.gpu.name if asked and asked.gpu else "not printed"
    degrees = asked.degrees if asked else None
    if degrees is None:
        return gpu, "1"
    return gpu, str(degrees.tensor) if degrees.pipeline == 1 else f"{degrees.tensor} x {degrees.pipeline} stages"


def _table(pairs: Sequence[tuple[Case, Beside]]) -> Iterator[str]:
    head = ("source", "version", "model, as printed", "GPU", "ranks", *COLUMNS)
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join(['---'] * 5 + ['--:'] * len(COLUMNS))}|"
    for case, found in pairs:
        cells = [_link(case.source), found.run.version or "not printed", case.printed, *_where(found)]
        yield f"| {' | '.join([*cells, *(_cell(found, name) for name in COLUMNS)])} |"


def _summary(pairs: Sequence[tuple[Case, Beside]]) -> Iterator[str]:
    yield "| component | runs | median error | worst | within bounds |"
    yield "|---|--:|--:|--:|--:|"
    for name in COLUMNS:
        rows = [(found, row) for _, found in pairs if (row := of_component(found, name)) is not None]
        errors = [
            abs(error)
            for found, row in rows
            if (error := error_of_budget(found, row) if name == "of budget" else row.error) is not None
        ]
        held = sum(row.is_within for _, row in rows)
        bounded = "" if name in ("weights", "of budget", "tokens") else f"{held} of {len(rows)}"
        if not errors:
            continue
        yield f"| {name} | {len(errors)} | {median(errors):.2%} | {max(errors):.1%} | {bounded} |"


def page() -> str:
    """The whole page."""
    whole = tuple(of_0_19())
    sections: list[str] = [HEAD.format(outside=OUTSIDE)]
    for title, text, found in (
        ("vLLM 0.19 on H100, whole logs", "All settings and all components are printed.", whole),
        (
            "vLLM 0.19 on H100, KV cache at several lengths",
            "From the repository's own report of its logs.",
            of_lengths(),
        ),
        ("Other starts of vLLM", OTHERS, (*of_starts(), *quoted())),
    ):
        pairs = [(case, read(case)) for case in found]
        sections += [f"## {title}: {len(pairs)} starts\n", f"{text}\n", *_summary(pairs), ""]
        if found == whole:
            sections += [f"{LEFT_OUT}\n", *_summary(left_out()), ""]
        sections += [*_table(pairs), ""]
    for title, text, engine, names in (
        ("llama.cpp", LLAMACPP, "llamacpp", _LLAMACPP),
        ("SGLang", SGLANG, "sglang", _SGLANG),
    ):
        sections += [f"## {title}\n", f"{text}\n", *_others(engine, names), ""]
    sections += ["## Not held\n", "| model, as printed | why |", "|---|---|"]
    return "\n".join([*sections, *(f"| {name} | {reason} |" for name, reason in sorted(NOT_HELD.items()))]) + "\n"


def left_out(draws: int = 40) -> list[tuple[Case, Beside]]:
    """Each whole log of 0.19 with constants that are fitted to all the others."""
    known = [(case, read(case)) for case in of_0_19()]
    found = []
    for index, (case, _) in enumerate(known):
        rest = [beside for other, (_, beside) in enumerate(known) if other != index]
        found.append((case, read(case, constants=fit(rest, draws=draws))))
    return found


LEFT_OUT = """The same, each with constants that were fitted to the 35 others (bounds are the extremes of those):"""
OTHERS = """Many without settings: what is not printed is vLLM's default, and what a user adds on the command line is in
`tests/start_cases.py`."""
SGLANG = """It is not modelled: its KV cache is laid beside the bytes of a token, its weights beside vLLM's. On a GB10
the printed weights are what the device lost, other processes and code included."""


LLAMACPP = """Weights and caches to the printed digits; compute buffers are of builds of 2024 and 2025 (more of those in
`tests/data/llamacpp/public_logs.json`)."""
_LLAMACPP, _SGLANG = ("weights", "KV cache", "compute buffer"), ("weights", "KV cache")


def _others(engine: str, names: Sequence[str]) -> Iterator[str]:
    yield f"| source | version | model, as printed | {' | '.join(names)} |"
    yield f"|---|---|---|{'|'.join(['--:'] * len(names))}|"
    for case in others(engine):
        found = read(case)
        cells = [_link(case.source), found.run.version or "not printed", case.printed]
        yield f"| {' | '.join([*cells, *(_cell(found, name) for name in names)])} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
