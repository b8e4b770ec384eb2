"""The virtual GPU against PyTorch's CUDA build itself, run on a device without hardware (tests/nullcuda)."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from analytic.models.resolve import resolve
from analytic.models.twin import twin_config
from analytic.request import Request
from profiler.virtual.generate import load_model, serve, virtual_gpu
from profiler.virtual.simulate import Simulation, simulated
from profiler.virtual.target import find_target

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data/virtual/phases.json").read_text())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def virtually(case: dict[str, Any]) -> Simulation:
    target = find_target(f"virtual:{case['target']}", torch=case["versions"]["torch"], alloc_conf=case["alloc_conf"])
    if case["total_bytes"]:
        target = replace(target, gpu=replace(target.gpu, total_bytes=case["total_bytes"]))
    config = twin_config(resolve(case["model"]).config, layers=case["layers"])
    config.pop("quantization_config", None)
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
