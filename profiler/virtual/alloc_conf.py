"""The settings of PyTorch's caching allocator, as PYTORCH_ALLOC_CONF spells them (torch 2.11 to 2.13).

Source: c10/core/AllocatorConfig.{h,cpp} and c10/cuda/CUDAAllocatorConfig.{h,cpp}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analytic.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 2**20

_INTERVALS = 16
"""Powers of two from 1 MiB to 32 GiB that have their own number of divisions (kRoundUpPowerOfTwoIntervals)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocConf:
    """What decides the sizes of blocks and segments; the defaults are PyTorch's."""

    max_split_bytes: int | None = None
    """Blocks from this size on are neither split nor given to smaller requests; None: all may be split."""
    max_non_split_rounding_bytes: int = 20 * MIB
    """How much larger than the request a block may be that is not split."""
    large_segment_bytes: int = 20 * MIB
    """Segment for a request of 1 to 10 MiB; page of the large pool's expandable segments."""
    roundup_divisions: tuple[int, ...] = (0,) * _INTERVALS
    """Divisions of the interval from 2^(20 + i) bytes to its double that requests are rounded up to; 0, 1: none."""
    garbage_collection_fraction: float = 0.0
    """Share of the allowed memory above which old cached segments go; without effect at a memory fraction of 1."""
    memory_fraction: float = 1.0
    """Share of the device's memory that may be reserved (per_process_memory_fraction)."""
    expandable_segments: bool = False
    """One growing range of addresses a stream and pool, in place of a cudaMalloc a segment."""

    @classmethod
    def parse(cls, text: str | None) -> AllocConf:
        """Settings written as in PYTORCH_ALLOC_CONF: ``max_split_size_mb:64,expandable_segments:True``.

        Raises:
            UsageError: a setting that is unknown, malformed or out of its range.
        """
        return _parse(text or "")


def _parse(text: str) -> AllocConf:
    found: dict[str, Any] = {}
    for name, value in _settings(text):
        if name not in _SETTINGS:
            raise UsageError(f"{name}: not an allocator setting", hint=f"known: {', '.join(sorted(_SETTINGS))}")
        field, read = _SETTINGS[name]
        try:
            found[field] = read(value)
        except ValueError as error:
            raise UsageError(f"{name}:{value}: {error}", hint=_HINT) from error
    found.pop(_NO_SIZE, None)
    return _checked(found)


_SETTING = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)")
_HINT = "write it as PYTORCH_ALLOC_CONF does: max_split_size_mb:64,expandable_segments:True"


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each setting; white space counts nowhere (ConfigTokenizer)."""
    text = "".join(text.split())
    at = 0
    while at < len(text):
        match = _SETTING.match(text, at)
        if match is None:
            raise UsageError(f"allocator settings: {text[at : at + 80]!r} is not NAME:VALUE", hint=_HINT)
        yield match[1], match[2]
        at = match.end()


def _checked(found: dict[str, Any]) -> AllocConf:
    """The large segment bounds two other settings from below, and is the default of one (parseArgs)."""
    segment = found.get("large_segment_bytes", AllocConf().large_segment_bytes)
    if segment <= 10 * MIB:
        raise UsageError("large_segment_size_mb: must be more than 10", hint=_HINT)
    for name, field in _AT_LEAST_A_SEGMENT.items():
        if found.get(field, segment) < segment:
            raise UsageError(f"{name}: must be at least {segment // MIB}, the large segment", hint=_HINT)
    return AllocConf(**({"max_non_split_rounding_bytes": segment} | found))


_AT_LEAST_A_SEGMENT = {
    "max_split_size_mb": "max_split_bytes",
    "max_non_split_rounding_mb": "max_non_split_rounding_bytes",
}


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ValueError("not a whole number")
    return int(text)


def _mebibytes(text: str) -> int:
    return _count(text) * MIB


def _flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError("neither True nor False")
    return text == "True"


def _fraction(text: str) -> float:
    if not re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text):
        raise ValueError("not a number")
    return float(text)


def _threshold(text: str) -> float:
    if not 0 < (value := _fraction(text)) < 1:
        raise ValueError("not between 0 and 1")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := _fraction(text)) <= 1:
        raise ValueError("not from 0 to 1")
    return value


def _power_of_two(text: str) -> int:
    if (value := _count(text)).bit_count() != 1:
        raise ValueError(f"{value} is not a power of two")
    return value


def _only(value: str, reason: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text != value:
            raise ValueError(reason)
        return text

    return read


def _divisions(text: str) -> tuple[int, ...]:
    """``8``, or ``[256:1,512:2,>:8]``: sizes in MiB and their divisions (parseRoundUpPower2Divisions).

    What is below the first size takes its divisions; what lies between two listed sizes takes none; ``>`` is
    everything above the size listed before it, and above 1 MiB if there is none.
    """
    if not text.startswith("["):
        return (_power_of_two(text),) * _INTERVALS
    table = [0] * _INTERVALS
    last, first = 0, True
    for item in filter(None, text[1:-1].split(",")):
        size, _, count = item.partition(":")
        value = 0 if count == "0" else _power_of_two(count)
        if size == ">":
            table[last + 1 :] = [value] * (_INTERVALS - last - 1)
            continue
        last = min(_power_of_two(size).bit_length() - 1, _INTERVALS - 1)
        if first:
            table[:last] = [value] * last
            first = False
        table[last] = value
    return tuple(table)


_NO_SIZE = ""
"""Field of the settings that PyTorch knows and that change no size on the device."""

_SETTINGS: dict[str, tuple[str, Callable[[str], object]]] = {
    "max_split_size_mb": ("max_split_bytes", _mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _mebibytes),
    "large_segment_size_mb": ("large_segment_bytes", _mebibytes),
    "roundup_power2_divisions": ("roundup_divisions", _divisions),
    "garbage_collection_threshold": ("garbage_collection_fraction", _threshold),
    "per_process_memory_fraction": ("memory_fraction", _share),
    "expandable_segments": ("expandable_segments", _flag),
    "backend": (_NO_SIZE, _only("native", "only PyTorch's own allocator (native) is simulated")),
    "throw_on_cudamalloc_oom": (_NO_SIZE, _only("False", "failing before the cache is emptied is not simulated")),
    "release_lock_on_cudamalloc": (_NO_SIZE, _flag),
    "release_lock_on_hipmalloc": (_NO_SIZE, _flag),
    "graph_capture_record_stream_reuse": (_NO_SIZE, _flag),
    "pinned_use_cuda_host_register": (_NO_SIZE, _flag),
    "pinned_use_hip_host_register": (_NO_SIZE, _flag),
    "pinned_use_background_threads": (_NO_SIZE, _flag),
    "pinned_free_catch_all": (_NO_SIZE, _flag),
    "pinned_num_register_threads": (_NO_SIZE, _power_of_two),
    "pinned_reserve_segment_size_mb": (_NO_SIZE, _count),
    "pinned_max_round_threshold_mb": (_NO_SIZE, _count),
    "pinned_max_cached_size_mb": (_NO_SIZE, _count),
}
