"""The GGUF file that llama.cpp is given: its tensors, where they lie in it, and how many layers it counts.

Read from the file itself, or as its converter and ``llama-quantize`` would write it (`analytic.models.as_gguf`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from analytic.errors import UllageError
from analytic.formats.ggml import BY_NAME, GgmlType, row_of, tensor_bytes
from analytic.formats.gguf_mixtures import quantized
from analytic.formats.registry import find_preset
from analytic.models.as_gguf import converted, facts_of
from analytic.models.geometry import Geometry
from analytic.models.gguf import read_gguf
from analytic.models.model import Model
from analytic.quantity import round_up
from analytic.weights import is_packing

ALIGNMENT_BYTES = 32
"""Of a tensor in a file that does not say otherwise (``general.alignment``)."""

_LAYER = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """A tensor of the file."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    """Columns last."""
    file: str = ""
    """Of a set of files."""
    offset: int | None = None
    """Bytes from the first tensor of its file; None where their order is not known."""

    @property
    def bytes(self) -> int:
        """As stored."""
        return tensor_bytes(self.type, self.shape, self.name)

    @property
    def layer(self) -> int | None:
        """None outside the layers."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None

    @property
    def module(self) -> str:
        """The name without its layer and what the tensor is of its module."""
        return re.sub(r"\.(weight|bias|scale)$", "", _LAYER.sub("", self.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufFile:
    """What llama.cpp looks at before it loads."""

    architecture: str
    """As GGUF names it."""
    geometry: Geometry
    """Of the layers that are served."""
    tensors: tuple[FileTensor, ...]
    blocks: int
    """All layers, those for prediction included: what ``-ngl`` counts from."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The file's own metadata that are numbers, without the architecture's prefix; empty where there is no file."""


_PREDICTION_LAYERS: Mapping[str, str] = {
    "glm4moe": "num_nextn_predict_layers",
    "nemotron_h": "num_nextn_predict_layers",
    "qwen35": "mtp_num_hidden_layers",
    "qwen35moe": "mtp_num_hidden_layers",
}
"""The config's number of prediction layers, where the converter counts them among the blocks (conversion/)."""
_MOST_PREDICTION_LAYERS = 4
"""Of any model that llama.cpp loads."""


def gguf_file(model: Model, *, dtype: str, quantization: str | None, gpu_layers: int) -> GgufFile:
    """The file that ``model`` was read from, or that llama.cpp's tools make of it in ``dtype`` and ``quantization``.

    Raises:
        UllageError: they make none of it, or ``gpu_layers`` counts prediction layers whose number is not known.
    """
    if model.source != "gguf":
        return _converted(model, dtype, quantization, gpu_layers)
    if quantization is not None:
        raise UllageError(f"{model.id} is a GGUF file, which is loaded as it is", hint="leave --quantization out")
    return _read(model) if Path(model.id).is_file() else _described(model, gpu_layers)


def _converted(model: Model, dtype: str, quantization: str | None, gpu_layers: int) -> GgufFile:
    mixture = _mixture(quantization)
    if model.native_format not in (None, "fp8"):
        raise UllageError(
            f"how llama.cpp converts {model.native_format} is not known to ullage", hint="give the GGUF file itself"
        )
    facts = facts_of(model)
    made = converted(model, dtype=dtype)
    if mixture is not None:
        made = quantized(made, mixture, facts)
    tensors = tuple(FileTensor(name=t.name, type=t.type, shape=t.shape) for t in made)
    if facts.architecture == "qwen3next":  # its config does not say
        _require_all(model, gpu_layers)
    text = model.config.get("text_config")
    config = text if isinstance(text, Mapping) else model.config
    predicting = config.get(_PREDICTION_LAYERS.get(facts.architecture, ""))
    return GgufFile(
        architecture=facts.architecture,
        geometry=model.geometry,
        tensors=tensors if mixture is None else tuple(_laid_out(tensors, ALIGNMENT_BYTES)),
        blocks=facts.layers + (predicting if isinstance(predicting, int) else 0),
    )


def _mixture(quantization: str | None) -> str | None:
    """llama.cpp's own name of it."""
    if quantization in (None, "none"):
        return None
    if is_packing(quantization) and (mixture := find_preset(str(quantization))[0].mixture):
        return mixture
    raise UllageError(f"llama.cpp has no quantisation {quantization!r}", hint="a mixture of ullage formats: Q4_K_M")


def _require_all(model: Model, gpu_layers: int) -> None:
    if gpu_layers < len(model.geometry.layers) + 1 + _MOST_PREDICTION_LAYERS:
        raise UllageError(
            f"-ngl counts the prediction layers of {model.id}, and how many its file has is not known",
            hint="offload every layer, or give the GGUF file itself, on this machine",
        )


def _read(model: Model) -> GgufFile:
    header = read_gguf(model.id)
    tensors = (FileTensor(name=t.name, type=t.type, shape=t.shape, file=t.file) for t in header.tensors)
    alignment = header.metadata.get("general.alignment", ALIGNMENT_BYTES)
    blocks = header.metadata[f"{header.architecture}.block_count"]
    assert isinstance(alignment, int)  # read_gguf and config_of refuse others
    assert isinstance(blocks, int)
    return GgufFile(
        architecture=header.architecture,
        geometry=model.geometry,
        tensors=tuple(_laid_out(tensors, alignment)),
        blocks=blocks,
        numbers={
            key.removeprefix(f"{header.architecture}."): value
            for key, value in header.metadata.items()
            if isinstance(value, int | float)
        },
    )


def _described(model: Model, gpu_layers: int) -> GgufFile:
    """Of a file elsewhere, whose tensors are known but not their order."""
    types = {row_of(kind): kind for kind in BY_NAME.values()}
    tensors = tuple(
        FileTensor(name=group.name.format(layer), type=types[group.stored], shape=group.shape)
        for group in model.tensors
        for layer in group.layers or ("",)
    )
    if model.stored_bytes != sum(tensor.bytes for tensor in tensors):
        _require_all(model, gpu_layers)
    return GgufFile(
        architecture=model.architecture,
        geometry=model.geometry,
        tensors=tensors,
        blocks=len(model.geometry.layers),
    )


def _laid_out(tensors: Iterable[FileTensor], alignment: int) -> Iterator[FileTensor]:
    for _, own in groupby(tensors, key=lambda tensor: tensor.file):
        offset = 0
        for tensor in own:
            yield replace(tensor, offset=offset)
            offset += round_up(tensor.bytes, alignment)
