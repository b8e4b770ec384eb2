"""Stopped in the middle, as real processes: what was written is whole, what was made for a while has gone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loopback_hub import LoopbackHub, SparseFile, safetensors_head
from terminal import CONTROL_C, ULLAGE, Terminal, is_running
from tiny import tiny_config

from analytic.errors import UllageError
from analytic.measurement import read_measurement
from analytic.models.in_flight import in_flight
from analytic.request import Request
from analytic.stopping import undisturbed
from analytic.writing import write_text
from profiler import run, worker
from profiler.serve import Job

ROOT = Path(__file__).parents[1]
HERE = {"PYTHONPATH": str(ROOT)}

MATRIX = """
[[runs]]
models = "{model}"
formats = ["float32", "bfloat16"]
batch_size = 1
prompt_tokens = 32
output_tokens = 4
"""


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Children hear SIGINT, also where these tests run in the background of a shell, which turns it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(scratch: Path) -> dict[str, str]:
    """Everything that is made for a while is made in ``scratch``."""
    return {**HERE, "TMPDIR": str(scratch), "ULLAGE_SPARSE_DIR": str(scratch)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_config("llama")))
    return file


@pytest.fixture
def sweep(model: Path, tmp_path: Path) -> tuple[str, ...]:
    matrix = tmp_path / "matrix.toml"
    matrix.write_text(MATRIX.format(model=model))
    return (*ULLAGE, "sweep", str(matrix), "--device", "virtual:h200", "-o", str(tmp_path / "records"))


def records(tmp_path: Path) -> list[str]:
    """Ids of the records, each of them whole; and nothing lies beside them."""
    return sorted(read_measurement(file).id for file in (tmp_path / "records").iterdir())


def test_a_sweep_that_is_stopped_goes_on_where_it_was(
    sweep: tuple[str, ...], environment: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    terminal = Terminal(*sweep, environment=environment)
    terminal.until(r"  1/2  \d+s  .*  ok ")
    terminal.until("(context|load|prefill) · ")
    (measuring,) = terminal.children()
    terminal.type(CONTROL_C)
    assert terminal.end() == 130
    said = f"the same command goes on from there: 1 of 2 are recorded in {tmp_path / 'records'}"
    assert terminal.visible[-2:] == ["ullage: interrupted", f"hint: {said}"]
    assert terminal.text.count("\x1b[?25h") >= terminal.text.count("\x1b[?25l") == 1
    first = records(tmp_path)
    assert len(first) == 1
    assert not is_running(measuring)
    assert [*scratch.iterdir()] == []

    again = subprocess.run(sweep, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    lines = again.stderr.splitlines()
    assert lines[0] == "1 of 2 recorded before"
    assert [re.sub(r"  \d+s  ", "  0s  ", line)[:9] for line in lines[1:]] == ["  2/2  0s"]
    assert "\x1b" not in again.stderr + again.stdout
    assert [*first, *records(tmp_path)].count(first[0]) == 2
    assert len(records(tmp_path)) == 2


def test_a_terminated_sweep_ends_its_worker_and_says_how_to_go_on(
    sweep: tuple[str, ...], environment: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(sweep, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("  1/2  ")
    measuring = next(_children(process.pid))
    process.terminate()
    hint = f"hint: the same command goes on from there: 1 of 2 are recorded in {tmp_path / 'records'}"
    assert process.stderr.read() == f"ullage: interrupted\n{hint}\n"
    process.stderr.close()
    assert process.wait() == 143
    assert not is_running(measuring)
    assert len(records(tmp_path)) == 1
    assert [*scratch.iterdir()] == []


def _children(pid: int) -> Iterator[int]:
    """As soon as there are some."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := file.read_text().split()):
        pass
    yield from map(int, found)


def test_a_profile_that_is_stopped_leaves_nothing(
    model: Path, environment: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    output = tmp_path / "measured.json"
    flags = ("--device", "cpu", "--prompt-tokens", "8", "--output-tokens", "100000", "--json", "-o", str(output))
    terminal = Terminal(*ULLAGE, "profile", str(model), *flags, environment=environment, piped=True)
    terminal.until(r"decode · .*\d+/100,000 tokens")
    (measuring,) = terminal.children()
    assert sorted(path.name.split("-")[1] for path in scratch.glob("ullage-*")) == ["job", "sparse"]
    terminal.type(CONTROL_C)
    assert terminal.end() == 130
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.read() == b""
    terminal.process.stdout.close()
    hint = "hint: start it again: a measurement is recorded when it has ended"
    assert terminal.visible[-2:] == ["ullage: interrupted", hint]
    assert not is_running(measuring)
    assert not output.exists()
    assert [*scratch.glob("ullage-*")] == []


# A Hub that does not answer


class Stalled(LoopbackHub):
    """Files of weights are asked for, and no answer comes."""

    def wait(self) -> None:
        if self.requests[-1].path.endswith(".safetensors"):
            self._stop.wait()


def test_whoever_stops_does_not_wait_for_the_hub(tmp_path: Path) -> None:
    shard = safetensors_head({"w": ("BF16", (4, 4), 32)})
    names = [f"model-{n:05}-of-00020.safetensors" for n in range(1, 21)]
    index = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(names)}}).encode()
    files: dict[str, bytes | SparseFile] = {"config.json": b'{"model_type": "llama"}'}
    with Stalled() as hub:
        hub.add("acme/large", {**files, "model.safetensors.index.json": index, **dict.fromkeys(names, shard)})
        environment = {**HERE, **hub.environment(tmp_path)}
        terminal = Terminal(*ULLAGE, "estimate", "acme/large", environment=environment)
        terminal.until("headers · acme/large .*0/20")
        terminal.type(CONTROL_C)
        assert terminal.end() == 130
    hint = "hint: start it again: the headers of a model are kept when all of them are read"
    assert terminal.visible[-2:] == ["ullage: interrupted", hint]
    assert [*(tmp_path / "ullage").rglob("*.json")] == []


def test_what_is_in_flight_comes_as_it_is_answered_and_the_first_error_ends_it() -> None:
    assert sorted(in_flight(lambda n: n * n, range(5), at_most=2)) == [(n, n * n) for n in range(5)]
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        if number == 1:
            raise UllageError("damaged")
        return number

    with pytest.raises(UllageError, match="damaged"):
        [*in_flight(ask, range(100), at_most=1)]
    assert asked == [0, 1]


# Signals

CLEANING = """
import signal, sys
from analytic.stopping import Stopping
Stopping().listen()
try:
    print("working", flush=True)
    signal.pause()
finally:
    print("cleaning", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_what_hangs(second: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLEANING], env={**os.environ, **HERE}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(second)
    assert process.wait() == 128 + second
    process.stdout.close()


def test_a_signal_waits_until_what_is_begun_can_be_ended() -> None:
    begun: list[str] = []
    before = signal.getsignal(signal.SIGINT)

    def begin() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            begun.append("worker")

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert begun == ["worker"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_worker_that_only_starts_ends_when_its_parent_is_killed(
    model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    endless = ("--device", "cpu", "--prompt-tokens", "8", "--output-tokens", "100000000")
    asking = subprocess.Popen((*ULLAGE, "profile", str(model), *endless), env={**os.environ, **environment})
    measuring = next(_children(asking.pid))
    asking.kill()
    asking.wait()
    for _ in range(3000):
        if not is_running(measuring):
            return
        time.sleep(0.1)
    os.kill(measuring, signal.SIGKILL)
    pytest.fail("the worker goes on")


def test_a_signal_that_was_turned_off_stays_so() -> None:
    code = (
        "import signal\nfrom analytic.stopping import Stopping\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "Stopping().listen()\nsignal.raise_signal(signal.SIGINT)\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **HERE}, capture_output=True, check=True)
    assert done.stdout == b"goes on\n"


# Files


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_is_being_written_is_whole_or_as_before(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "answer.json"
    if before is not None:
        file.write_text(before)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"answer.json": before} if before else {})


def test_a_snapshot_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "snapshot.pickle"
    seen: list[bool] = []

    def dump(name: str) -> None:
        Path(name).write_text("half")
        seen.append(file.exists())
        Path(name).write_text("whole")

    memory = SimpleNamespace(_record_memory_history=lambda **_: None, _dump_snapshot=dump)
    cuda = SimpleNamespace(memory=memory, is_available=lambda: True)
    monkeypatch.setattr(worker, "measure", lambda *_: None)
    monkeypatch.setattr(worker, "CudaMeter", lambda *_: None)
    job = Job(folder="", request=Request(dtype="bfloat16"), device="cuda", snapshot=str(file))
    worker.run(job, lambda *_, **__: None, cuda=cuda)  # type: ignore[arg-type]
    assert seen == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot.pickle"]
    assert file.read_text() == "whole"


def test_half_a_snapshot_goes_with_its_worker(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "snapshot.pickle.partial"
    half.write_text("half")
    job = {"snapshot": str(tmp_path / "snapshot.pickle"), "device": "cpu", "folder": str(tmp_path), "request": {}}
    told = run._watch(job, timeout_s=0.01, on_phase=lambda _: None, task=run.Task(what=""))
    assert told.end is not None
    assert not half.exists()
