"""Weights as llama.cpp holds them: which tensors of a GGUF file go where, which twice, and which not at all.

After ``load_tensors`` and ``create_tensor`` of llama.cpp 0.5 (``src/llama-model.cpp``, ``src/llama-model-loader.cpp``)
with what they do unasked: no prediction layers. Several GPUs share the layers (``--split-mode layer``). The tests hold
this to the buffers that they make.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from struct import pack, unpack

from analytic.errors import UllageError, UsageError
from analytic.loaded import ALL_LAYERS, Change, Loaded
from analytic.loaded.gguf_file import FileTensor, GgufFile, gguf_file
from analytic.models.geometry import Attention, Geometry, Recurrent
from analytic.models.model import Model
from analytic.quantity import round_up

HOST_ALIGNMENT_BYTES = 32
"""Of tensors in a buffer on the host (ggml/src/ggml-impl.h, TENSOR_ALIGNMENT)."""
LAZY_BYTES = 4 << 30
"""Per-layer embeddings beyond this are read from the mapped file as needed (llama_model_loader::lazy_read::add)."""

REPACKED_ROWS: Mapping[str, int] = {"Q4_0": 8, "Q4_K": 8, "IQ4_NL": 8, "MXFP4": 8}
"""Types of matrices that processors with AVX2 interleave, and what their rows are then a multiple of
(ggml/src/ggml-cpu/repack.cpp, ggml_repack_get_optimal_repack_type; with AVX-512 also Q2_K)."""

_LOOKED_UP = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
"""Of the input, which no setting offloads (src/llama-arch.cpp, LLM_TENSOR_LAYER_INPUT)."""
_WITH_FIRST = ("token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm")
"""Outside the layers, and held with the first (src/models/bloom.cpp, gemma4.cpp)."""
_WITH_OUTPUT = ("output", "output_norm")
"""LLM_TENSOR_LAYER_OUTPUT (src/llama-arch.cpp)."""
_NAMES_OUTPUT_NORM_EMBD = ("lfm2", "lfm2moe")
"""Where ``token_embd_norm`` is the output's (src/llama-arch.cpp, LLM_TENSOR_OUTPUT_NORM_LFM2)."""
_TABLES = ("rope_freqs", "rope_factors_long", "rope_factors_short")
"""In every buffer that holds a layer which rotates by them (src/models/llama.cpp, TENSOR_DUPLICATED)."""
_READ_LAZILY = (("gemma4", "per_layer_token_embd"),)
"""TENSOR_READ_LAZY (src/models/gemma4.cpp)."""
_HEAD_FIRST = ("gemma4",)
"""Where a tied head is made before the embedding, which does not find it there (src/models/gemma4.cpp)."""
_EXPERTS = re.compile(r"^blk\.\d+\.ffn_(up|down|gate|gate_up)_(ch|)exps")
"""What ``--n-cpu-moe`` moves (common/common.h, LLM_FFN_EXPS_REGEX)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """How one of ggml's backends holds weights."""

    alignment_bytes: int
    """A tensor begins at a multiple."""
    row_elements: int = 1
    """Quantised tensors are padded as if their last row had a multiple of so many elements."""
    is_gpu: bool = True
    has_host_buffer: bool = False
    """Whether it pins memory of the host, which then goes before repacking (make_cpu_buft_list)."""
    runs: Callable[[FileTensor, Geometry, bool], bool] = lambda *_: True
    """Whether it multiplies by a weight, or looks rows up in it; else the host keeps it."""
    source: str


def _cuda_runs(tensor: FileTensor, geometry: Geometry, is_lookup: bool) -> bool:
    """ggml_backend_cuda_device_supports_op, as weight_buft_supported asks it."""
    kind = tensor.type.name
    if is_lookup:
        is_whole = tensor.shape[-1] % 256 == 0
        return kind not in ("TQ1_0", "TQ2_0", "NVFP4", "Q8_K") and (is_whole or kind not in ("IQ4_NL", "MXFP4"))
    if tensor.name.endswith(("ssm_conv1d.weight", "shortconv.conv.weight")):
        return tensor.shape[0] % 128 == 0
    if tensor.module == "ssm_a":
        mixers = (mixer for layer in geometry.layers for mixer in (layer.mixer, layer.recurrent))
        return all(_cuda_scans(mixer) for mixer in mixers if isinstance(mixer, Recurrent))
    return kind not in ("TQ1_0", "TQ2_0")


def _cuda_scans(mixer: Recurrent) -> bool:
    """Mamba 1 has a state of each channel, Mamba 2 of each head; a delta net only multiplies by its tensor."""
    state = mixer.state_elements // mixer.inner_size
    if mixer.kind == "mamba":
        return state == 16 and mixer.inner_size % 128 == 0
    return mixer.kind != "mamba2" or (state in (96, 128, 256) and mixer.inner_size // (mixer.heads or 1) % 16 == 0)


BACKENDS: Mapping[str, Backend] = {
    "cuda": Backend(
        alignment_bytes=128,
        row_elements=512,
        has_host_buffer=True,
        runs=_cuda_runs,
        source="ggml/src/ggml-cuda/ggml-cuda.cu: …_buffer_type_get_alignment, …_get_alloc_size (MATRIX_ROW_PADDING)",
    ),
    "rpc": Backend(alignment_bytes=32, source="ggml/src/ggml-rpc/ggml-rpc.cpp: as its server's, here a processor"),
    "cpu": Backend(alignment_bytes=32, is_gpu=False, source="ggml/src/ggml-backend.cpp: built without a GPU's backend"),
}

_GPU, _FILE, _CPU, _REPACK, _PINNED, _LAZY = "GPU", "CPU_Mapped", "CPU", "CPU_REPACK", "pinned", "lazy"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    backend: Backend
    devices: tuple[int | None, ...]
    """The GPU of each layer and of the output; None for the host."""
    gpus: int
    cpu_moe_layers: int
    mmap: bool


def layer_devices(blocks: int, *, gpu_layers: int, tensor_split: tuple[float, ...]) -> tuple[int | None, ...]:
    """The GPU that each of ``blocks`` layers goes to, and the output behind them; None for the host.

    After ``load_tensors`` (src/llama-model.cpp), which compares in single precision: of the last ``gpu_layers``, a
    share that follows ``tensor_split`` (``-ts``) goes to each GPU in turn.

    Raises:
        UsageError: ``tensor_split`` names no GPU, or shares that are none.
    """
    if not tensor_split or min(tensor_split) < 0 or sum(tensor_split) <= 0:
        raise UsageError(f"-ts {','.join(map(str, tensor_split))} is no split among GPUs", hint="a share each: -ts 3,1")
    sums = [_single(share) for share in accumulate(tensor_split, lambda one, two: _single(one + two))]
    splits = [_single(share / sums[-1]) for share in sums]
    first, offloaded = max(blocks + 1 - gpu_layers, 0), min(gpu_layers, blocks + 1)
    return tuple(
        None if layer < first else bisect_right(splits, _single(_single(layer - first) / offloaded))
        for layer in range(blocks + 1)
    )


def _single(number: float) -> float:
    """Rounded to single precision."""
    return float(unpack("f", pack("f", number))[0])


def llamacpp_weights(
    model: Model,
    *,
    dtype: str,
    quantization: str | None,
    gpu_layers: int = ALL_LAYERS,
    cpu_moe_layers: int = 0,
    mmap: bool = True,
    backend: str = "cuda",
    tensor_split: tuple[float, ...] = (1.0,),
) -> tuple[Loaded, ...]:
    """What llama.cpp holds of ``model`` on each GPU, and on the host.

    Args:
        model: read from a GGUF file, or one that llama.cpp's converter knows.
        dtype: of the file before it is quantised; a GGUF file has its own.
        quantization: a mixture (`analytic.formats.gguf_mixtures`); None for the file as it is, or as converted.
        gpu_layers: ``-ngl``: the last so many, the output head being one; 99 is not all of a model of 99 layers.
        cpu_moe_layers: ``--n-cpu-moe``: the first so many keep their experts on the host.
        mmap: as ``--load-mode mmap``, the default but on integrated GPUs; False as ``none``.
        backend: one of `BACKENDS`.
        tensor_split: shares of the GPUs (``-ts``); without it llama.cpp splits by free memory. One GPU's row is
            ``GPU``, several have ``GPU0``, ``GPU1``….

    Raises:
        UllageError: llama.cpp does not load such a model, or where it keeps a tensor is not known.
    """
    file = gguf_file(model, dtype=dtype, quantization=quantization, gpu_layers=gpu_layers)
    settings = _settings(
        file,
        backend=backend,
        gpu_layers=gpu_layers,
        cpu_moe_layers=cpu_moe_layers,
        mmap=mmap,
        tensor_split=tensor_split,
    )
    gpus = gpu_names(len(tensor_split))
    buffers: dict[str, list[FileTensor]] = {}
    held: set[tuple[str, str]] = set()
    left_out: Counter[str] = Counter()
    for tensor, layers in _made(file):
        places = dict.fromkeys(_place(tensor, layer, file, settings) for layer in layers)
        if tensor.layer is not None and tensor.layer >= len(file.geometry.layers):
            left_out[next((place for place in places if place in gpus), "host")] += tensor.bytes
            continue
        for place in places:
            if (place, tensor.name) not in held or (file.architecture in _HEAD_FIRST and place != _FILE):
                buffers.setdefault(place, []).append(tensor)
                held.add((place, tensor.name))
    _require_order(model, buffers.get(_FILE, []))
    on_gpus = {gpu: buffers.pop(gpu, []) for gpu in gpus}
    rows = []
    for gpu, own in on_gpus.items():
        others = [tensor for place in (*buffers, *gpus[: gpus.index(gpu)]) for tensor in {**buffers, **on_gpus}[place]]
        rows.append(_gpu(gpu, own, settings.backend, others, left_out[gpu]))
    return *rows, _host(buffers, left_out["host"])


def gpu_names(count: int) -> tuple[str, ...]:
    """How rows name ``count`` GPUs."""
    return (_GPU,) if count == 1 else tuple(f"{_GPU}{index}" for index in range(count))


def _settings(
    file: GgufFile,
    *,
    backend: str,
    gpu_layers: int,
    cpu_moe_layers: int,
    mmap: bool,
    tensor_split: tuple[float, ...],
) -> _Settings:
    if backend not in BACKENDS:
        raise UsageError(
            f"llama.cpp's backend {backend!r} is not known to ullage", hint=f"one of {', '.join(BACKENDS)}"
        )
    if min(gpu_layers, cpu_moe_layers) < 0:
        raise UsageError(f"-ngl {gpu_layers}, --n-cpu-moe {cpu_moe_layers}: less than 0", hint="-ngl 999 takes all")
    devices = layer_devices(file.blocks, gpu_layers=gpu_layers, tensor_split=tensor_split)
    own = BACKENDS[backend]
    return _Settings(
        backend=own,
        devices=devices if own.is_gpu else (None,) * len(devices),
        gpus=len(tensor_split),
        cpu_moe_layers=cpu_moe_layers,
        mmap=mmap,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A tensor as one layer finds it."""

    tensor: FileTensor
    layer: int | None
    """None for the input, the number of blocks for the output."""
    gpu: int | None
    """None for the host."""
    repacked: bool
    """Whether processors interleave it, which no GPU then reads."""


def placed_tensors(
    file: GgufFile,
    *,
    gpu_layers: int,
    cpu_moe_layers: int,
    backend: str,
    tensor_split: tuple[float, ...],
    mmap: bool = True,
) -> Iterator[Placed]:
    """Every tensor of ``file`` with the layers that read it, and where they find it (see `llamacpp_weights`)."""
    settings = _settings(
        file,
        backend=backend,
        gpu_layers=gpu_layers,
        cpu_moe_layers=cpu_moe_layers,
        mmap=mmap,
        tensor_split=tensor_split,
    )
    names = gpu_names(len(tensor_split))
    for tensor, layers in _made(file):
        for layer in layers:
            place = _place(tensor, layer, file, settings)
            gpu = names.index(place) if place in names else None
            yield Placed(tensor=tensor, layer=layer, gpu=gpu, repacked=place == _REPACK)


def _require_order(model: Model, tensors: list[FileTensor]) -> None:
    """What is mapped goes from the first tensor to the last, whatever lies between."""
    if len(tensors) > 1 and any(tensor.offset is None for tensor in tensors):
        raise UllageError(
            f"how much of {model.id} llama.cpp maps is not known without the file: its tensors may be in any order",
            hint="give the GGUF file itself, on this machine, or a quantisation",
        )


def _made(file: GgufFile) -> Iterator[tuple[FileTensor, tuple[int | None, ...]]]:
    """Every tensor with the layers that it is made for: None for the input, the number of blocks for the output."""
    for tensor in file.tensors:
        if tensor.layer is not None:
            yield tensor, (tensor.layer,)
        elif tensor.module in _TABLES:
            yield tensor, tuple(_rotating(file))
        else:
            yield tensor, (_layer_of(tensor, file),)
    weights = {tensor.name: tensor for tensor in file.tensors}
    if "output.weight" not in weights:
        yield weights["token_embd.weight"], (file.blocks,)


def _layer_of(tensor: FileTensor, file: GgufFile) -> int | None:
    module = tensor.module
    if module in _LOOKED_UP:
        return None
    if module in _WITH_OUTPUT or (module == "token_embd_norm" and file.architecture in _NAMES_OUTPUT_NORM_EMBD):
        return file.blocks
    if module in _WITH_FIRST:
        return 0
    raise UllageError(
        f"where llama.cpp keeps {tensor.name} of {file.architecture} is not known to ullage",
        hint="update ullage, or convert the model again",
    )


def _rotating(file: GgufFile) -> Iterator[int]:
    """Layers that use the rotary tables: of Gemma 4 those without a window."""
    for index, layer in enumerate(file.geometry.layers):
        is_full = isinstance(layer.mixer, Attention) and layer.mixer.window_tokens is None
        if is_full or file.architecture != "gemma4":
            yield index


def _place(tensor: FileTensor, layer: int | None, file: GgufFile, settings: _Settings) -> str:
    """The first buffer type that takes the tensor; pinned memory gives way to the mapped file."""
    backend, is_lookup = settings.backend, layer is None
    gpu = None if layer is None else settings.devices[layer]
    runs = backend.runs(tensor, file.geometry, is_lookup)
    is_moved = layer is not None and layer < settings.cpu_moe_layers and _EXPERTS.match(tensor.name)
    if runs and gpu is not None and not is_moved:
        return gpu_names(settings.gpus)[gpu]
    if (file.architecture, tensor.module) in _READ_LAZILY and tensor.bytes > LAZY_BYTES:
        return _LAZY
    if backend.has_host_buffer and runs:
        return _FILE if settings.mmap else _PINNED
    if not is_lookup and _is_repacked(tensor):
        return _REPACK
    return _FILE if settings.mmap else _CPU


def _is_repacked(tensor: FileTensor) -> bool:
    """Matrices, and the experts' stacks of them (ggml/src/ggml-cpu/repack.cpp, extra_buffer_type::supports_op)."""
    rows = REPACKED_ROWS.get(tensor.type.name)
    is_taken = len(tensor.shape) == (3 if _EXPERTS.match(tensor.name) else 2)
    return rows is not None and is_taken and tensor.shape[-2] % rows == 0


def _gpu(
    place: str, tensors: list[FileTensor], backend: Backend, others: Iterable[FileTensor], left_out: int
) -> Loaded:
    elsewhere = {tensor.name for tensor in others}
    padding = [_row_padding(tensor, backend) for tensor in tensors]
    padded = [tensor.bytes + more for tensor, more in zip(tensors, padding, strict=True)]
    total = sum(round_up(size, backend.alignment_bytes) for size in padded)
    changes = (
        *_again(tensor for tensor in tensors if tensor.name in elsewhere),
        (f"quantised tensors padded to rows of {backend.row_elements} elements", sum(padding)),
        (f"tensors aligned to {backend.alignment_bytes} bytes", total - sum(padded)),
        ("prediction layers, which are not loaded", -left_out),
    )
    return _loaded(place, total, changes)


def _host(buffers: Mapping[str, list[FileTensor]], left_out: int) -> Loaded:
    exact = {place: sum(tensor.bytes for tensor in own) for place, own in buffers.items()}
    sizes = {place: _host_bytes(place, own) for place, own in buffers.items()}
    mapped = sizes.get(_FILE, 0) - exact.get(_FILE, 0)
    tensors = [tensor for own in buffers.values() for tensor in own]
    counts = Counter(tensor.name for tensor in tensors)
    changes = (
        *_again(tensor for tensor in {t.name: t for t in tensors}.values() for _ in range(counts[tensor.name] - 1)),
        ("what lies between them in the mapped file", mapped),
        (f"tensors aligned to {HOST_ALIGNMENT_BYTES} bytes", sum(sizes.values()) - sum(exact.values()) - mapped),
        ("prediction layers, which are not loaded", -left_out),
    )
    return _loaded("host", sum(sizes.values()), changes)


def _host_bytes(place: str, tensors: list[FileTensor]) -> int:
    """Aligned in a buffer of their own; else from the first to the last of each file (get_mapping_range)."""
    if place not in (_FILE, _LAZY):
        return sum(round_up(tensor.bytes, HOST_ALIGNMENT_BYTES) for tensor in tensors)
    ranges: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        begin = tensor.offset or 0
        first, last = ranges.get(tensor.file, (begin, 0))
        ranges[tensor.file] = min(first, begin), max(last, begin + tensor.bytes)
    return sum(last - first for first, last in ranges.values())


def _row_padding(tensor: FileTensor, backend: Backend) -> int:
    """Once a tensor, not once a row."""
    kind = tensor.type
    missing = -tensor.shape[-1] % backend.row_elements if kind.block_elements > 1 else 0
    return missing // kind.block_elements * kind.block_bytes


def _again(tensors: Iterable[FileTensor]) -> Iterator[tuple[str, int]]:
    by_kind: Counter[bool] = Counter()
    for tensor in tensors:
        by_kind[tensor.module in _TABLES] += tensor.bytes
    yield "output head, tied to the embedding, a second time", by_kind[False]
    yield "rotary tables, a second time", by_kind[True]


def _loaded(place: str, size: int, changes: Iterable[tuple[str, int]]) -> Loaded:
    rows = tuple(Change(what=what, bytes=more) for what, more in changes if more)
    return Loaded(place=place, bytes=size, changes=rows)
