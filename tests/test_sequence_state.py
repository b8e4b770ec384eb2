import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from analytic.errors import UllageError
from analytic.models.config_reader import FAMILIES, read_geometry
from analytic.models.geometry import Attention, Geometry, LatentAttention, Layer, Recurrent
from analytic.quantity import round_up
from analytic.state import (
    FullCache,
    IndexedCache,
    LatentCache,
    RecurrentState,
    SlidingCache,
    cached_tokens,
    caches,
    for_layer,
    growth_transient_bytes,
    quantized_state_bytes,
    sequence_state_bytes,
    sequence_state_bytes_per_token,
    storage_growth,
)
from tests.tiny_models import tiny_config, tiny_hf_config

FULL = Attention(heads=32, kv_heads=8, head_dim=128, v_head_dim=128)
SLIDING = Attention(heads=32, kv_heads=8, head_dim=128, v_head_dim=128, window_tokens=4096)
BF16 = 2


pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(*layers: Layer) -> Geometry:
    return Geometry(
        model_type="llama", hidden_size=4096, vocab_size=32000, max_position_embeddings=None, layers=tuple(layers)
    )


def uniform(layers: int, mixer: Attention | LatentAttention | Recurrent | None) -> Geometry:
    return model_of(*[Layer(mixer=mixer, feed_forward=None)] * layers)


def test_llama_3_1_8b_takes_128_kib_a_token():
    per_token = sequence_state_bytes_per_token(uniform(32, FULL), tokens=1, itemsize=BF16)
    assert per_token == 32 * 2 * 8 * 128 * 2  # 131,072


def test_state_is_tokens_times_sequences_times_bytes_per_token():
    got = sequence_state_bytes(uniform(32, FULL), prompt_tokens=1000, total_tokens=1500, sequences=4, itemsize=BF16)
    assert got == 1500 * 4 * 131072


def test_window_is_full_prompt_until_the_first_decode_step():
    cache = for_layer(SLIDING)
    token = 2 * 8 * 128 * BF16  # key and value of 8 heads
    assert cache.prefill_bytes(prompt_tokens=10000, sequences=1, itemsize=BF16) == 10000 * token + 8
    assert cache.decode_bytes(total_tokens=10001, sequences=1, itemsize=BF16) == 4096 * token + 8
    assert cache.decode_bytes(total_tokens=100, sequences=1, itemsize=BF16) == 100 * token + 8


def test_window_grows_until_it_is_full():
    geometry = model_of(*uniform(2, FULL).layers, *uniform(2, SLIDING).layers)
    layer = 2 * 8 * 128 * BF16  # keys and values of 8 heads
    assert sequence_state_bytes_per_token(geometry, tokens=4095, itemsize=BF16) == 4 * layer
    assert sequence_state_bytes_per_token(geometry, tokens=4096, itemsize=BF16) == 2 * layer


def test_latent_cache_is_576_elements_a_token_whatever_the_heads():
    deepseek = LatentAttention(
        heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    assert for_layer(deepseek) == LatentCache(kv_lora_rank=512, qk_rope_head_dim=64)
    assert (
        sequence_state_bytes_per_token(uniform(61, deepseek), tokens=9, itemsize=BF16) == 61 * (512 + 64) * 2
    )  # 70,272


def test_recurrent_state_is_float32_and_ignores_length():
    mamba2 = Recurrent(
        kind="mamba2",
        conv_channels=6144,
        conv_kernel=4,
        state_elements=64 * 64 * 128,
        state_itemsize=4,
        inner_size=4096,
    )
    cache = for_layer(mamba2)
    expected = 3 * (6144 * 4 * BF16 + 64 * 64 * 128 * 4)
    assert cache.prefill_bytes(prompt_tokens=1, sequences=3, itemsize=BF16) == expected
    assert cache.decode_bytes(total_tokens=10**6, sequences=3, itemsize=BF16) == expected
    assert cache.growth_transient_bytes(prompt_tokens=1, total_tokens=2, sequences=3, itemsize=BF16) == 0


def test_layer_without_a_mixer_has_no_state():
    assert sequence_state_bytes(uniform(4, None), prompt_tokens=10, total_tokens=10, sequences=1, itemsize=2) == 0


def test_rounding_is_per_storage():
    small = Attention(heads=1, kv_heads=1, head_dim=1, v_head_dim=1)
    geometry = uniform(3, small)
    rounded = sequence_state_bytes(geometry, prompt_tokens=5, total_tokens=5, sequences=1, itemsize=2, rounded=True)
    assert rounded == 3 * 2 * 512  # a key and a value of 10 bytes a layer
    assert (round_up(0), round_up(1), round_up(512), round_up(513)) == (0, 512, 512, 1024)


def test_storages_grow_from_the_prompt_to_the_end_and_a_window_no_further() -> None:
    geometry = model_of(*uniform(2, FULL).layers, *uniform(1, SLIDING).layers)
    token = 3 * 8 * 128 * BF16  # keys (or values) of 8 heads of 3 sequences
    grown = list(storage_growth(geometry, prompt_tokens=4000, total_tokens=5000, sequences=3, itemsize=BF16))
    full, sliding, size = (2, 4000 * token, 5000 * token), (1, 4000 * token, 4096 * token), (1, 8, 8)
    assert grown == [full, full, sliding, sliding, size]


def test_falcon_caches_expanded_heads():
    assert for_layer(Attention(heads=128, kv_heads=8, head_dim=64, v_head_dim=64, cached_heads=128)) == FullCache(
        heads=128, head_dim=64, v_head_dim=64
    )


@pytest.mark.parametrize(
    "cache",
    [
        FullCache(heads=2, head_dim=32, v_head_dim=32),
        FullCache(heads=2, head_dim=48, v_head_dim=32),
        SlidingCache(heads=2, head_dim=32, v_head_dim=32, window_tokens=8),
        LatentCache(kv_lora_rank=64, qk_rope_head_dim=16),
    ],
)
@pytest.mark.parametrize(("prompt_tokens", "total_tokens"), [(5, 6), (20, 21), (20, 22), (5, 9)])
def test_growth_transient_is_the_peak_of_the_real_layer(cache: Any, prompt_tokens: int, total_tokens: int):
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    sliding = isinstance(cache, SlidingCache)
    layer = DynamicSlidingWindowLayer(sliding_window=cache.window_tokens) if sliding else DynamicLayer()
    key, value = cache.prefill_storages(prompt_tokens=1, sequences=3, itemsize=4)[:2]
    shape = (3, getattr(cache, "heads", 1))
    head_dims = [size // (4 * shape[0] * shape[1]) for size in (key, value)]

    def update(tokens: int) -> None:
        layer.update(*(torch.zeros(*shape, tokens, head_dim) for head_dim in head_dims))

    update(prompt_tokens)
    for _ in range(total_tokens - prompt_tokens - 1):
        update(1)
    new_token_bytes = key + value
    peak_bytes = live_peak_bytes(lambda: update(1), layer) - new_token_bytes
    sizes = {"total_tokens": total_tokens, "sequences": 3, "itemsize": 4}
    transient = cache.growth_transient_bytes(prompt_tokens=prompt_tokens, **sizes)
    constant_bytes = 8 if sliding else 0
    assert peak_bytes + constant_bytes == cache.decode_bytes(**sizes) + transient


def live_peak_bytes(run: Any, layer: Any) -> int:
    """Most bytes of storages alive at an operation's end, those of the layer's keys and values included."""
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode

    alive: dict[int, int] = {}
    peak = 0

    def follow(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive and storage.nbytes():
            alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, alive.pop, storage.data_ptr(), None)

    class Follow(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = func(*args, **(kwargs or {}))
            follow(result)
            peak = max(peak, sum(alive.values()))
            return result

    follow(layer.keys)
    follow(layer.values)
    with Follow():
        run()
    return peak


def test_growth_transient_of_a_model_is_its_largest_layer():
    geometry = model_of(Layer(mixer=FULL, feed_forward=None), Layer(mixer=SLIDING, feed_forward=None))
    token = 2 * 8 * 128 * BF16
    first = growth_transient_bytes(geometry, prompt_tokens=10000, total_tokens=10001, sequences=1, itemsize=BF16)
    assert first == 10000 * token  # the sliding layer's prompt beside its new window
    later = growth_transient_bytes(geometry, prompt_tokens=10000, total_tokens=10002, sequences=1, itemsize=BF16)
    assert later == 10001 * token // 2  # the full layer's old values beside its new ones


def storages(value: object) -> Iterator[tuple[int, int]]:
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        yield from storages(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from storages(item)


def stored_bytes(cache: Any) -> int:
    """Bytes of the distinct storages that a cache of transformers holds, whatever the attribute."""
    held = [list(vars(layer).values()) for layer in cache.layers]
    return sum(dict(storages([held, getattr(cache, "linear_cache", None)])).values())


def cache_name(model: Any) -> str:
    """Mamba models take their cache under another name."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_state_is_what_transformers_stores(model_type: str):
    from transformers import AutoModel

    geometry = read_geometry(tiny_config(model_type))
    model = AutoModel.from_config(tiny_hf_config(model_type)).eval()
    runs = itertools.product((torch.float32, torch.bfloat16), (1, 3), (5, 20))  # 20 tokens are past the window of 8
    for dtype, sequences, prompt_tokens in runs:
        model.to(dtype)
        cache, tokens = None, torch.ones(sequences, prompt_tokens, dtype=torch.long)
        for step in range(3):
            with torch.no_grad():
                cache = model(tokens, use_cache=True, **{cache_name(model): cache})[cache_name(model)]
            assert stored_bytes(cache) == sequence_state_bytes(
                geometry,
                prompt_tokens=prompt_tokens,
                total_tokens=prompt_tokens + step,
                sequences=sequences,
                itemsize=dtype.itemsize,
            ), (dtype, sequences, prompt_tokens, step)
            tokens = tokens[:, :1]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v3", "qwen3_next", "mamba2"])
@pytest.mark.parametrize("output_tokens", [1, 2, 6])
def test_last_generated_token_is_never_cached(model_type: str, output_tokens: int):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_hf_config(model_type)).eval()
    prompt = torch.full((2, 11), 3)
    result = model.generate(
        prompt,
        max_new_tokens=output_tokens,
        min_new_tokens=output_tokens,
        do_sample=False,
        return_dict_in_generate=True,
    )
    total_tokens = cached_tokens(prompt_tokens=11, output_tokens=output_tokens)
    assert total_tokens == 11 + output_tokens - 1
    assert stored_bytes(result.past_key_values) == sequence_state_bytes(
        read_geometry(tiny_config(model_type)),
        prompt_tokens=11,
        total_tokens=total_tokens,
        sequences=2,
        itemsize=4,
    )


HQQ = {"int8": 8, "int4": 4, "int3": 3, "int2": 2, "int1": 1}


def test_a_quantised_prompt_is_half_a_byte_an_element_and_a_scale_and_zero_point_a_group():
    got = quantized_state_bytes(
        uniform(32, FULL), format="int4", prompt_tokens=1000, total_tokens=1100, sequences=2, itemsize=BF16
    )
    elements = 2 * 8 * 128  # of one token of both sequences
    quantized = 1000 * elements // 2 + 2 * 2 * 1000 * elements // 64
    assert got == 32 * 2 * (quantized + 100 * elements * 2)  # the last 100 tokens stay as they are


@pytest.mark.parametrize("format", [*HQQ, "fp8"])
@pytest.mark.parametrize(("model_type", "steps"), [("llama", 130), ("gpt2", 3), ("falcon", 3), ("deepseek_v3", 3)])
def test_quantised_state_is_what_transformers_stores(model_type: str, steps: int, format: str):
    from transformers import AutoModel, QuantizedCache

    pytest.importorskip("hqq")
    config = tiny_hf_config(model_type)
    model = AutoModel.from_config(config).eval().to(torch.bfloat16)
    cache = QuantizedCache("fp8", config) if format == "fp8" else QuantizedCache("hqq", config, nbits=HQQ[format])
    tokens = torch.ones(2, 8, dtype=torch.long)
    for step in range(steps if format in ("int4", "fp8") else 3):  # 128 steps until all is quantised anew
        with torch.no_grad():
            model(tokens, past_key_values=cache, use_cache=True)
        assert stored_bytes(cache) == quantized_state_bytes(
            read_geometry(tiny_config(model_type)),
            format=format,
            prompt_tokens=8,
            total_tokens=8 + step,
            sequences=2,
            itemsize=BF16,
        ), step
        tokens = tokens[:, :1]


@pytest.mark.parametrize("model_type", ["gemma3_text", "jamba", "falcon_h1", "deepseek_v32", "t5"])
def test_layers_that_a_quantised_cache_does_not_take_are_refused(model_type: str):
    geometry = read_geometry({"model_type": model_type, "first_k_dense_replace": 1})
    sizes = {"prompt_tokens": 8, "total_tokens": 8, "sequences": 1, "itemsize": BF16}
    with pytest.raises(UllageError, match=model_type):
        quantized_state_bytes(geometry, format="int4", **sizes)
    with pytest.raises(UllageError, match="int5"):
        quantized_state_bytes(uniform(1, FULL), format="int5", **sizes)


def test_indexer_keys_stand_beside_the_latents():
    layers = read_geometry(tiny_config("glm_moe_dsa")).layers
    kinds = [cache for layer in layers for cache in caches(layer)]
    latent = LatentCache(kv_lora_rank=16, qk_rope_head_dim=8)
    indexed = IndexedCache(kv_lora_rank=16, qk_rope_head_dim=8, index_head_dim=24)
    assert kinds == [indexed, indexed, latent, latent]  # the last two read the second's choice
    assert indexed.bytes_per_token(tokens=1, itemsize=BF16) == (16 + 8 + 24) * 2


def test_hybrid_layer_holds_both_states():
    layer = read_geometry(tiny_config("falcon_h1")).layers[0]
    assert [type(cache) for cache in caches(layer)] == [FullCache, RecurrentState]
