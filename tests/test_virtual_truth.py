"""The virtual GPU against PyTorch's CUDA build itself, run on a device without hardware (tests/nullcuda)."""

import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from analytic.cli import main
from analytic.measurement import read_measurement
from analytic.models.resolve import resolve
from analytic.models.twin import twin_config
from analytic.request import Request
from profiler.virtual.generate import load_model, serve, virtual_gpu
from profiler.virtual.simulate import Simulation, simulated
from profiler.virtual.snapshot import read_snapshot
from profiler.virtual.target import find_target

DATA = Path(__file__).parent / "data/virtual"
CASES: list[dict[str, Any]] = json.loads((DATA / "phases.json").read_text())


pytestmark = pytest.mark.usefixtures("one_thread")


def virtually(case: dict[str, Any]) -> Simulation:
    target = find_target(f"virtual:{case['target']}", torch=case["versions"]["torch"], alloc_conf=case["alloc_conf"])
    if case["total_bytes"]:
        target = replace(target, gpu=replace(target.gpu, total_bytes=case["total_bytes"]))
    config = twin_config(resolve(case["model"]).config, layers=case["layers"])
    config.pop("quantization_config", None)
    config.pop("rope_scaling", None)  # the catalogue had none when they were recorded; longrope's factors are 512 bytes
    request = Request(**case["request"])
    with virtual_gpu(target, request) as recorder:
        program = serve(load_model(config, request, recorder, stored=case["stored"]), request).program
    return simulated(program, target)


def name_of(case: dict[str, Any]) -> str:
    differing = {k: v for k, v in case["request"].items() if k not in ("output_tokens", "prompt_tokens", "batch_size")}
    return "-".join(map(str, [case["model"], case["target"], *differing.values(), case["alloc_conf"] or ""]))


@pytest.mark.parametrize("case", CASES, ids=map(name_of, CASES))
def test_statistics_are_those_of_cuda(case: dict[str, Any]) -> None:
    """Byte for byte at the end of load, prefill and decode, peaks and segments included."""
    told = virtually(case)
    phases = {p.name: {k: v for k, v in asdict(p).items() if k != "name"} for p in told.phases}
    if told.failure is not None:
        peaks = ("max_allocated_bytes", "max_reserved_bytes", "max_requested_bytes", "num_alloc_retries")
        end = phases.pop(told.failure.phase)
        forwards = 0 if told.failure.phase == "load" else told.failure.token + 1
        phases["out_of_memory"] = {"forwards": forwards} | {name: end[name] for name in peaks}
    assert phases == case["phases"]


def test_a_recording_is_laid_beside_the_virtual_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every allocation of a recorded run, in its order; and one that is missing is found."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    streams = importlib.import_module("streams")
    record, snapshot = tmp_path / "record.json", DATA / "stream.pickle.gz"
    flags = ["--device", "virtual:a100-80gb", "--torch-version", "2.11", "--twin-layers", "3", "--batch-size", "2"]
    with pytest.raises(SystemExit):
        main(["profile", "qwen2.5-0.5b", *flags, "--prompt-tokens", "100", "--output-tokens", "4", "-o", str(record)])
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["streams", str(record), str(snapshot)])
    assert streams.main() == 0
    device, virtual = streams.on_device(read_snapshot(snapshot)), streams.on_virtual_gpu(read_measurement(record))
    assert len(device) > 1000
    count = f"{len(device):,}"
    assert capsys.readouterr().out == f"{count} events on the device, {count} on the virtual GPU, {count} match\n"
    place = next(at for at, event in enumerate(virtual) if "_to_copy in generate" in event.owner)
    matched, found = streams.differences(device, virtual[:place] + virtual[place + 1 :])
    assert matched == len(device) - 1
    assert [(where, size) for where, size, _ in found] == [("device", virtual[place].bytes)]
