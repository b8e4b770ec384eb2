"""What only a GPU can tell. Deselected by default; run with ``pytest -m cuda`` on a GPU machine."""

from pathlib import Path
from typing import Any

import pytest

from analytic.compare import compare
from analytic.measurement import Measurement
from analytic.request import Request
from profiler.case import Case
from profiler.run import profile

pytestmark = pytest.mark.cuda


def measured(**flags: Any) -> Measurement:
    request = Request(**{"dtype": "bfloat16", "prompt_tokens": 512, "output_tokens": 8, **flags})
    return profile(Case(model="qwen3-0.6b", request=request), device="cuda", allow_busy=True)


@pytest.mark.parametrize("quantization", [None, "bnb-int8", "bnb-nf4"])
def test_weights_and_cache_are_those_of_the_estimate_to_the_byte(quantization: str | None) -> None:
    errors = {row.figure: row.error_bytes for row in compare([measured(quantization=quantization)]).rows}
    assert (errors["weights"], errors["sequence_state"]) == (0, 0)


def test_the_observed_components_sum_to_what_the_driver_charges() -> None:
    found = measured()
    parts = vars(found.components)
    assert None not in parts.values()
    assert sum(parts.values()) == found.totals.device
    assert found.meter is not None
    assert (found.meter.device_bytes or 0) < 0.01 * (found.totals.device or 0)


def test_a_batch_that_is_too_large_runs_out_of_memory_by_name() -> None:
    found = measured(batch_size=1_000_000, prompt_tokens=10_000)
    assert found.status == "oom"
    assert found.failure is not None
    assert found.failure.asked_bytes


def test_a_snapshot_is_written(tmp_path: Path) -> None:
    file = tmp_path / "snapshot.pickle"
    request = Request(dtype="bfloat16", prompt_tokens=64, output_tokens=2)
    profile(Case(model="qwen3-0.6b", request=request), device="cuda", allow_busy=True, snapshot=file)
    assert file.stat().st_size > 1000
