from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytic.errors import UsageError
from analytic.rule import BITS, apply_rule

GB = 10**9


@pytest.mark.parametrize(
    ("bits", "quantized", "total", "gpus"),
    [
        (32, 280 * GB, 336 * GB, 5),  # 70e9 * 4;         * 1.2; 336 / 80 = 4.2
        (16, 140 * GB, 168 * GB, 3),  # 280e9 * 16 / 32;  * 1.2; 168 / 80 = 2.1
        (8, 70 * GB, 84 * GB, 2),  # 280e9 * 8 / 32;      * 1.2;  84 / 80 = 1.05
        (4, 35 * GB, 42 * GB, 1),  # 280e9 * 4 / 32;      * 1.2;  42 / 80 = 0.525
    ],
)
def test_seventy_billion_parameters_on_80_gb(bits: int, quantized: int, total: int, gpus: int) -> None:
    rule = apply_rule(70 * GB, bits=bits, gpu_memory_bytes=80 * GB)
    assert (rule.base_bytes, rule.quantized_bytes, rule.total_bytes, rule.gpus_needed) == (
        280 * GB,
        quantized,
        total,
        gpus,
    )


sizes = st.integers(min_value=1, max_value=10**13)


@given(parameters=sizes, gpu=sizes, overhead=st.fractions(min_value=0, max_value=10))
def test_fewer_bits_never_need_more_memory_or_more_gpus(parameters: int, gpu: int, overhead: Fraction) -> None:
    rules = [apply_rule(parameters, bits=b, gpu_memory_bytes=gpu, overhead=overhead) for b in sorted(BITS)]
    for fewer, more in pairwise(rules):
        assert fewer.quantized_bytes <= more.quantized_bytes
        assert fewer.total_bytes <= more.total_bytes
        assert fewer.gpus_needed <= more.gpus_needed


@given(parameters=sizes, gpu=sizes, bits=st.sampled_from(BITS))
def test_the_gpus_hold_the_total_and_one_fewer_would_not(parameters: int, gpu: int, bits: int) -> None:
    rule = apply_rule(parameters, bits=bits, gpu_memory_bytes=gpu)
    assert (rule.gpus_needed - 1) * gpu < rule.total_bytes <= rule.gpus_needed * gpu


def test_overhead_is_exact_where_floats_are_not() -> None:
    # 1e11 * 2 * (1 + 0.1) = 2.2e11: in binary floats 1.1 is a little more, which would ask for one GPU more
    assert apply_rule(10**11, bits=16, gpu_memory_bytes=22 * GB, overhead=0.1).gpus_needed == 10


@pytest.mark.parametrize("bad", [{"bits": 5}, {"gpu_memory_bytes": 0}, {"overhead": -0.1}, {"overhead": "much"}])
def test_what_cannot_be_meant_is_refused(bad: dict[str, object]) -> None:
    request: dict[str, object] = {"bits": 16, "gpu_memory_bytes": GB} | bad
    with pytest.raises(UsageError):
        apply_rule(10**9, **request)  # type: ignore[arg-type]
