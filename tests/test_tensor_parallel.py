import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_parallel_ranks import OUTPUT_TOKENS, PROMPT_TOKENS, SEQUENCES, SIZES
from tiny_models import IGNORED, tiny_config
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import apply_tensor_parallelism
from transformers.distributed.utils import initialize_distributed_mesh
from transformers.quantizers.auto import AutoHfQuantizer

from analytic.engines.transformers.module_tree import expanded
from analytic.engines.transformers.tensor_parallel import (
    ShardedWeights,
    possible_degrees,
    shard,
    sharded_geometry,
)
from analytic.engines.transformers.tensor_plan import cut_of, part_of
from analytic.errors import UllageError, UsageError
from analytic.models import catalog, meta
from analytic.models.geometry import Attention, FeedForward, Geometry, LatentAttention, MixtureOfExperts, Recurrent
from analytic.models.model import Model
from analytic.state import sequence_state_bytes
from analytic.weights import weigh
from profiler.models import build, model_class

_WIDE = {"num_attention_heads": 8, "num_key_value_heads": 4}
_UNEVEN = {"intermediate_size": 102, "vocab_size": 70}
"""Sizes that two ranks divide, and four do not."""
_ALIGNED = {"moe_intermediate_size": 64}

ONE_SIZE = ("deepseek_v3", "gemma3_text", "glm4", "gpt_oss", "granitemoehybrid", "lfm2", "minimax", "olmo2")
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2": _ALIGNED,
    "deepseek_v3": {},
    "gemma3_text": {**_WIDE, "tie_word_embeddings": True},
    "gemma4_text": {},
    "glm4": _WIDE,
    "gpt_neox": _UNEVEN,
    "gpt_oss": {},
    "granitemoehybrid": {},
    "lfm2": {},
    "llama": {**_WIDE, **_UNEVEN, "attention_bias": True, "mlp_bias": True},
    "llama4_text": {**_WIDE, "intermediate_size": 64},
    "mimo_v2_flash": {**_WIDE, **_ALIGNED, "swa_num_attention_heads": 8, "swa_num_key_value_heads": 4},
    "minimax": _WIDE,
    "mixtral": {**_WIDE, "intermediate_size": 64},
    "nemotron_h": {},
    "olmo2": {},
    "phi3": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {**_WIDE, "tie_word_embeddings": True},
    "qwen3_moe": {**_WIDE, **_ALIGNED, "num_experts": 8},
    "qwen3_next": {**_WIDE, **_ALIGNED},
}
"""Model types that ranks load and run, and how their configs differ from the tiny ones."""

LOADED = {2: [*FAMILIES], 4: [name for name in FAMILIES if name not in ONE_SIZE]}
"""By how many ranks there are."""

REFUSED = {
    (2, "gemma4_text"): "1 key heads",
    (2, "lfm2"): "lm_head.weight is tied to model.embed_tokens.weight",
    (4, "gemma4_text"): "2 key heads",
    (4, "qwen2"): "2 key heads",
    (4, "nemotron_h"): "no multiple of 8 wide",  # 48 / 4
}
"""What neither real ranks run."""


def config_of(model_type: str) -> dict[str, Any]:
    return {**tiny_config(model_type), **IGNORED, **FAMILIES[model_type]}


def model_of(model_type: str) -> Model:
    return meta.from_config(config_of(model_type), id=model_type)


def run_ranks(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each of the real ranks said, by how many there are."""
    from transformers import AutoConfig

    for model_type in FAMILIES:
        raw = {key: value for key, value in config_of(model_type).items() if key != "model_type"}
        config = AutoConfig.for_model(model_type, **raw)
        torch.manual_seed(0)
        model_class(config)._from_config(config, dtype=torch.float32).save_pretrained(folder / model_type)
    for size, names in LOADED.items():
        (folder / f"load-{size}.json").write_text(json.dumps(names))
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


def test_a_rank_holds_what_a_real_one_holds(tmp_path: Path) -> None:
    for size, ranks in run_ranks(tmp_path).items():
        for model_type in LOADED[size]:
            said = [rank[model_type] for rank in ranks]
            if (size, model_type) in REFUSED:
                assert all("failed" in rank for rank in said), (size, model_type)
                require_refused(model_type, size)
            else:
                require_equal(model_type, size, said)


def require_refused(model_type: str, size: int) -> None:
    model = model_of(model_type)
    assert size not in possible_degrees(model)
    why = f"divide {model_type} by {size}: .*{REFUSED[size, model_type]}"
    with pytest.raises(UllageError, match=why) as raised:
        shard(model, dtype="bfloat16", tensor_parallel_size=size)
    assert "possible up to 64: 1" in raised.value.hint


def require_equal(model_type: str, size: int, said: list[dict[str, Any]]) -> None:
    """Every tensor on every rank, the cache, and the widths of what runs through the layers."""
    model, which = model_of(model_type), (size, model_type)
    assert not [rank["failed"] for rank in said if "failed" in rank], which
    assert size in possible_degrees(model), which
    geometry = sharded_geometry(model, tensor_parallel_size=size)
    state = sequence_state_bytes(
        geometry,
        prompt_tokens=PROMPT_TOKENS,
        total_tokens=PROMPT_TOKENS + OUTPUT_TOKENS - 1,
        sequences=SEQUENCES,
        itemsize=2,
    )
    for rank, real in enumerate(said):
        assert held(shard(model, dtype="bfloat16", tensor_parallel_size=size, rank=rank)) == real["tensors"], which
        assert state == real["state_bytes"], which
    widths = said[0]["widths"]  # the first rank's are the widest
    assert widths, which
    assert {name: width_of(geometry, name) for name in widths} == widths, which


def width_of(geometry: Geometry, name: str) -> int | None:
    """Of what goes into a last projection: the values of all heads, or a feed-forward's intermediate size."""
    found = re.search(r"layers\.(\d+)\.", name)
    assert found is not None
    layer = geometry.layers[int(found[1])]
    mixer, feed_forward = layer.mixer, layer.feed_forward
    if name.endswith(("o_proj", "attention.dense")):
        return mixer.heads * mixer.v_head_dim if isinstance(mixer, Attention | LatentAttention) else None
    if isinstance(feed_forward, MixtureOfExperts):
        return feed_forward.shared_intermediate_size
    return feed_forward.intermediate_size if feed_forward else None


@contextmanager
def rank_of(size: int, rank: int) -> Iterator[Any]:
    """The mesh of a rank whose others are made up: shapes are real, nothing is sent."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield initialize_distributed_mesh(DistributedConfig(tp_size=size, tp_plan="auto"))[1].get_mesh("tp")
    finally:
        torch.distributed.destroy_process_group()


def divided(config: dict[str, Any], size: int, rank: int) -> dict[str, int]:
    """Bytes of each tensor, tiles' scales included, as transformers divides a model before it loads it."""
    real, native = build(config), config.get("quantization_config")
    for name in real.all_tied_weights_keys:  # tied once they are loaded
        module = real.get_submodule(name.rpartition(".")[0])
        module.weight = torch.nn.Parameter(torch.empty_like(module.weight), requires_grad=False)
    if native is not None:
        quantizer = AutoHfQuantizer.from_config(dict(native), pre_quantized=True)
        quantizer._process_model_before_weight_loading(real)
        quantizer.update_parallel_plan(real, real.tp_plan)
    with rank_of(size, rank) as mesh:
        plan, _, _ = real._resolve_parallel_plans(DistributedConfig(tp_size=size, tp_plan="auto"))
        apply_tensor_parallelism(real, mesh, plan)
    held: dict[str, int] = {}
    for name, tensor in [*real.named_parameters(), *real.named_buffers()]:
        part = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if name not in real.all_tied_weights_keys:
            name = name.removesuffix("_scale_inv")
            held[name] = held.get(name, 0) + part.numel() * part.element_size()
    return held


FULL_SIZE = {
    "deepseek-v3": (4, 3),
    "gemma-3-27b": (8, 7),
    "glm-4.5-air": (8, 0),
    "gpt-neox-20b": (16, 15),
    "granite-3.3-8b": (8, 7),  # 49,159 rows of the vocabulary leave the last rank less
    "llama-4-scout": (8, 5),
    "minimax-m2.5": (4, 1),
    "mixtral-8x7b": (8, 3),
    "nemotron-3-nano-30b-a3b": (2, 1),
    "phi-4": (8, 7),
    "qwen3-30b-a3b": (4, 2),
    "qwen3.5-35b-a3b": (2, 1),
    "qwen2.5-32b": (8, 0),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_model_is_divided_as_transformers_divides_it(name: str) -> None:
    model, (size, rank) = catalog.load(name), FULL_SIZE[name]
    weights = shard(model, dtype="bfloat16", tensor_parallel_size=size, rank=rank)
    ours = {name: bytes for name, (_, bytes) in held(weights).items()}
    groups = [g.served.group for g in weights.groups]
    upcast = {name for group in groups if group.stored.startswith("float32-") for name in expanded(group)}
    real = divided(dict(model.config), size, rank)
    assert ours == {name: bytes * (2 if name in upcast else 1) for name, bytes in real.items()}
    assert weights.bytes == sum(weights.by_role.values())


@pytest.mark.parametrize(("rank", "width"), [(0, 13), (1, 13), (2, 13), (3, 11)])
def test_experts_that_four_do_not_divide_have_the_shapes_of_transformers(rank: int, width: int) -> None:
    config = {**config_of("qwen3_moe"), "moe_intermediate_size": 50}
    real = divided(config, 4, rank)
    experts = {g.name.rpartition(".")[2]: g for g in meta.from_config(config, id="x").tensors if g.role == "expert"}
    for name, style, shape in [
        ("gate_up_proj", "packed_colwise", (8, 2 * width, 64)),
        ("down_proj", "rowwise", (8, 64, width)),
    ]:
        cut = cut_of(style, experts[name])
        assert cut is not None
        assert part_of(experts[name].shape, cut, 4, rank) == shape
        assert real[f"model.layers.3.mlp.experts.{name}"] == 2 * prod(shape)


def test_llama_3_70b_by_eight() -> None:
    model = catalog.load("llama-3-70b")
    layer = 8192 * (8192 + 1024 + 1024 + 8192) + 3 * 8192 * 28672  # attention, feed-forward
    norms = 8192 * (2 * 80 + 1)
    weights = shard(model, dtype="bfloat16", tensor_parallel_size=8)
    assert weights.bytes == 2 * ((80 * layer + 2 * 128256 * 8192) // 8 + norms)
    assert weights.replicated_bytes == 2 * norms
    assert possible_degrees(model) == (1, 2, 4, 8)  # key heads
    geometry = sharded_geometry(model, tensor_parallel_size=8)
    attention, feed_forward = geometry.layers[0].mixer, geometry.layers[0].feed_forward
    assert isinstance(attention, Attention)
    assert (attention.heads, attention.kv_heads) == (8, 1)
    assert isinstance(feed_forward, FeedForward)
    assert feed_forward.intermediate_size == 28672 // 8


def test_what_is_gathered_or_recurrent_stays_whole() -> None:
    phi = sharded_geometry(catalog.load("phi-4"), tensor_parallel_size=2)
    assert phi == catalog.load("phi-4").geometry  # its fused projections are gathered
    deepseek = sharded_geometry(catalog.load("deepseek-v3"), tensor_parallel_size=4)
    latent, experts = deepseek.layers[-1].mixer, deepseek.layers[-1].feed_forward
    assert isinstance(latent, LatentAttention)
    assert (latent.heads, latent.kv_lora_rank) == (128, 512)
    assert isinstance(experts, MixtureOfExperts)
    assert (experts.intermediate_size, experts.shared_intermediate_size) == (2048 // 4, 2048 // 4)
    lite = sharded_geometry(catalog.load("deepseek-v2-lite"), tensor_parallel_size=4).layers[0].mixer
    assert isinstance(lite, LatentAttention)
    assert (lite.heads, lite.kv_lora_rank) == (16 // 4, 512)
    mixers = {
        one: other.mixer
        for one, other in zip(
            catalog.load("qwen3-next-80b-a3b").geometry.layers,
            sharded_geometry(catalog.load("qwen3-next-80b-a3b"), tensor_parallel_size=2).layers,
            strict=True,
        )
    }
    assert {type(one.mixer): one.mixer == other for one, other in mixers.items()} == {Recurrent: True, Attention: False}


def test_one_rank_holds_everything() -> None:
    model = catalog.load("gpt2")  # which has no plan
    assert (
        shard(model, dtype="float16", tensor_parallel_size=1).bytes
        == weigh(model, dtype="float16", quantization=None).bytes
    )
    assert sharded_geometry(model, tensor_parallel_size=1) is model.geometry
    assert possible_degrees(model) == (1,)


@pytest.mark.parametrize(
    ("name", "size", "quantization", "said"),
    [
        ("gpt2", 2, None, "no plan for a GPT2LMHeadModel"),
        ("llama-2-7b", 2, "bnb-nf4", "runs no part of model.layers.{}.self_attn.q_proj.weight in bnb-nf4"),
        ("llama-2-7b", 3, None, "32 attention heads"),
        ("qwen3-next-80b-a3b", 4, None, "2 key heads"),
        ("minimax-m2.5", 8, None, "tiles of .*experts.gate_up_proj"),
        ("deepseek-v3", 32, None, "tiles of 128 x 128 of .* would be cut"),
        ("hunyuan-7b", 2, None, "tied"),
    ],
)
def test_what_transformers_does_not_run_is_refused_with_what_it_does(
    name: str, size: int, quantization: str | None, said: str
) -> None:
    asked: dict[str, Any] = {"tensor_parallel_size": size, "quantization": quantization}
    with pytest.raises(UllageError, match=f"by {size}: .*{said}") as raised:
        shard(catalog.load(name), dtype="bfloat16", **asked)
    degrees = possible_degrees(catalog.load(name), quantization=quantization)
    assert f"possible up to 64: {', '.join(map(str, degrees))};" in raised.value.hint
    with pytest.raises(UllageError, match=said):
        sharded_geometry(catalog.load(name), **asked)


def test_mxfp4_experts_stay_whole() -> None:
    model = catalog.load("gpt-oss-20b")
    whole = weigh(model, dtype="bfloat16", quantization=None)
    halves = shard(model, dtype="bfloat16", tensor_parallel_size=2)
    assert whole.bytes - halves.bytes == 201088 * 2880 * 2 // 2  # of the output head


@pytest.mark.parametrize(("dtype", "size", "rank"), [("int8", 2, 0), ("float16", 0, 0), ("float16", 2, 2)])
def test_options_that_cannot_be_are_refused(dtype: str, size: int, rank: int) -> None:
    with pytest.raises(UsageError):
        shard(catalog.load("llama-2-7b"), dtype=dtype, tensor_parallel_size=size, rank=rank)
