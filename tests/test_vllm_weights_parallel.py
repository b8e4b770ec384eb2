"""Held to what vLLM 0.33.0's own loader held as one rank of several (``record_vllm_weights_parallel.py``)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_vllm_weights as single
from test_vllm_weights import cut

from analytic.errors import UllageError
from analytic.loaded import Loaded
from analytic.loaded.vllm import pipeline_spans, vllm_weights
from analytic.models.model import Model

RECORDED = json.loads((Path(__file__).parent / "data" / "vllm_weights_parallel.json").read_text("utf-8"))
CASES = RECORDED["cases"]
BEYOND = {
    ("qwen2.5-0.5b", "gptq"),  # 448 inputs in groups of 128: another kernel, for this format only
    *(("ct-fp8", capability) for capability in (80, 86)),  # a workspace a layer, of the GPU's multiprocessors
}
"""What was recorded and is refused: model and format, or format and capability."""
DEGREES = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "ep": "enable_expert_parallel",
    "dp": "data_parallel_size",
}


def made_of(case: dict[str, Any]) -> str | None:
    return case.get("format") or case.get("quantization")


def name_of(case: dict[str, Any]) -> str:
    keys = ("model", "layers", "capability", "format", "quantization", *DEGREES, "rank")
    return "-".join(f"{key if key in DEGREES or key == 'rank' else ''}{case[key]}" for key in keys if key in case)


def is_beyond(case: dict[str, Any]) -> bool:
    made = made_of(case)
    return single.is_beyond(case) or bool({(case["model"], made), (made, case["capability"])} & BEYOND)


def is_fullest(case: dict[str, Any]) -> bool:
    """Whether it is the rank that is answered for: where experts do not divide, the first have more."""
    ranks = case.get("tp", 1) * case.get("dp", 1)
    return not (case.get("ep") and EXPERTS.get(case["model"], 0) % ranks) or case.get("rank", 0) == 0


EXPERTS = {"qwen3-30b-a3b": 128, "deepseek-v2": 160}
SERVED = [case for case in CASES if "bytes" in case]
COVERED = [case for case in SERVED if not is_beyond(case) and is_fullest(case)]
REFUSED = [case for case in CASES if "refused" in case or ("bytes" in case and is_beyond(case))]


@cache
def _model(key: str) -> Model:
    return single.model_of(json.loads(key))


def loaded(case: dict[str, Any]) -> Loaded:
    stage = case.get("rank", 0) // case.get("tp", 1) if "pp" in case else 0
    (gpu,) = vllm_weights(
        _model(json.dumps({key: case[key] for key in ("model", "layers", "format") if key in case})),
        dtype=case["dtype"],
        quantization=case.get("quantization"),
        capability=divmod(case["capability"], 10),
        pipeline_rank=stage,
        **{name: case[key] for key, name in DEGREES.items() if key in case},
    )
    return gpu


def on_one_gpu(case: dict[str, Any]) -> Loaded:
    return loaded({key: value for key, value in case.items() if key not in (*DEGREES, "rank")})


def find(**wanted: Any) -> dict[str, Any]:
    return next(case for case in CASES if all(case.get(key) == value for key, value in wanted.items()))


def changes_of(name: str, **request: Any) -> dict[str, int]:
    request = {"dtype": "bfloat16", "quantization": None, "capability": (9, 0), **request}
    (gpu,) = vllm_weights(cut(name, None), **request)
    return {change.what: change.bytes for change in gpu.changes}


def test_much_is_recorded():
    assert len(COVERED) >= 850
    assert {case["tp"] for case in COVERED if "tp" in case} >= {2, 3, 4, 6, 8, 12, 16}
    assert len({case["class"] for case in COVERED}) >= 25
    assert len({made_of(case) for case in COVERED}) >= 15


@pytest.mark.parametrize("case", COVERED, ids=name_of)
def test_weights_are_what_one_of_several_ranks_holds(case):
    assert loaded(case).bytes == case["bytes"]


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_vllm_refuses_or_no_rule_covers_is_refused(case):
    with pytest.raises(UllageError) as caught:
        loaded(case)
    assert caught.value.hint


def test_the_fullest_rank_is_answered_for():
    uneven = [case for case in SERVED if not is_fullest(case)]
    assert {case["bytes"] <= loaded(case).bytes for case in uneven} == {True}
    assert min(case["bytes"] - loaded(case).bytes for case in uneven) < 0


def test_ranks_of_a_stage_hold_the_same():
    stages: dict[str, set[int]] = {}
    for case in SERVED:
        if is_fullest(case):
            stage = case.get("rank", 0) // case.get("tp", 1) if "pp" in case else 0
            stages.setdefault(name_of({**case, "rank": stage}), set()).add(case["bytes"])
    assert all(len(sizes) == 1 for sizes in stages.values())


@pytest.mark.parametrize("case", COVERED[::9], ids=name_of)
def test_changes_are_all_that_differs_from_the_checkpoint(case):
    whole = loaded(case)
    alone = on_one_gpu(case)
    assert whole.bytes - sum(change.bytes for change in whole.changes) == alone.bytes - sum(
        change.bytes for change in alone.changes
    )
    assert all(change.bytes for change in whole.changes)


@pytest.mark.parametrize(("layers", "size", "spans"), RECORDED["spans"], ids=str)
def test_pipeline_stages_are_vllms(layers, size, spans):
    assert pipeline_spans(layers, size) == tuple(map(tuple, spans))


def test_what_is_split_is_split_evenly():
    changes = changes_of("llama-3.1-70b", tensor_parallel_size=8)
    matrices = 80 * (8192 * (8192 + 8192 + 2 * 1024) + 3 * 8192 * 28672) + 2 * 128_256 * 8192
    norms = (2 * 80 + 1) * 8192
    assert changes["split over 8 ranks"] == -2 * 7 * (matrices + norms) // 8
    assert changes["norms and routers on every rank"] == 2 * 7 * norms // 8


def test_keys_and_values_are_repeated_where_heads_are_fewer_than_ranks():
    assert "key and value heads repeated on ranks" not in changes_of("llama-3.1-70b", tensor_parallel_size=8)
    repeated = changes_of("llama-3.1-70b", tensor_parallel_size=16)["key and value heads repeated on ranks"]
    assert repeated == 80 * 2 * 8192 * (128 - 64) * 2  # a head of 128 on each rank, of which half would be its part


def test_a_vocabulary_is_padded_before_it_is_split():
    padded = changes_of("gpt2", tensor_parallel_size=4)["vocabulary padded to a multiple of 64"]
    assert padded == (50_304 - 50_257) * 768 * 2  # once, as on one GPU: its part is of the padded


def test_some_files_of_vllm_hold_embedding_and_head_on_every_stage():
    middle = {
        name: changes_of(name, pipeline_parallel_size=4, pipeline_rank=1) for name in ("qwen3-32b", "qwen3-30b-a3b")
    }
    ends = 2 * 151_936
    assert middle["qwen3-32b"]["on other pipeline stages"] < -2 * ends * 5120
    layer = 2 * (128 * 3 * 768 * 2048 + 128 * 2048 + 2 * (4096 + 512) * 2048 + 2 * 128 + 2 * 2048)
    assert middle["qwen3-30b-a3b"]["on other pipeline stages"] == -36 * layer


def test_latent_projections_are_on_every_rank():
    more = changes_of("deepseek-v2", tensor_parallel_size=8)["latent projections on every rank"]
    assert more == 60 * (1536 + 512 + 64) * 5120 * 2 * 7 // 8


def test_experts_are_spread_whole_or_in_parts():
    parts, whole = (
        changes_of("qwen3-30b-a3b", tensor_parallel_size=8, enable_expert_parallel=spread) for spread in (False, True)
    )
    assert parts["split over 8 ranks"] == whole["split over 8 ranks"]
    assert whole["places of the experts on ranks"] == 48 * 128 * 4


def test_data_parallel_ranks_share_experts_and_nothing_else():
    dense = [loaded({**find(model="llama-3.1-8b", tp=2), "dp": ranks}).bytes for ranks in (1, 4)]
    assert dense[0] == dense[1]
    routed = [changes_of("qwen3-30b-a3b", tensor_parallel_size=2, data_parallel_size=ranks) for ranks in (1, 4)]
    experts = 48 * 3 * 128 * 2048 * 768 * 2
    assert routed[1]["split over 2 ranks, experts over 8"] - routed[0]["split over 2 ranks"] == -experts * (4 - 1) // 8


@pytest.mark.parametrize(
    ("name", "degrees", "named", "hinted"),
    [
        ("qwen2.5-7b", {"tensor_parallel_size": 8}, "28 query heads", "may be 1, 2, 4"),
        ("llama-3.1-8b", {"tensor_parallel_size": 3}, "32 query heads", "1, 2, 4, 8, 16, 32"),
        ("llama-3.2-3b", {"tensor_parallel_size": 3}, "8 key and value heads", "may be 1, 2, 4, 8"),
        ("gpt-oss-20b", {"tensor_parallel_size": 16}, "8 key heads", "up to 8"),
        ("llama-3.1-8b", {"tensor_parallel_size": 0}, "--tensor-parallel-size", "from 1"),
        ("llama-3.1-8b", {"pipeline_parallel_size": 33}, "32 layers", "from 1 to 32"),
        ("llama-3.1-8b", {"pipeline_parallel_size": 2, "pipeline_rank": 2}, "stage 2", "from 0 to 1"),
        ("llama-3.1-8b", {"enable_expert_parallel": True, "tensor_parallel_size": 2}, "no experts", "leave it out"),
        ("qwen3-30b-a3b", {"data_parallel_size": 7}, "intermediate size", "data-parallel"),
    ],
)
def test_impossible_degrees_are_refused_with_the_possible_ones(name, degrees, named, hinted):
    with pytest.raises(UllageError) as caught:
        changes_of(name, **degrees)
    assert named in caught.value.message
    assert hinted in str(caught.value.hint)


def test_groups_do_not_end_within_a_rank():
    with pytest.raises(UllageError) as caught:
        loaded(find(model="qwen2.5-0.5b", format="w4a16", tp=2, capability=90))
    assert "groups of 128" in caught.value.message
    assert "may be 1" in str(caught.value.hint)
