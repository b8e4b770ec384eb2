"""transformers on several GPUs: ranks and placements are those of its own plan and of accelerate."""

import pytest

import analytic
from analytic.engines.transformers.device_map import infer_device_map
from analytic.engines.transformers.tensor_parallel import possible_degrees, shard
from analytic.hardware import context_range, find_gpu
from analytic.models import catalog


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "phi-3-mini", "gemma-3-4b"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_of_the_ledger_holds_its_shard(name: str, ranks: int) -> None:
    model = catalog.load(name)
    if ranks not in possible_degrees(model):
        with pytest.raises(analytic.UllageError, match=f"cannot divide .* by {ranks}"):
            analytic.estimate(model, tensor_parallel_size=ranks)
        return
    answer = analytic.estimate(model, tensor_parallel_size=ranks)
    whole = analytic.estimate(model).fullest
    for rank, row in enumerate(answer.ledgers):
        held = shard(model, dtype="bfloat16", tensor_parallel_size=ranks, rank=rank)
        assert row.components["weights"].bytes == held.bytes
        assert row.components["sequence_state"].bytes <= whole.components["sequence_state"].bytes
        assert row.components["activations"].bytes <= whole.components["activations"].bytes
    assert [row.rank for row in answer.ledgers] == [f"tp{rank}/pp0" for rank in range(ranks)]


def test_key_heads_that_divide_divide_the_cache() -> None:
    one, four = (analytic.estimate("llama-3.1-8b", tensor_parallel_size=ranks) for ranks in (1, 4))
    state = [answer.fullest.components["sequence_state"].bytes for answer in (one, four)]
    assert state[0] == 4 * state[1]


def test_degrees_that_do_not_divide_are_refused_with_the_possible_ones() -> None:
    with pytest.raises(analytic.UllageError) as refusal:
        analytic.estimate("llama-3.1-8b", tensor_parallel_size=3)
    assert "1, 2, 4, 8" in str(refusal.value.hint)


@pytest.mark.parametrize(("device_map", "gpus"), [("balanced", 4), ("auto", 3), ("sequential", 2)])
def test_a_placement_is_accelerates(device_map: str, gpus: int) -> None:
    model, gpu = catalog.load("llama-3.1-70b"), find_gpu("h100-80gb")
    answer = analytic.estimate(model, gpu=gpu, gpus=gpus, device_map=device_map)
    free = gpu.cuda_bytes - context_range(gpu).bytes
    placed = infer_device_map(
        model,
        device_map=device_map,  # type: ignore[arg-type]
        max_memory=dict.fromkeys(range(gpus), free),
        dtype="bfloat16",
        is_free=True,
    )
    assert [row.layers for row in answer.ledgers] == [(span.first, span.past) for span in placed.spans]
    assert [row.components["weights"].bytes for row in answer.ledgers] == list(placed.weights.values())


def test_a_gpu_that_gets_nothing_is_said_and_one_that_is_missing_refused() -> None:
    answer = analytic.estimate("llama-3.1-70b", gpu="h100-80gb:3", device_map="sequential")
    assert answer.gpus == 2
    assert any("uses 2 of 3 GPUs" in warning for warning in answer.warnings)
    with pytest.raises(analytic.UllageError, match="on the host"):
        analytic.estimate("llama-3.1-70b", gpu="h100-80gb:1", device_map="auto", pipeline_parallel_size=1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "does not combine"),
        ({"device_map": "auto"}, "add --gpu"),
        ({"device_map": "auto", "gpu": "l4:2", "tensor_parallel_size": 2}, "without -tp"),
        ({"device_map": "even"}, "'even' is not known"),
    ],
)
def test_what_contradicts_is_refused(flags: dict[str, object], said: str) -> None:
    with pytest.raises(analytic.UllageError) as refusal:
        analytic.estimate("llama-3.1-8b", **flags)  # type: ignore[arg-type]
    assert said in f"{refusal.value.message} {refusal.value.hint}"
