"""Tiny GGUF files by the real writer, sparse: their tensors' data is a hole that reads as zeros."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from analytic.formats.ggml import BY_NAME

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name to (type, shape as torch has it)."""


def write_gguf(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Tensors) -> Path:
    """A GGUF file with a vocabulary of no tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("no_vocab")
    for key, value in metadata.items():
        _add(writer, key if key.startswith(("general.", "split.")) else f"{architecture}.{key}", value)
    for name, (kind, shape) in tensors.items():
        row = BY_NAME[kind]
        size = int(np.prod(shape)) // row.block_elements * row.block_bytes
        own = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, _stored(own, shape, row), _dtype(own), size, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout
    (stream,) = writer.fout
    end = -(-stream.tell() // 32) * 32 + sum(-(-_size(kind, shape) // 32) * 32 for kind, shape in tensors.values())
    stream.truncate(end)
    writer.close()
    return path


_PLAIN = {"F32": np.float32, "F16": np.float16}


def _size(kind: str, shape: tuple[int, ...]) -> int:
    row = BY_NAME[kind]
    return int(np.prod(shape)) // row.block_elements * row.block_bytes


def _stored(own: Any, shape: tuple[int, ...], row: Any) -> tuple[int, ...]:
    """The writer takes packed types by their bytes."""
    if own.name in _PLAIN:
        return shape
    return (*shape[:-1], shape[-1] // row.block_elements * row.block_bytes)


def _dtype(own: Any) -> Any:
    return np.dtype(_PLAIN.get(own.name, np.uint8))


def _add(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        adders[type(value)](key, value)


LLAMA = {
    "block_count": 2,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 64,
    "vocab_size": 512,
}


def llama_tensors(*, kind: str = "Q4_K", layers: int = 2, tied: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Of a Llama with LLAMA's sizes."""
    layer = {
        "attn_norm": ("F32", (256,)),
        "attn_q": (kind, (256, 256)),
        "attn_k": (kind, (128, 256)),
        "attn_v": ("Q6_K" if kind == "Q4_K" else kind, (128, 256)),
        "attn_output": (kind, (256, 256)),
        "ffn_norm": ("F32", (256,)),
        "ffn_gate": (kind, (512, 256)),
        "ffn_up": (kind, (512, 256)),
        "ffn_down": (kind, (256, 512)),
    }
    return {
        "token_embd.weight": (kind, (512, 256)),
        **{f"blk.{i}.{name}.weight": row for i in range(layers) for name, row in layer.items()},
        "output_norm.weight": ("F32", (256,)),
        **({} if tied else {"output.weight": ("Q6_K", (512, 256))}),
    }
