"""A static cache: its bytes are those of transformers' own, and what a step needs beside it is that of a real run."""

import itertools
import logging
from typing import Any
from unittest.mock import patch

import pytest
import torch
from live_bytes import ExplainedBytes, Peak, _peaks_of

from analytic.compare import compare
from analytic.engines.transformers.activations import decode_peak, prefill_peak
from analytic.errors import UllageError
from analytic.estimator import estimate
from analytic.measurement import Measurement
from analytic.models.config_reader import FAMILIES, read_geometry
from analytic.request import Request
from analytic.state import (
    FullCache,
    LatentCache,
    RecurrentState,
    SlidingCache,
    StaticCache,
    StaticSlidingCache,
    sequence_state_bytes,
    static,
    storage_growth,
)
from profiler import run
from profiler.case import Case
from tests.test_sequence_state import cache_name, stored_bytes
from tests.tiny_models import tiny_config, tiny_hf_config

BF16 = 2
WITHOUT = {"minimax"}
"""Model types whose class makes a cache of its own."""

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_the_room_is_there_from_the_first_token() -> None:
    cache = static(FullCache(heads=8, head_dim=128, v_head_dim=128), 1000)
    assert cache == StaticCache(heads=8, head_dim=128, v_head_dim=128, room_tokens=1000)
    # 3 sequences x 8 heads x 1,000 tokens x 128 x 2 bytes, twice, and one int64
    expected = 2 * 3 * 8 * 1000 * 128 * 2 + 8
    assert cache.prefill_bytes(prompt_tokens=1, sequences=3, itemsize=BF16) == expected
    assert cache.decode_bytes(total_tokens=1000, sequences=3, itemsize=BF16) == expected
    assert cache.growth_transient_bytes(prompt_tokens=1, total_tokens=2, sequences=3, itemsize=BF16) == 0


def test_a_window_has_no_more_room_than_its_tokens_and_is_rolled_once_full() -> None:
    sliding = SlidingCache(heads=2, head_dim=32, v_head_dim=32, window_tokens=8)
    assert static(sliding, 5) == StaticSlidingCache(heads=2, head_dim=32, v_head_dim=32, room_tokens=5, window_tokens=8)
    cache = static(sliding, 100)
    window = 2 * 3 * 2 * 8 * 32 * BF16  # keys and values of 3 sequences, 2 heads, 8 tokens
    assert cache.prefill_bytes(prompt_tokens=50, sequences=3, itemsize=BF16) == window + 8
    rolled = [cache.growth_transient_bytes(prompt_tokens=5, total_tokens=n, sequences=3, itemsize=2) for n in (8, 9)]
    assert rolled == [0, window]


def test_a_latent_has_one_head_and_a_recurrent_state_no_room() -> None:
    latent = static(LatentCache(kv_lora_rank=512, qk_rope_head_dim=64), 100)
    assert latent.prefill_bytes(prompt_tokens=9, sequences=1, itemsize=BF16) == 100 * 576 * 2 + 8
    state = RecurrentState(conv_elements=12, state_elements=5, state_itemsize=4)
    assert static(state, 100) is state


def test_nothing_grows() -> None:
    sizes = {"prompt_tokens": 5, "total_tokens": 40, "sequences": 2, "itemsize": 2, "room_tokens": 40}
    for model_type in FAMILIES:
        grown = storage_growth(read_geometry(tiny_config(model_type)), **sizes)
        assert all(before == after for _, before, after in grown), model_type


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in WITHOUT])
def test_state_is_what_transformers_stores(model_type: str) -> None:
    from transformers import AutoModel, StaticCache

    geometry = read_geometry(tiny_config(model_type))
    config = tiny_hf_config(model_type)
    model = AutoModel.from_config(config).eval()
    kinds, lengths = (
        ((torch.float32, 3), (torch.bfloat16, 1)),
        ((5, 7), (5, 40), (20, 22)),
    )  # 20 are past the window of 8
    for (dtype, sequences), (prompt_tokens, room_tokens) in itertools.product(kinds, lengths):
        model.to(dtype)
        cache = StaticCache(config=config, max_cache_len=room_tokens)
        tokens = torch.ones(sequences, prompt_tokens, dtype=torch.long)
        for step in range(3):
            with torch.no_grad():
                model(tokens, use_cache=True, **{cache_name(model): cache})
            assert stored_bytes(cache) == sequence_state_bytes(
                geometry,
                prompt_tokens=prompt_tokens,
                total_tokens=prompt_tokens + step,
                sequences=sequences,
                itemsize=dtype.itemsize,
                room_tokens=room_tokens,
            ), (dtype, sequences, prompt_tokens, room_tokens, step)
            tokens = tokens[:, :1]


@pytest.mark.parametrize(("prompt_tokens", "total_tokens"), [(5, 6), (5, 9), (20, 21), (20, 22)])
def test_a_full_window_is_rolled_into_new_tensors(prompt_tokens: int, total_tokens: int) -> None:
    from transformers.cache_utils import StaticSlidingWindowLayer

    from tests.test_sequence_state import live_peak_bytes

    layer = StaticSlidingWindowLayer(max_cache_len=64, sliding_window=8)
    cache = static(SlidingCache(heads=2, head_dim=32, v_head_dim=32, window_tokens=8), 64)

    def update(tokens: int) -> None:
        layer.update(*(torch.zeros(3, 2, tokens, 32) for _ in range(2)))

    update(prompt_tokens)
    for _ in range(total_tokens - prompt_tokens - 1):
        update(1)
    new_token_bytes = 2 * 3 * 2 * 32 * 4
    sizes: dict[str, Any] = {"total_tokens": total_tokens, "sequences": 3, "itemsize": 4}
    expected = cache.decode_bytes(**sizes) + cache.growth_transient_bytes(prompt_tokens=prompt_tokens, **sizes)
    found = live_peak_bytes(lambda: update(1), layer) - new_token_bytes
    assert 0 <= found - expected <= 64  # positions and indices, int64


WIDE = {"vocab_size": 640, "hidden_size": 320, "num_hidden_layers": 3, "num_attention_heads": 10}
WIDE |= {"num_key_value_heads": 5, "intermediate_size": 896, "max_position_embeddings": 2048}
SLIDES = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "head_dim": 64}
LATENT = {"num_key_value_heads": 10, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
LATENT |= {"kv_lora_rank": 96, "q_lora_rank": 128, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48}
MODELS: dict[str, dict[str, Any]] = {
    "llama": WIDE,
    "qwen3": WIDE | {"head_dim": 64},
    "gemma3_text": WIDE | SLIDES | {"sliding_window": 64},
    "mistral": WIDE | {"sliding_window": 4096},
    "deepseek_v3": WIDE | LATENT | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 3},
}
RUNS = [  # attention, dtype, batch, prompt, room, padded
    ("sdpa", "bfloat16", 1, 384, 385, False),
    ("eager", "bfloat16", 3, 100, 101, False),
    ("eager", "bfloat16", 3, 100, 300, False),
    ("sdpa", "float32", 2, 128, 129, True),
    ("sdpa", "float32", 2, 128, 400, True),
]


def measured(model_type: str, run: tuple[str, str, int, int, int, bool]) -> list[Peak]:
    """Peaks of prefill and of the first decode step of a real ``generate`` with a static cache."""
    import transformers

    attention, dtype, batch, prompt, room, padded = run
    logging.disable(logging.WARNING)
    config = transformers.AutoConfig.for_model(model_type, **MODELS[model_type])
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()
    cache = transformers.StaticCache(config=config, max_cache_len=room)
    ids = torch.randint(3, 640, (batch, prompt))
    mask = torch.ones_like(ids)
    mask[0, : prompt // 3 * padded] = 0
    mode = ExplainedBytes(iter([*model.parameters(), *model.buffers()]), lambda: cache)
    for tensor in (ids, mask):
        mode.follow(tensor, "input")
    with torch.no_grad(), _peaks_of(model, mode), mode:
        mode.enter()
        model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            disable_compile=True,
        )
    return mode.peaks


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(map(str, run)))
@pytest.mark.parametrize("model_type", MODELS)
def test_activations_are_those_of_a_real_run(model_type: str, run: tuple[str, str, int, int, int, bool]) -> None:
    attention, dtype, batch, prompt, room, padded = run
    geometry = read_geometry(MODELS[model_type] | {"model_type": model_type})
    common: dict[str, Any] = {
        "batch_size": batch,
        "itemsize": getattr(torch, dtype).itemsize,
        "attention": attention,
        "padded": padded,
        "room_tokens": room,
    }
    prefill = prefill_peak(geometry, prompt_tokens=prompt, **common)
    decode = decode_peak(geometry, context_tokens=prompt + 1, **common)
    phases = [*zip(("prefill", "decode"), measured(model_type, run), (prefill, decode), strict=True)]
    for phase, truth, peak in phases if room == prompt + 1 else phases[:1]:  # a step is told that fills the room
        error = peak.bytes / truth.activation_bytes - 1
        assert peak.low_bytes <= truth.activation_bytes <= peak.high_bytes, f"{phase} {error:+.1%} ({peak.moment})"


def simulated(model: str, **flags: Any) -> Measurement:
    """A measurement on a virtual GPU, made in this process."""
    from test_virtual_estimates import here

    request = Request(batch_size=2, prompt_tokens=512, cache_implementation="static", **flags)
    with patch.object(run, "_watch", here):
        return run.profile(Case(model=model, request=request, twin_layers=4), device="virtual:h200")


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("smollm2-360m", {"output_tokens": 64}),
        ("gemma-3-4b", {"output_tokens": 8, "attention": "eager", "padded": True}),
    ],
)
def test_the_estimate_is_close_to_a_virtual_gpu(model: str, flags: dict[str, Any]) -> None:
    measurement = simulated(model, **flags)
    assert measurement.request.cache_implementation == "static"
    rows = {row.figure: row for row in compare([measurement]).rows}
    assert rows["sequence_state"].error_bytes == 0
    assert abs(rows["allocated"].error_bytes) < 0.02 * rows["allocated"].measured_bytes
    assert rows["reserved"].is_inside


def test_a_static_cache_wastes_no_outgrown_segments_but_has_all_its_room_in_prefill() -> None:
    asked: dict[str, Any] = {"gpu": "h200", "prompt_tokens": 1000, "output_tokens": 3001, "batch_size": 8}
    dynamic, static_ = (estimate("llama-3.2-1b", cache_implementation=kind, **asked) for kind in ("dynamic", "static"))
    token = 16 * 2 * 8 * 64 * 2  # layers x keys and values x heads x head size x bytes
    assert dynamic.fullest.phases[0].sequence_state.bytes == 8 * 1000 * token
    lengths = 16 * 8  # an int64 a layer
    assert static_.fullest.phases[0].sequence_state.bytes == 8 * 4000 * token + lengths
    assert static_.fullest.phases[-1].sequence_state.bytes == 8 * 4000 * token + lengths
    slack = [answer.fullest.components["allocator_slack"].bytes for answer in (dynamic, static_)]
    assert slack[1] < slack[0]


def test_a_model_that_makes_its_own_cache_is_refused_by_name() -> None:
    from analytic.state import require_static

    with pytest.raises(UllageError, match="'minimax'"):
        require_static(read_geometry(tiny_config("minimax")))
