"""Writes what the README and docs/method.md do not type: tables of accuracy, and what commands print.

Run ``python tests/readme_tables.py`` in the repository; no GPU, torch or network is needed. Errors of measurements
follow from results/, those of start-up logs are read from docs/startup-logs.md (``startup_logs_page.py``), and
recorded runs are counted in tests/data/, where the tests named beside them find them equal.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import test_llamacpp_compute as graphs
import test_vllm_peaks as peaks
import test_vllm_weights as one_gpu
import test_vllm_weights_parallel as ranks

from analytic.compare import Comparison, Summary, compare
from analytic.engines.vllm.memory import activation_peak, runner_bytes
from analytic.measurement import read_measurements

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "method.md")
LOGS = ROOT / "docs" / "startup-logs.md"
RESULTS, DATA = ROOT / "results", ROOT / "tests" / "data"

MEASURED = ("weights", "sequence_state", "activations", "allocated", "reserved", "device")
PRINTED = ("weights", "activations", "libraries", "graphs", "KV cache", "of budget")
NOTHING = "–"


def accuracy() -> Iterator[str]:
    """Median and largest error of each figure: of measurements, then of start-up logs."""
    folders = sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())
    measured = [compare(read_measurements([folder])) for folder in folders]
    head = ("measured on", "runs", *(name.replace("_", " ") for name in MEASURED))
    yield from _table(head, map(_measured_row, measured))
    if all(row.measurement.device.kind != "cuda" for found in measured for row in found.rows):
        yield from ("", "**No CUDA device has been measured yet.**")
    yield ""
    yield from _table(("printed by", "starts", *PRINTED), _printed())


def recorded() -> Iterator[str]:
    """How many recorded runs of the programs themselves the arithmetic is equal to."""
    yield from _table(("recorded from", "equal to the byte", "runs", "test"), _recorded())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('--:' if name not in _TEXT else '---' for name in head)}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


_TEXT = ("measured on", "printed by", "recorded from", "equal to the byte", "test")


def _measured_row(found: Comparison) -> tuple[str, ...]:
    devices = {row.measurement.device.name for row in found.rows}
    runs = len({row.measurement.id for row in found.rows})
    by_figure = {summary.figure: summary for summary in found.summaries}
    return ", ".join(sorted(devices)), f"{runs}", *(_errors(by_figure.get(name)) for name in MEASURED)


def _errors(summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    return f"{summary.median_fraction:.2%} / {summary.max_fraction:.1%}"


def _printed() -> Iterator[tuple[str, ...]]:
    """A row a set of vLLM's start-up logs, and one with constants that were fitted to the others of it."""
    text = LOGS.read_text("utf-8").partition("\n## llama.cpp")[0]
    for title, section in re.findall(r"^## (.+?): \d+ starts\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        tables = re.findall(r"^\| component \|.*\n\|[-:|]+\|\n((?:\|.*\n)+)", section, re.M)
        for name, table in zip((title, "the same, constants fitted to the others"), tables, strict=False):
            yield _printed_row(name, [line.strip("| ").split(" | ") for line in table.splitlines()])


def _printed_row(name: str, rows: list[list[str]]) -> tuple[str, ...]:
    errors = {part: f"{middle} / {worst}" for part, _, middle, worst, *_ in rows}
    return name, max((row[1] for row in rows), key=int), *(errors.get(part, NOTHING) for part in PRINTED)


def _recorded() -> Iterator[tuple[str, ...]]:
    for source, what, runs, test in (
        ("vLLM 0.33's loader", "weights on one GPU", _weights(), "test_vllm_weights"),
        ("", "weights on every rank: tensor, pipeline, expert, data", len(ranks.COVERED), "test_vllm_weights_parallel"),
        ("vLLM 0.33's worker", "peak of the profiling pass", _peaks(), "test_vllm_peaks"),
        ("vLLM 0.33's planner", "KV cache: pages, groups, blocks", _files("vllm/*.json"), "test_vllm_state"),
        ("llama.cpp 0.5", "weights on the GPU and on the host", _loads(), "test_llamacpp_weights"),
        ("", "compute buffers of each device", _graphs(), "test_llamacpp_compute"),
        ("accelerate 1.15", "where `--device-map` puts each module", len(_read("device_maps.json")), "test_device_map"),
        ("PyTorch 2.11, CUDA", "memory statistics of a run", len(_read("virtual/phases.json")), "test_virtual_truth"),
        ("", "its allocator alone", _files("allocator/*.jsonl.gz"), "test_allocator"),
    ):
        yield source, what, f"{runs:,}" if isinstance(runs, int) else runs, f"`{test}`"


def _weights() -> int:
    return sum("bytes" in case and not one_gpu.is_beyond(case) for case in one_gpu.CASES)


def _peaks() -> str:
    return f"{sum(map(_is_equal_peak, peaks.CASES))} of {len(peaks.CASES)}"


def _is_equal_peak(case: dict[str, Any]) -> bool:
    """Of a warm start, as `test_vllm_peaks` has it."""
    model, run = peaks.cut(case["model"], case["layers"]), peaks.run_of(case)
    found, _ = activation_peak(model, run)
    return bool(found.low_bytes - runner_bytes(model, run) == max(case["forward"], case["sampler"]))


def _loads() -> int:
    found = _read("llamacpp/weights.json")
    return sum(len(runs) for part in ("runs", "hub") for runs in found[part].values())


def _graphs() -> int:
    """Without the runs that llama.cpp refuses, or ullage."""
    models = graphs.RECORDED["catalogue"] | graphs.RECORDED["files"]
    runs = [(name, *run) for name, row in models.items() for run in row["runs"]]
    return sum(bool(places) and not graphs.is_refused(name, settings) for name, settings, places in runs)


def _files(pattern: str) -> int:
    return len([*DATA.glob(pattern)])


def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text("utf-8"))


BLOCKS: dict[str, Callable[[], Iterator[str]]] = {"accuracy": accuracy, "recorded": recorded}


def with_tables(text: str) -> str:
    """The page with its generated tables anew."""
    for name in blocks(text):
        begin, end = f"<!-- {name}: written by tests/readme_tables.py -->\n", f"<!-- end of {name} -->"
        before, after = text[: text.index(begin)], text[text.index(end) :]
        text = "".join((before, begin, *(f"{row}\n" for row in BLOCKS[name]()), after))
    return text


def blocks(text: str) -> list[str]:
    """The generated tables that a page has."""
    return re.findall(r"^<!-- (\w+): written by", text, re.M)


_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
_COMMAND = re.compile(r"^\$ (ullage (?:.*\\\n)*.*)\n((?:(?!\$ ).+\n|\n(?!\$ ))+)", re.M)
_PIPE = re.compile(r" \| (head|tail) -n (\d+)$")


def examples(text: str) -> Iterator[tuple[str, str]]:
    """Commands of ullage that are followed by what they print, and that."""
    for block in _CONSOLE.findall(text):
        yield from _COMMAND.findall(block)


def printed(command: str) -> str:
    """What a command prints on 80 columns without colour; it may end in ``| head -n N`` or ``| tail -n N``."""
    whole = command.replace("\\\n", " ")
    pipe = _PIPE.search(whole)
    arguments = shlex.split(whole[: pipe.start()] if pipe else whole)[1:]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", "from analytic.cli import main; main()", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode in (0, 3), done.stderr
    lines = [line.rstrip() for line in done.stdout.rstrip("\n").splitlines()]
    if pipe:
        count = int(pipe[2])
        lines = lines[:count] if pipe[1] == "head" else lines[-count:]
    return "\n".join(lines) + "\n"


def with_output(text: str) -> str:
    """The page with everything anew that its commands print."""
    for command, shown in examples(text):
        text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{printed(command)}")
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_output(with_tables(page.read_text("utf-8"))), encoding="utf-8")
        print(page)
