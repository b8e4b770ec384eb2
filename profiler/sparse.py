"""Checkpoints whose weights take no disk: the published names, shapes and dtypes, and a hole for data.

Memory does not depend on the values of the weights. A safetensors file is an 8-byte little-endian length, a JSON
header and the data (github.com/huggingface/safetensors, "Format"); data that was never written reads as zeros, so
`from_pretrained` loads a model of any size from a file of a few megabytes.
"""

import errno
import json
import math
import mmap
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from analytic.errors import UllageError, UsageError
from analytic.models.roles import role_of
from profiler.models import build, published_tensors
from profiler.scratch import scratch_directory

FOLDER_VARIABLE = "ULLAGE_SPARSE_DIR"
"""The environment variable that names the folder for sparse checkpoints in place of the temporary one."""

EMBEDDED_TOKENS = 1024
"""Token ids below this have an embedding other than zero; feed the model no others."""

_STD = 0.02  # initializer_range of most published configs
_SEED = 0
_CHUNK_ELEMENTS = 2**20
_PROBE_BYTES = 16 * 2**20
_SHARD_BYTES = 5 * 10**9
"""Tensors that one file holds. A file is mapped as a whole, and Linux refuses a mapping larger than its memory."""

_USABLE_FREE_FRACTION = 0.95
_ELSEWHERE = f"set {FOLDER_VARIABLE} to a folder on a local disk with sparse files, such as ext4 or xfs"

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
"""As safetensors/src/tensor.rs spells them."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may be that large there (file system, or ulimit -f)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseCheckpoint:
    """A checkpoint on disk, as long as the context that made it lasts."""

    path: Path
    """The directory for from_pretrained: config.json, and safetensors in one file or in several with their index."""
    file_bytes: int
    """Apparent length of the safetensors files: their headers and every tensor."""
    disk_bytes: int
    """What they occupy: their 512-byte blocks (st_blocks) when they were made."""
    seconds: float
    """Time to make it, from the config to the closed files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tensor:
    """A tensor of the file; what neither ``values`` nor ``random_elements`` fills is hole."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: torch.Tensor | None
    """All its values, for a vector."""
    random_elements: int
    """How many leading elements, in row-major order, are drawn at random."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def filled(self, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """The leading values, in pieces."""
        if self.values is not None:
            yield self.values.detach().to(self.dtype)
        for start in range(0, self.random_elements, _CHUNK_ELEMENTS):
            elements = min(_CHUNK_ELEMENTS, self.random_elements - start)
            yield torch.empty(elements).normal_(0, _STD, generator=generator).to(self.dtype)


@contextmanager
def sparse_checkpoint(
    config: Mapping[str, Any], *, dtype: str, folder: Path | None = None
) -> Iterator[SparseCheckpoint]:
    """A checkpoint of a published ``config`` with its weights in ``dtype`` ("float32", "float16", "bfloat16").

    Its directory is made in ``folder``, else in $ULLAGE_SPARSE_DIR, else where temporary files go, and goes with the
    context; what killed processes left behind there goes first.

    Raises:
        UllageError: a quantised config, one that transformers cannot build, or a folder that cannot hold the file.
    """
    _refuse_quantised(config)
    _require_known(dtype)
    with ExitStack() as stack:
        yield _make(config, dtype, folder or _default_folder(), stack)


def keeps_holes(directory: Path) -> bool:
    """Whether a hole in a file of ``directory`` is still one after it was read the way safetensors reads, by mmap.

    On tmpfs it is not: the file takes no space when made, and the memory of every page that is read.
    """
    probe = directory / "probe"
    with probe.open("wb+") as file:
        file.truncate(_PROBE_BYTES)
        with closing(mmap.mmap(file.fileno(), _PROBE_BYTES, access=mmap.ACCESS_READ)) as pages:
            any(pages[start] for start in range(0, _PROBE_BYTES, mmap.PAGESIZE))  # zeros: reads every page
        occupied_bytes = os.fstat(file.fileno()).st_blocks * 512
    probe.unlink()
    return occupied_bytes < _PROBE_BYTES // 2


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    parts = (config, *(part for part in config.values() if isinstance(part, Mapping)))
    native = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if native is not None:
        raise UllageError(
            f"quantization_config: the {native.get('quant_method')!r} format has no sparse checkpoint",
            hint="--quantization none profiles it dequantised",
        )


def _require_known(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise UsageError(f"no sparse checkpoint is stored in {dtype!r}", hint=f"known: {', '.join(_DTYPES)}")


def _default_folder() -> Path:
    try:
        return Path(os.environ.get(FOLDER_VARIABLE) or tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UllageError(f"no temporary folder: {error.strerror}", hint=_ELSEWHERE) from error


def _make(config: Mapping[str, Any], dtype: str, parent: Path, stack: ExitStack) -> SparseCheckpoint:
    """The checkpoint in a directory of its own that goes with ``stack``."""
    start = time.perf_counter()
    model = build(config)
    shards = _shards(_published(model, _DTYPES[dtype]))
    prefixes = [_header(tensors) for tensors in shards]
    file_bytes = sum(map(len, prefixes)) + sum(t.bytes for tensors in shards for t in tensors)
    with _explained(parent, f"a sparse checkpoint of {file_bytes:,} bytes"):
        directory = stack.enter_context(scratch_directory("sparse", parent))
        _require_space(directory, file_bytes)
        (directory / "config.json").write_text(json.dumps(_config_json(config, model, dtype)), encoding="utf-8")
        files = _write_all(directory, prefixes, shards)
        disk_bytes = sum(file.stat().st_blocks for file in files) * 512
    seconds = time.perf_counter() - start
    return SparseCheckpoint(path=directory, file_bytes=file_bytes, disk_bytes=disk_bytes, seconds=seconds)


def _config_json(config: Mapping[str, Any], model: Any, dtype: str) -> dict[str, Any]:
    """``config`` as published, for the class that was built: without the remote code that its auto_map points to."""
    plain = {k: v for k, v in config.items() if k not in ("auto_map", "torch_dtype", "quantization_config")}
    return {**plain, "model_type": model.config.model_type, "architectures": [type(model).__name__], "dtype": dtype}


def _published(model: Any, stored: torch.dtype) -> list[_Tensor]:
    """What a published checkpoint of ``model`` holds, ties once.

    The widest dtypes come first, so that every tensor starts at a multiple of its element's size.
    """
    _initialise_vectors(model)
    random = _random_elements(model)
    published = published_tensors(model)
    _require_all(random, model, published)
    tensors = [_tensor(name, t, stored, random.get(id(t), 0)) for name, t in published.items()]
    return sorted(tensors, key=lambda t: -t.dtype.itemsize)


def _tensor(name: str, tensor: torch.Tensor, stored: torch.dtype, random_elements: int) -> _Tensor:
    dtype = stored if tensor.dtype == torch.bfloat16 else tensor.dtype
    if dtype not in _SAFETENSORS_NAMES:
        raise UllageError(f"{name}: safetensors has no name for {dtype}", hint="this model has no sparse checkpoint")
    return _Tensor(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype,
        values=tensor if tensor.device.type == "cpu" else None,
        random_elements=random_elements,
    )


def _initialise_vectors(model: Any) -> None:
    """Give norms, biases, scales and everything else of one dimension the values a new model has; the rest stays meta.

    The model's own rules know that Gemma's norms multiply by one plus their weight, and that a layer scale of zero
    would silence every layer after it.
    """
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if parameter.ndim < 2:
                setattr(module, name, torch.nn.Parameter(_zeros(parameter), requires_grad=False))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            if buffer.ndim < 2:
                setattr(module, name, _zeros(buffer))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        model.initialize_weights()


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _random_elements(model: Any) -> dict[int, int]:
    """How many elements are random, by the identity of a parameter: first rows of the embedding, all of a router."""
    embedding = model.get_input_embeddings().weight
    routers = {id(p): p.numel() for name, p in model.named_parameters() if p.ndim > 1 and _is_router(name, model)}
    return {id(embedding): min(EMBEDDED_TOKENS, embedding.shape[0]) * embedding.shape[1], **routers}


def _is_router(name: str, model: Any) -> bool:
    owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
    return role_of(name, module=owner, parameter=True) == "router"


def _require_all(random: dict[int, int], model: Any, published: dict[str, torch.Tensor]) -> None:
    """Refuse a model whose embedding or routers are stored otherwise than they are held: zeros would route nothing."""
    lost = random.keys() - {id(t) for t in published.values()}
    if lost:
        names = [name for name, t in model.named_parameters() if id(t) in lost]
        raise UllageError(
            f"transformers {transformers.__version__} converts {', '.join(names[:3])} on loading: not modelled",
            hint="this model has no sparse checkpoint",
        )


def _shards(tensors: list[_Tensor]) -> list[list[_Tensor]]:
    """``tensors`` in files of `_SHARD_BYTES`, larger only for a single tensor."""
    shards: list[list[_Tensor]] = [[]]
    held_bytes = 0
    for tensor in tensors:
        if shards[-1] and held_bytes + tensor.bytes > _SHARD_BYTES:
            shards.append([])
            held_bytes = 0
        shards[-1].append(tensor)
        held_bytes += tensor.bytes
    return shards


def _header(tensors: list[_Tensor]) -> bytes:
    """What stands before the data: the length of the JSON and the JSON, padded with spaces to a multiple of eight."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for t in tensors:
        begin, end = end, end + t.bytes
        rows[t.name] = {"dtype": _SAFETENSORS_NAMES[t.dtype], "shape": t.shape, "data_offsets": (begin, end)}
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_all(directory: Path, prefixes: list[bytes], shards: list[list[_Tensor]]) -> list[Path]:
    """Named as published checkpoints name them; several files have an index."""
    generator = torch.Generator().manual_seed(_SEED)
    count = len(shards)
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = [directory / name for name in (names if count > 1 else ["model.safetensors"])]
    for file, prefix, tensors in zip(files, prefixes, shards, strict=True):
        _write(file, prefix, tensors, generator)
    if count > 1:
        total_bytes = sum(t.bytes for tensors in shards for t in tensors)
        placed = {t.name: file.name for file, tensors in zip(files, shards, strict=True) for t in tensors}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": placed}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files


def _write(path: Path, prefix: bytes, tensors: list[_Tensor], generator: torch.Generator) -> None:
    begin = len(prefix)
    with path.open("wb") as file:
        file.write(prefix)
        file.truncate(begin + sum(t.bytes for t in tensors))
        for t in tensors:
            file.seek(begin)
            for values in t.filled(generator):
                file.write(values.reshape(-1).view(torch.uint8).numpy().tobytes())
            begin += t.bytes


@contextmanager
def _explained(parent: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise UllageError(f"{parent}: cannot hold {what}: {reason}", hint=_ELSEWHERE) from error


def _require_space(directory: Path, needed_bytes: int) -> None:
    """Refuse, before the disk fills, a file that would be written in full and does not fit."""
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes <= _USABLE_FREE_FRACTION * free_bytes:
        return
    has_room_to_try = free_bytes > 2 * _PROBE_BYTES  # reading a hole of a full tmpfs is a bus error
    if not (has_room_to_try and keeps_holes(directory)):
        reason = "files have no holes here" if has_room_to_try else "the file system is full"
        raise UllageError(
            f"{directory.parent}: {reason}, and {needed_bytes:,} bytes do not fit into {free_bytes:,} free bytes",
            hint=_ELSEWHERE,
        )
