import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_parallel_ranks import OUTPUT_TOKENS, PROMPT_TOKENS, SEQUENCES, SIZES
from tiny_models import IGNORED, tiny_config

from analytic.engines.module_tree import expanded
from analytic.engines.tensor_parallel import (
    ShardedWeights,
    possible_degrees,
    shard,
    sharded_geometry,
)
from analytic.errors import UllageError, UsageError
from analytic.models import catalog, meta
from analytic.models.geometry import Attention, FeedForward, LatentAttention, MixtureOfExperts, Recurrent
from analytic.models.model import Model
from analytic.state import sequence_state_bytes
from analytic.weights import weigh
from profiler.models import build, model_class

_WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4}
_UNEVEN = {"intermediate_size": 102, "vocab_size": 70}
"""Sizes that two ranks divide, and four do not."""

FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {},
    "deepseek_v3": {},
    "gemma3_text": {**_WIDE, "tie_word_embeddings": True},
    "gemma4_text": {},
    "glm4": _WIDE,
    "gpt_neox": _UNEVEN,
    "gpt_oss": {},
    "granitemoehybrid": {},
    "lfm2": {},
    "llama": {**_WIDE, **_UNEVEN, "attention_bias": True, "mlp_bias": True},
    "llama4_text": _WIDE,
    "mimo_v2_flash": {**_WIDE, "swa_num_attention_heads": 8, "swa_num_key_value_heads": 4},
    "minimax": _WIDE,
    "mixtral": {**_WIDE, "intermediate_size": 50},
    "nemotron_h": {},
    "olmo2": {},
    "phi3": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {**_WIDE, "tie_word_embeddings": True},
    "qwen3_moe": {**_WIDE, "moe_intermediate_size": 50},
    "qwen3_next": _WIDE,
}
"""Model types that ranks load and run, and how their configs differ from the tiny ones."""

REFUSED = {2: {"gemma4_text", "lfm2"}, 4: {"gemma4_text", "lfm2", "qwen2"}}
"""A single key head, a tied head beside a whole embedding, and two key heads for four ranks."""


def config_of(model_type: str) -> dict[str, Any]:
    return {**tiny_config(model_type), **IGNORED, **FAMILIES[model_type]}


def model_of(model_type: str) -> Model:
    return meta.from_config(config_of(model_type), id=model_type)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank said, by how many there are."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("ranks")
    for model_type in FAMILIES:
        raw = {key: value for key, value in config_of(model_type).items() if key != "model_type"}
        config = AutoConfig.for_model(model_type, **raw)
        torch.manual_seed(0)
        model_class(config)._from_config(config, dtype=torch.float32).save_pretrained(folder / model_type)
    script = Path(__file__).parent / "tensor_parallel_ranks.py"
    done = subprocess.run([sys.executable, "-W", "ignore", script, folder], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return {
        size: [json.loads((folder / f"ranks-{size}-{rank}.json").read_bytes()) for rank in range(size)]
        for size in SIZES
    }


def held(weights: ShardedWeights) -> dict[str, list[Any]]:
    """Shape and bytes of each tensor by name."""
    return {name: [list(g.shape), g.each_bytes] for g in weights.groups for name in expanded(g.served.group)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_rank_holds_what_a_real_one_holds(model_type: str, size: int, ranks: dict[int, list[dict[str, Any]]]) -> None:
    model, said = model_of(model_type), [rank[model_type] for rank in ranks[size]]
    if model_type in REFUSED[size]:
        assert all("failed" in rank for rank in said)
        assert size not in possible_degrees(model)
        with pytest.raises(UllageError, match=f"cannot divide {model_type} by {size}") as raised:
            shard(model, dtype="bfloat16", tensor_parallel_size=size)
        assert "possible up to 64: 1" in raised.value.hint
        return
    assert size in possible_degrees(model)
    state = sequence_state_bytes(
        sharded_geometry(model, tensor_parallel_size=size),
        prompt_tokens=PROMPT_TOKENS,
        total_tokens=PROMPT_TOKENS + OUTPUT_TOKENS - 1,
        sequences=SEQUENCES,
        itemsize=2,
    )
    for rank, real in enumerate(said):
        assert "failed" not in real, real
        assert held(shard(model, dtype="bfloat16", tensor_parallel_size=size, rank=rank)) == real["tensors"]
        assert state == real["state_bytes"]
