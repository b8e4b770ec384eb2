"""Parallel degrees, and flags that only some engines have."""

import pytest

import analytic
from analytic.errors import UsageError
from analytic.flags import OF_ENGINE, Flags
from analytic.parallel import Degrees, degrees


@pytest.mark.parametrize(
    ("gpus", "given", "rest", "made"),
    [
        (None, {}, "tensor", Degrees()),
        (8, {}, "tensor", Degrees(tensor=8)),
        (8, {}, "pipeline", Degrees(pipeline=8)),
        (8, {"pipeline": 2}, "tensor", Degrees(tensor=4, pipeline=2)),
        (8, {"data": 2}, "tensor", Degrees(tensor=4, data=2)),
        (None, {"tensor": 4, "pipeline": 2, "data": 3}, "tensor", Degrees(tensor=4, pipeline=2, data=3)),
        (8, {"tensor": 8}, "pipeline", Degrees(tensor=8)),
    ],
)
def test_what_is_not_given_takes_the_rest(gpus: int | None, given: dict[str, int], rest: str, made: Degrees) -> None:
    assert degrees(gpus, **given, rest=rest) == made  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpus", "given", "said"),
    [
        (8, {"tensor": 4}, "--tensor-parallel-size 4 makes 4 GPUs, and there are 8"),
        (8, {"pipeline": 3}, "--pipeline-parallel-size 3 makes 3"),
        (2, {"tensor": 4, "pipeline": 2}, "--tensor-parallel-size 4 x --pipeline-parallel-size 2 makes 8"),
        (None, {"tensor": 0}, "--tensor-parallel-size: 0"),
        (None, {"data": 10**6}, "--data-parallel-size: 1000000"),
    ],
)
def test_degrees_that_do_not_make_up_the_gpus_are_refused(gpus: int | None, given: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        degrees(gpus, **given, rest="tensor")


def test_ranks_are_named_with_the_tensor_rank_fastest() -> None:
    both = Degrees(tensor=2, pipeline=2, data=2)
    names = [both.name(*rank) for rank in both.ranks()]
    assert names[:3] == ["dp0/tp0/pp0", "dp0/tp1/pp0", "dp0/tp0/pp1"]
    assert len(names) == both.gpus == 8
    assert Degrees().name(0, 0, 0) == "tp0/pp0"


def test_each_flag_is_of_some_engine() -> None:
    owned = {name for names in OF_ENGINE.values() for name in names}
    assert owned == set(Flags.__dataclass_fields__)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ubatch_size": 512}, "--ubatch-size is no option of --engine transformers"),
        ({"engine": "vllm", "n_gpu_layers": 3}, "it is of --engine llamacpp"),
        ({"engine": "llamacpp", "max_num_seqs": 3}, "it is of --engine vllm"),
        ({"engine": "llamacpp", "tensor_parallel_size": 2}, "it is of --engine transformers or vllm"),
        ({"engine": "vllm", "block_size": 0}, "--block-size: 0 must lie between 1"),
        ({"engine": "llamacpp", "split_mode": "column"}, "--split-mode: 'column'"),
        ({"engine": "llamacpp", "tensor_split": (0.0, 0.0)}, "are no shares"),
        ({"engine": "llamacpp", "tensor_split": (1.0, 1.0)}, "has 2 shares, and there are 1 GPUs"),
        ({"engine": "llamacpp", "kv_cache_dtype": "fp8"}, "--kv-cache-dtype: 'fp8'"),
        ({"engine": "llamacpp", "ctx_size": 1024}, "1,024 cells, fewer than its 2,304 tokens"),
        ({"engine": "vllm", "max_model_len": 1024}, "exceed --max-model-len 1,024"),
    ],
)
def test_a_flag_of_another_engine_or_that_contradicts_is_refused_by_name(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        analytic.estimate("llama-3.1-8b", **flags)  # type: ignore[arg-type]
    assert said in f"{refusal.value.message} {refusal.value.hint}"
