"""GPUs as data (``gpus.toml``): what the driver reports, what a context costs, what a precision needs."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from statistics import median_high
from typing import Any

from analytic.errors import UsageError

MIB = 1024**2
_HINT = "run `ullage gpus` for the list, or `ullage estimate --gpu-memory 80GiB` for a GPU that is not in it"
_VENDOR = re.compile(r"^(nvidia|geforce|tesla)+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, or one MIG slice of a GPU."""

    name: str
    """Slug, lower case: ``h100-80gb``, ``rtx-4090-laptop``, ``a100-80gb-3g.40gb``."""
    aliases: tuple[str, ...] = ()
    """Other slugs that mean this row and no other."""
    product: str | None = None
    """Name that the driver reports; two memory sizes of a card can share it."""
    kind: str
    """``data-centre``, ``workstation``, ``consumer``, ``laptop``, ``mig`` or ``custom``."""
    total_bytes: int
    """Memory that nvidia-smi and NVML report, before the driver's own reservation; never the marketing figure."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability; None for a custom GPU."""
    sms: int | None = None
    """Streaming multiprocessors; None where no source was found."""
    bandwidth_bytes_per_s: int | None = None
    """Peak memory bandwidth; None where no source was found, as for every MIG slice."""
    source: str
    """Where the memory was seen, and the rest if elsewhere."""
    kept_low_bytes: int = 0
    """Least of ``total_bytes`` that the driver keeps from CUDA; 0 for a custom GPU, all of whose memory CUDA has."""
    kept_bytes: int = 0
    """What it typically keeps: the median of the reports, the upper of two (newer drivers keep more)."""
    kept_high_bytes: int = 0
    """Most that it keeps; this differs with the driver's version."""
    cuda_source: str = ""
    """Where CUDA's total was seen, or which other GPUs the range comes from; empty for a custom GPU."""

    @property
    def cuda_low_bytes(self) -> int:
        """Least that CUDA reports as this GPU's total (``cudaMemGetInfo``, ``torch.cuda``'s ``total_memory``)."""
        return self.total_bytes - self.kept_high_bytes

    @property
    def cuda_bytes(self) -> int:
        """What CUDA typically reports as this GPU's total; vLLM's budget is a share of it."""
        return self.total_bytes - self.kept_bytes

    @property
    def cuda_high_bytes(self) -> int:
        """Most that CUDA reports as this GPU's total under Linux; under Windows it is ``total_bytes``."""
        return self.total_bytes - self.kept_low_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextRange:
    """Device bytes used less bytes reserved (CUDA context, kernels, library handles): assumed, so a range."""

    low_bytes: int
    """Least that was reported, less the reports' 10 MiB."""
    bytes: int
    """Typical while generating, or the middle of the range."""
    high_bytes: int
    """Most that was reported, plus the reports' 10 MiB."""
    source: str
    """Which reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Precision:
    """A precision that runs as asked only from some compute capability on."""

    name: str
    flag: str
    values: frozenset[str]
    minimum: tuple[int, int]
    otherwise: str


_FP8_WEIGHTS = frozenset({"fp8", "fp8-128x128"})
_FP8_CACHE = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2"})

# Checked in torch 2.13.0 (cuda/__init__.py: is_bf16_supported), bitsandbytes 0.50.2 (backends/cuda/ops.py: the fused
# 4-bit heuristic; diagnostics/cuda.py: has_imma) and transformers 5.23.0 (quantizers/: quantizer_finegrained_fp8.py,
# quantizer_compressed_tensors.py, quantizer_mxfp4.py, quantizer_nvfp4.py).
_PRECISIONS = (
    _Precision(
        name="bfloat16",
        flag="dtype",
        values=frozenset({"bfloat16"}),
        minimum=(8, 0),
        otherwise="torch emulates it and bitsandbytes' fused 4-bit kernel gives way to dequantising from 8 rows on: "
        "slow, weights and cache as large as estimated; float16 runs natively",
    ),
    _Precision(
        name="fp8 weights",
        flag="weight_format",
        values=_FP8_WEIGHTS,
        minimum=(8, 9),
        otherwise="transformers turns them into bfloat16 (fine-grained FP8 on loading, compressed-tensors on the first "
        "forward pass): twice the bytes",
    ),
    _Precision(
        name="mxfp4 weights",
        flag="weight_format",
        values=frozenset({"mxfp4"}),
        minimum=(7, 5),
        otherwise="transformers dequantises the checkpoint to bfloat16 on loading: nearly four times the bytes",
    ),
    _Precision(
        name="nvfp4 weights",
        flag="weight_format",
        values=frozenset({"nvfp4"}),
        minimum=(10, 0),
        otherwise="transformers refuses to load it",
    ),
    _Precision(
        name="int8 weights",
        flag="weight_format",
        values=frozenset({"bnb-int8"}),
        minimum=(7, 5),
        otherwise="there are no int8 tensor cores and bitsandbytes has only its slow 8-bit matmul: bytes unchanged; "
        "bnb-nf4 avoids it",
    ),
    _Precision(
        name="fp8 KV cache",
        flag="kv_cache_dtype",
        values=_FP8_CACHE,
        minimum=(8, 9),
        otherwise="without FP8 instructions an engine converts in software or refuses; a byte an element if it runs",
    ),
)


def _rows(table: str) -> list[dict[str, Any]]:
    """The rows of ``gpus.toml`` or ``contexts.toml``."""
    document = tomllib.loads(files("analytic").joinpath(f"{table}s.toml").read_text("utf-8"))
    return list(document[table])


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _gpu(row: dict[str, Any]) -> Gpu:
    bandwidth = row.get("bandwidth_gb_per_s")
    return Gpu(
        name=row["name"],
        aliases=tuple(row.get("aliases", ())),
        product=row["product"],
        kind=row["kind"],
        total_bytes=row["memory_mib"] * MIB,
        capability=_capability(row["capability"]),
        sms=row.get("sms"),
        bandwidth_bytes_per_s=None if bandwidth is None else round(bandwidth * 10**9),
        source=row["source"],
        **_kept(row),
    )


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of what the driver keeps, from the totals that CUDA was seen to report; none where it was not."""
    kept = sorted((row["memory_mib"] - seen) * MIB for seen in row.get("cuda_mib", ()))
    if not kept:
        return {}
    middle = median_high(kept)
    return {
        "kept_low_bytes": kept[0],
        "kept_bytes": middle,
        "kept_high_bytes": kept[-1],
        "cuda_source": row["cuda_source"],
    }


def kept_like_others(gpu: Gpu, others: Iterable[Gpu]) -> Gpu:
    """The GPU with the range of bytes that the driver keeps on others: those of half to twice its memory.

    What is kept grows far slower than the memory (380 MiB of an RTX 4060 Ti's 8 GiB, 920 MiB of a B300's 269 GiB), so
    bytes are taken over and not shares. A MIG slice is like other slices alone: its parent has paid already.
    """
    alike = [other for other in others if (other.kind == "mig") == (gpu.kind == "mig")]
    half, twice = gpu.total_bytes // 2, gpu.total_bytes * 2
    near = [other for other in alike if half <= other.total_bytes <= twice] or alike
    return replace(
        gpu,
        kept_low_bytes=min(other.kept_low_bytes for other in near),
        kept_bytes=median_high(other.kept_bytes for other in near),
        kept_high_bytes=max(other.kept_high_bytes for other in near),
        cuda_source=f"CUDA's total not seen: the driver keeps what it keeps on {len(near)} other GPUs of the table",
    )


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """Every GPU of the table, in its order."""
    rows = tuple(_gpu(row) for row in _rows("gpu"))
    seen = [row for row in rows if row.cuda_source]
    return tuple(row if row.cuda_source else kept_like_others(row, seen) for row in rows)


def _key(name: str) -> str:
    """What names are compared by: ``NVIDIA GeForce RTX 4090``, ``RTX-4090`` and ``rtx4090`` are one."""
    return _VENDOR.sub("", re.sub(r"[^a-z0-9.]", "", name.lower()))


@lru_cache(maxsize=1)
def _by_key() -> dict[str, tuple[Gpu, ...]]:
    found: dict[str, tuple[Gpu, ...]] = {}
    for gpu in gpus():
        for key in {_key(name) for name in (gpu.name, *gpu.aliases, gpu.product or gpu.name)}:
            found[key] = (*found.get(key, ()), gpu)
    return found


def _names(found: Iterable[Gpu]) -> str:
    return ", ".join(gpu.name for gpu in found)


def _close(name: str) -> str:
    keys = get_close_matches(_key(name), _by_key(), n=5, cutoff=0.5)
    near = dict.fromkeys(gpu for key in keys for gpu in _by_key()[key])
    return f"close: {_names(near)}; " if near else ""


def find_gpu(name: str) -> Gpu:
    """The GPU of a slug, an alias or a driver's product name, in any case; UsageError if none or several."""
    found = _by_key().get(_key(name), ())
    if not found:
        raise UsageError(f"unknown GPU {name!r}", hint=_close(name) + _HINT)
    if len(found) > 1:
        raise UsageError(f"GPU {name!r} comes in several sizes", hint=f"say which: {_names(found)}")
    return found[0]


def parse_gpu(spec: str) -> tuple[Gpu, int]:
    """A GPU and how many, from ``h100-80gb`` or ``h100-80gb:8``."""
    name, colon, count = spec.partition(":")
    if colon and not (count.isascii() and count.isdigit() and int(count) >= 1):
        raise UsageError(f"GPU count {count!r} in {spec!r} is not a number from 1 on", hint="write h100-80gb:8")
    return find_gpu(name), int(count or 1)


def custom_gpu(total_bytes: int) -> Gpu:
    """A GPU of which only the memory is known; CUDA is taken to have all of it."""
    if total_bytes <= 0:
        raise UsageError(f"GPU memory must be positive, not {total_bytes} bytes", hint="pass `--gpu-memory 80GiB`")
    return Gpu(name="custom", kind="custom", total_bytes=total_bytes, source="--gpu-memory")


def _context(row: dict[str, Any]) -> ContextRange:
    return ContextRange(
        low_bytes=row["low_mib"] * MIB,
        bytes=row["typical_mib"] * MIB,
        high_bytes=row["high_mib"] * MIB,
        source=row["source"],
    )


@lru_cache(maxsize=1)
def _contexts() -> dict[str | tuple[int, int] | None, ContextRange]:
    """Context ranges by slug, by capability, and the one for any GPU under None."""
    return {_context_key(row): _context(row) for row in _rows("context")}


def _context_key(row: dict[str, Any]) -> str | tuple[int, int] | None:
    return _capability(row["capability"]) if "capability" in row else row.get("gpu")


def context_range(gpu: Gpu | None) -> ContextRange:
    """Assumed context of a GPU: its own reports, else those of its capability, else all of them."""
    keys = (gpu.name, gpu.capability, None) if gpu else (None,)
    return next(_contexts()[key] for key in keys if key in _contexts())


def precision_warnings(gpu: Gpu, *, dtype: str, weight_format: str | None, kv_cache_dtype: str | None) -> list[str]:
    """What happens to each requested precision that the GPU lacks; nothing is said of an unknown capability."""
    asked = {"dtype": dtype, "weight_format": weight_format, "kv_cache_dtype": kv_cache_dtype}
    return [_warning(gpu, row) for row in _PRECISIONS if asked[row.flag] in row.values and _lacks(gpu, row)]


def _lacks(gpu: Gpu, row: _Precision) -> bool:
    return gpu.capability is not None and gpu.capability < row.minimum


def _warning(gpu: Gpu, row: _Precision) -> str:
    has = ".".join(map(str, gpu.capability or ()))
    needs = ".".join(map(str, row.minimum))
    return f"{row.name}: needs compute capability {needs}, {gpu.name} has {has}; {row.otherwise}"
