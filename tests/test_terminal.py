"""Text at 80, 60 and 40 columns, with Unicode and without: nothing too wide, no number lost, no question mark."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from made import made_up
from rich.console import Console
from start_banners import banner, starts
from test_calibrate import campaign

from analytic.calibrate import calibrate
from analytic.checking import check
from analytic.compare import compare
from analytic.estimator import estimate
from analytic.formats.catalog import rows as formats
from analytic.hardware import find_gpu, gpus
from analytic.inspection import inspect
from analytic.measurement import Advice, Failure, LiveTensors, Measurement, Peak, Tried, read_measurements
from analytic.models.catalog import entries
from analytic.models.resolve import resolve
from analytic.plans.typed import plan_asked
from analytic.report.parts import Table
from analytic.report.plain import STAND_INS, degrade
from analytic.report.replay import Outcome, OutOfMemory, Replay
from analytic.report.starts import Compared
from analytic.report.terminal import print_table
from analytic.rule import apply_rule
from analytic.starts.fit import fit

ROOT = Path(__file__).parent.parent
MIB = 2**20


def measured() -> Measurement:
    """Everything that a measurement can have, of a run that was simulated."""
    made = made_up(weights=800 * MIB, state=64 * MIB, retained=832 * MIB, allocated=900 * MIB, reserved=960 * MIB)
    samples = tuple((float(at), (800 + at) * MIB, (860 + at) * MIB, (1300 + at) * MIB) for at in range(100))
    tensors = LiveTensors(
        bytes=64 * MIB,
        count=64,
        shape=(1, 8, 2048, 128),
        dtype="bfloat16",
        op="aten::cat",
        module="model.layers.{}.mlp",
    )
    peak = Peak(
        phase="prefill", requested_bytes=899 * MIB, op="aten::mul", module="model.layers.31.mlp", tensors=(tensors,)
    )
    return replace(
        made,
        device=replace(made.device, kind="virtual", used_basis="assumed-context"),
        timeline=samples,
        peaks=(peak,),
        advice=(
            Advice(alloc_conf="expandable_segments:True", status="ok", max_reserved_bytes=900 * MIB, saved_bytes=0),
        ),
        tried=(Tried(value=4, status="ok"), Tried(value=8, status="oom")),
        notes=("not counted: the workspace of cuDNN's attention, which only a device tells.",),
    )


def out_of_memory() -> Measurement:
    failure = Failure(phase="prefill", message="asked", asked_bytes=MIB * 940, free_bytes=MIB * 560, module="model.mlp")
    return replace(measured(), status="oom", failure=failure)


def replayed() -> Replay:
    end = OutOfMemory(
        event=3_000,
        asked_bytes=940_000_000,
        segment_bytes=942_669_824,
        free_bytes=562_036_736,
        allocated_bytes=23_000_000_000,
        reserved_bytes=24_000_000_000,
    )
    outcomes = tuple(
        Outcome(
            alloc_conf=conf,
            is_recorded=not conf,
            max_allocated_bytes=23_000_000_000,
            max_requested_bytes=22_000_000_000,
            max_reserved_bytes=24_000_000_000,
            reserved_bytes=24_000_000_000,
            max_num_segments=1_234,
            num_alloc_retries=2,
            out_of_memory=None if conf else end,
        )
        for conf in ("", "expandable_segments:True")
    )
    return Replay(
        snapshot="snapshot.pickle",
        device=0,
        capacity_bytes=24_500_000_000,
        context_bytes=500_000_000,
        num_events=123_456,
        num_preceding=12,
        preceding_bytes=5 * 2**30,
        failed_events=(7,),
        num_emptied=1,
        num_retries=1,
        num_streams=2,
        recorded_reserved_bytes=24_000_000_000,
        recorded_max_reserved_bytes=24_000_000_000,
        outcomes=outcomes,
        warnings=("a warning",),
    )


def logs(folder: Path) -> Compared:
    lines = (
        banner("0.33.0"),
        "(EngineCore pid=7) INFO Model loading took 14.99 GiB memory and 5 seconds",
        "(EngineCore pid=7) INFO Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization is "
        "(0.92, 72.85 GiB). Actual usage is 14.99 GiB for weight, 1.51 GiB for peak activation, 0.25 GiB for non-torch "
        "memory, and 0.51 GiB for CUDAGraph memory.",
    )
    found = tuple(starts(folder, *lines))
    return Compared(besides=found, fitted=fit(found))


UNSAID: dict[str, Any] = {
    "revision": None,
    "formats": None,
    "target_context": "4096",
    "target_concurrency": 1,
    "contexts": None,
    "concurrencies": None,
    "node_gpus": 8,
    "prices": None,
    "serving": {},
}
"""Flags of a plan as the command line leaves them."""

SHOWN: dict[str, tuple[str, Callable[[Path], Any], dict[str, bool]]] = {
    "estimate": ("estimate", lambda _: estimate("llama-3.1-8b", gpu="l4"), {}),
    "estimate without a GPU": ("estimate", lambda _: estimate("mixtral-8x7b", quantization="bnb-nf4"), {}),
    "estimate that does not fit": ("estimate", lambda _: estimate("llama-3.1-70b", gpu="rtx-4090"), {}),
    "estimate of several": ("estimate", lambda _: estimate("llama-3.1-70b", gpu="h100-80gb:4", engine="vllm"), {}),
    "estimate of llama.cpp": ("estimate", lambda _: estimate("llama-3.1-8b", gpu="rtx-4090", engine="llamacpp"), {}),
    "plan": (
        "plan",
        lambda _: plan_asked("llama-3.1-8b", gpu=("l4", "h100-80gb"), gpus="1,2", **UNSAID),
        {},
    ),
    "check": ("check", lambda _: check("llama-3.1-8b", gpu=find_gpu("l4"), flags={}), {}),
    "rule": ("rule", lambda _: apply_rule(70 * 10**9, bits=4, gpu_memory_bytes=80 * 10**9), {}),
    "inspect": ("inspection", lambda _: inspect(resolve("gpt-oss-20b")), {"tensors": True, "layers": True}),
    "inspect, quantised": ("inspection", lambda _: inspect(resolve("qwen3-0.6b"), quantization="bnb-nf4"), {}),
    "formats": ("formats", lambda _: formats(), {}),
    "gpus": ("gpus", lambda _: gpus(), {}),
    "models": ("models", lambda _: entries(), {}),
    "compare": ("compare", lambda _: compare(recorded()), {}),
    "calibrate": ("calibration", lambda _: calibrate(campaign()), {}),
    "engine logs": ("starts", logs, {}),
    "profile": ("measurement", lambda _: measured(), {}),
    "profile that ran out of memory": ("measurement", lambda _: out_of_memory(), {}),
    "profile of a processor": ("measurement", lambda _: recorded()[0], {}),
    "replay": ("replay", lambda _: replayed(), {}),
}
"""The module that shows an answer, the answer, and the flags of its text."""


def recorded() -> tuple[Measurement, ...]:
    names = ("gpt2_float32*", "gemma-3-270m_bfloat16*", "falcon-7b_2l_bfloat16*", "qwen3-0-6b_bnb-nf4*")
    return read_measurements(sorted(file for name in names for file in (ROOT / "results/cpu").glob(f"{name}.json")))


@pytest.fixture(scope="module")
def text_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What is printed of an answer in a terminal of that width and encoding."""
    folder = tmp_path_factory.mktemp("logs")

    @cache
    def answer(name: str) -> Any:
        return SHOWN[name][1](folder)

    @cache
    def printed(name: str, width: int, encoding: str = "utf-8") -> str:
        view, _, details = SHOWN[name]
        module = import_module(f"analytic.report.{view}")
        return rendered(lambda console: module.text(answer(name), console, **details), width, encoding)

    return printed


def rendered(render: Callable[[Console], None], width: int, encoding: str = "utf-8", **told: Any) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    degrade(stream)
    render(Console(file=stream, width=width, legacy_windows=False, highlight=False, **told))
    stream.flush()
    return raw.getvalue().decode(encoding)


NUMBER = re.compile(r"[-+]?\d[\d,.]*(-\d[\d,.]*)?%?")
"""Or an interval of numbers."""


def numbers(text: str) -> list[str]:
    """Those that stand alone: names hold digits too, and may fold."""
    words = (word.strip("()[],.;:") for word in text.replace("–", "-").split())
    return [word for word in words if NUMBER.fullmatch(word)]


ONE_LINE = ("check",)
"""Commands whose answer is one line, however long."""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("name", [name for name in SHOWN if name not in ONE_LINE])
def test_no_line_is_wider_than_the_terminal_but_a_word_that_is_copied(
    text_of: Callable[..., str], name: str, width: int, encoding: str
) -> None:
    lines = text_of(name, width, encoding).replace("...", "…").splitlines()  # without Unicode it takes two columns more
    too_wide = [line.rstrip() for line in lines if len(line.rstrip()) > width]
    assert [line for line in too_wide if " " in line.strip() and not is_a_matrix(line)] == []


def is_a_matrix(line: str) -> bool:
    """Of a suggested sweep, which is copied into a file."""
    return re.match(r"\w+ = [\[\"]", line) is not None


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize("name", SHOWN)
def test_no_number_is_cut_or_left_out(text_of: Callable[..., str], name: str, width: int) -> None:
    wide, narrow = (Counter(numbers(text_of(name, columns))) for columns in (250, width))
    assert wide - narrow == Counter()


@pytest.mark.parametrize("name", SHOWN)
def test_ascii_says_the_same(text_of: Callable[..., str], name: str) -> None:
    unicode, plain = text_of(name, 80), text_of(name, 80, "ascii")
    assert plain.isascii()
    assert "?" not in plain.replace("?", "", unicode.count("?"))
    assert "\\x" not in plain
    assert "\\u" not in plain
    assert numbers(plain) == numbers(unicode)
    assert len(plain.splitlines()) == len(unicode.splitlines())


@pytest.mark.parametrize("name", SHOWN)
def test_a_pipe_gets_no_escape_codes(text_of: Callable[..., str], name: str) -> None:
    assert "\x1b" not in text_of(name, 80)


def test_no_color_and_a_dumb_terminal_are_heeded() -> None:
    def render(console: Console) -> None:
        import_module("analytic.report.measurement").text(out_of_memory(), console)

    coloured = rendered(render, 80, force_terminal=True, _environ={"TERM": "xterm-256color"})
    plain = rendered(render, 80, force_terminal=True, _environ={"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "\x1b[1;31m" in coloured
    assert re.findall(r"\x1b\[[\d;]*3\d", plain) == []
    assert "\x1b" not in rendered(render, 80, force_terminal=True, _environ={"TERM": "dumb"})


WIDE = Table(
    title="sizes",
    columns=("a name", "why", "bytes", "largest GiB"),
    rows=(("weights", "as stored in the checkpoint", "16,060,522,496", "14.958"), ("state", "", "1", "0.000")),
    words=2,
    note="a note",
)


def test_a_table_keeps_a_line_a_row_where_it_fits() -> None:
    # 7 + 27 + 14 + 11 columns, and a gap of 2 behind each
    assert rendered(lambda console: print_table(WIDE, console), 67).splitlines() == [
        "sizes",
        "a name   why                                   bytes  largest GiB  ",
        "weights  as stored in the checkpoint  16,060,522,496       14.958  ",
        "state                                              1        0.000  ",
        "a note",
    ]


def test_words_and_headings_fold_before_a_row_becomes_lines() -> None:
    # 7 + 12 + 14 + 7 ("largest") columns, and a gap of 1 behind each
    assert [line.rstrip() for line in rendered(lambda console: print_table(WIDE, console), 44).splitlines()] == [
        "sizes",
        "                                    largest",
        "a name  why                   bytes     GiB",
        "weights as stored in 16,060,522,496  14.958",
        "        the",
        "        checkpoint",
        "state                             1   0.000",
        "a note",
    ]
    assert [line.rstrip() for line in rendered(lambda console: print_table(WIDE, console), 30).splitlines()] == [
        "sizes",
        "weights",
        "  why: as stored in the",
        "  checkpoint",
        "  bytes: 16,060,522,496",
        "  largest GiB: 14.958",
        "state",
        "  bytes: 1",
        "  largest GiB: 0.000",
        "a note",
    ]


def test_what_has_no_stand_in_is_escaped_not_lost() -> None:
    assert rendered(lambda console: console.print("3 × 4 ≥ 12 – 日"), 80, "ascii") == "3 x 4 >= 12 - \\u65e5\n"
    assert rendered(lambda console: console.print("3 × 4 ≥ 12"), 80, "latin-1") == "3 × 4 >= 12\n"
    assert all(text.isascii() and text for text in STAND_INS.values())


PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "80"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rule", "70B"), "parameters x 4 bytes"),
        (("estimate", "llama-3.1-8b", "--gpu", "l4", "--markdown"), "| weights |"),
        (("estimate", "--help"), "--gpu"),
        (("rule", "×"), "'x'"),
    ],
)
def test_the_program_writes_ascii_where_it_has_to(arguments: tuple[str, ...], said: str) -> None:
    program = [sys.executable, "-c", "from analytic.cli import main; main()", *arguments]
    ended = subprocess.run(program, capture_output=True, cwd=ROOT, env={**os.environ, **PLAIN}, check=False)
    printed = (ended.stdout + ended.stderr).decode("ascii")
    assert said in printed
    assert "?" not in printed
    assert "\x1b" not in printed
