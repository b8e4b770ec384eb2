"""Held to what vLLM 0.33.0's own planner said of the same models (``record_vllm.py``)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analytic.errors import UllageError
from analytic.models.config_reader import read_geometry
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.state.vllm import pool, vllm_state
from analytic.state.vllm_pool import Pool
from analytic.state.vllm_specs import CACHE_DTYPES

GIB = 2**30
PAGES = sorted(Path(__file__).parent.glob("data/vllm/*.json"))
RECORDINGS = {page.stem: json.loads(page.read_text("utf-8")) for page in PAGES}
DTYPES = {"bfloat16": 2, "float32": 4}
KINDS = {
    "full_attention": "full attention",
    "mla_attention": "latent attention",
    "sliding_window": "sliding window",
    "chunked_local_attention": "chunked attention",
    "mamba": "recurrent",
}


def recorded_pool(recording: dict[str, Any]) -> Pool:
    request = {**recording["request"]}
    request.pop("backend", None)
    itemsize = DTYPES[request.pop("dtype", "bfloat16")]
    return pool(read_geometry(recording["config"]), itemsize=itemsize, **request)


@pytest.fixture(params=RECORDINGS)
def recording(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECORDINGS[request.param]


def test_recordings_exist():
    assert len(RECORDINGS) >= 40


def test_groups_are_vllms(recording):
    got = Counter(
        (group.kind, len(group.specs), group.block_tokens, tuple(sorted({spec.page_bytes for spec in group.specs})))
        for group in recorded_pool(recording).groups
    )
    uncached = 131072  # without prefix caching, vLLM's block of a state is --max-model-len
    want = Counter(
        (
            KINDS[group["kind"]],
            group["layers"],
            None if group["kind"] == "mamba" and group["block_tokens"] == uncached else group["block_tokens"],
            tuple(group["page_bytes"]),
        )
        for group in recording["groups"]
    )
    assert got == want


def test_a_block_costs_what_vllm_says(recording):
    got = recorded_pool(recording)
    assert got.block_bytes == recording["block_bytes"]
    assert got.blocks_in(recording["budget_bytes"]) == recording["blocks_in_budget"]


def test_a_request_takes_as_many_blocks_of_each_kind(recording):
    got = recorded_pool(recording)
    kinds = [group.kind for group in got.groups]
    for length, want in recording["lengths"].items():
        theirs = sorted(zip((KINDS[group["kind"]] for group in recording["groups"]), want["blocks"], strict=True))
        assert sorted(zip(kinds, got.group_blocks_for(int(length)), strict=True)) == theirs


def test_concurrency_and_capacity_are_those_vllm_prints(recording):
    got, budget = recorded_pool(recording), recording["budget_bytes"]
    for length, want in recording["lengths"].items():
        assert got.max_concurrency(budget, int(length)) == want["max_concurrency"]
        assert got.capacity_tokens(budget, int(length)) == want["capacity_tokens"]


def test_vllm_starts_up_to_the_longest_context_that_it_estimates(recording):
    got, longest = recorded_pool(recording), recording["longest_in_1_gib"]
    budget = GIB + got.block_bytes  # vLLM puts the null block aside before it estimates
    assert got.fits(budget, longest)
    assert longest == 131072 or not got.fits(budget, longest + 1)


def test_a_decoding_sequence_holds_the_blocks_that_the_manager_gives_it(recording):
    got = recorded_pool(recording)
    for length, want in recording["held"].items():
        assert got.blocks_held(int(length)) == sum(want), length


def test_no_sequence_holds_more_than_is_planned_for_it(recording):
    got = recorded_pool(recording)
    for tokens in (1, 16, 100, 4096, 40000, 131072):
        assert got.blocks_held(tokens) <= got.blocks_for(tokens)


def model_of(*layers: Layer, model_type: str = "llama") -> Geometry:
    return Geometry(
        model_type=model_type, hidden_size=4096, vocab_size=32000, max_position_embeddings=None, layers=tuple(layers)
    )


def attending(layers: int = 32, **changes: Any) -> Geometry:
    mixer = Attention(**{"heads": 32, "kv_heads": 8, "head_dim": 128, "v_head_dim": 128, **changes})
    return model_of(*[Layer(mixer=mixer, feed_forward=None)] * layers)


def test_llama_3_8b_in_blocks_of_sixteen_tokens():
    (held,) = vllm_state(attending(), tokens=1000, sequences=4, itemsize=2)
    assert held.bytes == 4 * 63 * 16 * 32 * 2 * 8 * 128 * 2  # 63 blocks hold 1,000 tokens
    assert held.bytes_per_token == 32 * 2 * 8 * 128 * 2  # 131,072
    assert held.layers == 32


def test_a_hybrid_is_billed_by_kind_and_says_its_padding():
    full, state = sorted(
        vllm_state(read_geometry(RECORDINGS["qwen3-next-80b"]["config"]), tokens=32768, sequences=2, itemsize=2),
        key=lambda held: held.kind,
    )
    block = 12 * 576 * 2 * 2 * 256 * 2  # 12 layers, 576 tokens, keys and values of 2 heads of 256
    assert full.bytes == 2 * 57 * block  # 32,768 / 576 tokens
    assert state.bytes == 2 * 3 * 3 * block  # 36 layers are 3 groups of 12, each with 3 states
    assert (full.layers, state.layers, state.bytes_per_token) == (12, 36, 0)
    state_bytes = 3 * 8192 * 2 + 32 * 128 * 128 * 2  # 3 tokens convolved, 32 heads' states
    assert f"{3 * (block - 12 * state_bytes):,} bytes of padding" in state.note


def test_a_full_window_does_not_grow():
    geometry = attending(window_tokens=1024)
    (held,) = vllm_state(geometry, tokens=100000, sequences=1, itemsize=2, max_num_batched_tokens=2048)
    assert held.bytes_per_token == 0
    assert held.bytes == (5119 // 16 + 2) * 16 * 131072  # 1,023 tokens of the window and 4,096 in flight, + 1 block


def test_key_heads_repeat_on_more_ranks_than_there_are():
    assert pool(attending(), itemsize=2, tensor_parallel_size=8).block_bytes == 32 * 16 * 2 * 128 * 2
    assert pool(attending(), itemsize=2, tensor_parallel_size=16).block_bytes == 32 * 16 * 2 * 128 * 2


def test_a_latent_is_whole_on_every_rank():
    mixer = LatentAttention(
        heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    geometry = model_of(Layer(mixer=mixer, feed_forward=None))
    assert pool(geometry, itemsize=2, tensor_parallel_size=8).block_bytes == 16 * (512 + 64) * 2


def recurrent(kind: str) -> Geometry:
    mixer = Recurrent(
        kind=kind, conv_channels=64, conv_kernel=4, state_elements=64, state_itemsize=4, inner_size=64, heads=4
    )
    return model_of(Layer(mixer=mixer, feed_forward=None))


@pytest.mark.parametrize(
    ("geometry", "options", "named"),
    [
        (attending(), {"kv_cache_dtype": "int3"}, "int3"),
        (attending(), {"kv_cache_dtype": "turboquant_k8v4"}, "turboquant_k8v4"),
        (attending(), {"kv_cache_dtype": "fp8_ds_mla"}, "fp8_ds_mla"),
        (attending(), {"kv_cache_dtype": "bfloat16", "itemsize": 4}, "bfloat16"),
        (attending(), {"block_size": 20}, "20"),
        (attending(), {"tensor_parallel_size": 3}, "32 query heads"),
        (attending(heads=30, kv_heads=10), {"tensor_parallel_size": 6}, "10 key heads"),
        (recurrent("lightning"), {}, "lightning"),
        (recurrent("mamba2"), {"mamba_ssm_cache_dtype": "int8"}, "int8"),
        (recurrent("gated_delta_net"), {"enable_prefix_caching": True, "gdn_prefill_backend": "cudnn"}, "cudnn"),
        (recurrent("short_conv"), {"tensor_parallel_size": 3}, "short_conv"),
        (model_of(Layer(mixer=None, feed_forward=None)), {}, "no layer"),
        (model_of(model_type="bamba"), {}, "bamba"),
    ],
)
def test_what_is_not_known_is_refused_by_name(geometry, options, named):
    with pytest.raises(UllageError) as caught:
        pool(geometry, **{"itemsize": 2, **options})
    assert named in caught.value.message
    assert caught.value.hint


def test_every_cache_dtype_has_at_least_one_layout():
    assert all(dtype.pair_bytes or dtype.latent_bytes for dtype in CACHE_DTYPES.values())
