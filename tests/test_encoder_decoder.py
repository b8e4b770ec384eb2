"""A decoder's state beside an encoder: its own tokens grow, what it keeps of the encoder's does not."""

import logging
from typing import Any

import pytest
import torch

from analytic.engines.transformers.activations import prefill_peak
from analytic.errors import UllageError
from analytic.models.config_reader import ENCODER_DECODERS, read_geometry
from analytic.models.geometry import Attention
from analytic.state import (
    CrossCache,
    StaticCache,
    cross_cache,
    growth_transient_bytes,
    sequence_state_bytes,
    sequence_state_bytes_per_token,
    static,
)
from tests.test_sequence_state import storages

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
T5 = IDS | {
    "d_model": 64,
    "d_kv": 24,
    "d_ff": 96,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
BART = IDS | {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}
WHISPER = {key: value for key, value in BART.items() if key != "max_position_embeddings"} | {
    "max_source_positions": 30,
    "max_target_positions": 40,
    "num_mel_bins": 8,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
GEMMA = {key: value for key, value in IDS.items() if key != "decoder_start_token_id"} | {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "sliding_window": 8,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "longt5": T5,
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "marian": BART,
    "m2m_100": BART,
    "blenderbot": BART,
    "whisper": WHISPER,
    "t5gemma": {"encoder": GEMMA, "decoder": GEMMA},
}
ENCODED = 11
"""Tokens of the encoder's input; Whisper always hands on 30."""


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def generated(model_type: str, output_tokens: int, **arguments: Any) -> Any:
    """What ``generate`` returns for two sequences."""
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    auto = transformers.AutoModelForSpeechSeq2Seq if model_type == "whisper" else transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(config).eval()
    whisper = {"input_features": torch.zeros(2, 8, 60)}
    inputs = whisper if model_type == "whisper" else {"input_ids": torch.full((2, ENCODED), 5)}
    return transformers.GenerationMixin.generate(
        model,
        **inputs,
        max_new_tokens=output_tokens,
        min_new_tokens=output_tokens,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        **arguments,
    )


def stored_bytes(cache: Any) -> int:
    """Bytes of the storages of both parts; layers that never saw a token are on no device."""
    layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return sum(dict(storages([list(vars(layer).values()) for layer in layers if layer.is_initialized])).values())


@pytest.mark.parametrize("output_tokens", [3, 12])  # 12 are past t5gemma's window of 8
@pytest.mark.parametrize("cache_implementation", [None, "static"])
@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_state_is_what_transformers_stores(
    model_type: str, cache_implementation: str | None, output_tokens: int
) -> None:
    arguments = {} if cache_implementation is None else {"cache_implementation": "static", "disable_compile": True}
    result = generated(model_type, output_tokens, **arguments)
    cached = result.sequences.shape[1] - 1  # with the start token, without the last one
    assert stored_bytes(result.past_key_values) == sequence_state_bytes(
        read_geometry({"model_type": model_type, **CONFIGS[model_type]}),
        prompt_tokens=1,
        total_tokens=cached,
        sequences=2,
        itemsize=4,
        room_tokens=None if cache_implementation is None else cached,
        encoder_tokens=None if model_type == "whisper" else ENCODED,
    )


def test_flan_t5_xl_keeps_its_input_once_and_its_output_a_token_at_a_time() -> None:
    config = {"model_type": "t5", "d_model": 2048, "d_kv": 64, "num_heads": 32, "num_layers": 24, "d_ff": 5120}
    geometry = read_geometry({**config, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 24})
    token = 24 * 2 * 32 * 64 * 2  # layers x keys and values x heads x head size x bytes
    sizes: dict[str, Any] = {"sequences": 3, "itemsize": 2, "prompt_tokens": 1}
    state = sequence_state_bytes(geometry, total_tokens=100, encoder_tokens=500, **sizes)
    assert state == 3 * (100 + 500) * token
    assert sequence_state_bytes_per_token(geometry, tokens=100, itemsize=2) == token


def test_whisper_keeps_1500_tokens_of_any_sound() -> None:
    geometry = read_geometry({"model_type": "whisper", "d_model": 1280, "decoder_layers": 4, "encoder_layers": 32})
    assert geometry.encoder_tokens == 1500
    assert geometry.max_position_embeddings == 448
    assert len(geometry.layers) == 4


def test_sizes_of_the_decoder_are_not_the_encoders() -> None:
    layer = read_geometry({"model_type": "bart", **BART}).layers[0]
    assert layer.cross == layer.mixer == Attention(heads=4, kv_heads=4, head_dim=16, v_head_dim=16, rotary=False)
    assert len(read_geometry({"model_type": "t5", **T5}).layers) == 2
    assert len(read_geometry({"model_type": "t5", **T5, "num_decoder_layers": None}).layers) == 3


def test_the_cross_part_does_not_grow_and_has_no_room_to_spare() -> None:
    layer = read_geometry({"model_type": "bart", **BART}).layers[0]
    cross = cross_cache(layer, 50)
    assert cross == CrossCache(heads=4, head_dim=16, v_head_dim=16, encoder_tokens=50)
    assert cross is not None
    sizes: dict[str, Any] = {"sequences": 2, "itemsize": 2}
    assert cross.decode_bytes(total_tokens=999, **sizes) == 2 * 2 * 4 * 50 * 16 * 2
    assert cross.growth_transient_bytes(prompt_tokens=1, total_tokens=2, **sizes) == 0
    assert static(cross, 7) == StaticCache(heads=4, head_dim=16, v_head_dim=16, room_tokens=50)


def test_an_encoders_tokens_are_never_guessed() -> None:
    geometry = read_geometry({"model_type": "t5", **T5})
    with pytest.raises(UllageError, match=r"'t5'.*encoder") as raised:
        sequence_state_bytes(geometry, prompt_tokens=1, total_tokens=1, sequences=1, itemsize=2)
    assert "encoder_tokens" in (raised.value.hint or "")


def test_growth_is_of_the_decoders_own_tokens() -> None:
    geometry = read_geometry({"model_type": "bart", **BART})
    sizes: dict[str, Any] = {"prompt_tokens": 1, "total_tokens": 10, "sequences": 1, "itemsize": 2}
    assert growth_transient_bytes(geometry, **sizes) == 9 * 64 * 2  # the old values beside the new ones


def test_activations_are_refused_by_name() -> None:
    with pytest.raises(UllageError, match="'t5'"):
        prefill_peak(
            read_geometry({"model_type": "t5", **T5}), batch_size=1, prompt_tokens=1, itemsize=2, attention="sdpa"
        )


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "t5", **T5, "d_kv": 0}, "head_dim"),
        ({"model_type": "bart", **BART, "decoder_attention_heads": 100}, "decoder_attention_heads"),
        ({"model_type": "whisper", **WHISPER, "max_source_positions": None}, "max_source_positions"),
        ({"model_type": "t5gemma", "decoder": [1]}, "decoder"),
        ({"model_type": "t5gemma", "decoder": GEMMA | {"layer_types": ["odd", "odd"]}}, "layer_types"),
    ],
)
def test_a_key_that_cannot_be_meant_is_named(config: dict[str, Any], key: str) -> None:
    with pytest.raises(UllageError, match=key):
        read_geometry(config)
