"""Bytes with bounds and the ground they stand on, and the sizes that people type."""

import re
from dataclasses import dataclass
from typing import Literal

from analytic.errors import UsageError

Basis = Literal["exact", "measured", "traced", "fitted", "assumed"]

BASES: tuple[Basis, ...] = ("exact", "measured", "traced", "fitted", "assumed")
"""From the firmest ground to the weakest; a sum stands on its weakest part."""

_RANK = {basis: rank for rank, basis in enumerate(BASES)}

GiB = 2**30
"""Bytes of a gibibyte; only reports divide by it."""

ALLOCATION_GRANULARITY_BYTES = 512
"""PyTorch's caching allocator rounds every request up to this (c10/core/AllocatorConfig.h, kMinBlockSize)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """A number of bytes, the interval it is believed to lie in, and why."""

    bytes: int
    low_bytes: int
    high_bytes: int
    basis: Basis

    def __add__(self, other: "Quantity") -> "Quantity":
        return Quantity(
            bytes=self.bytes + other.bytes,
            low_bytes=self.low_bytes + other.low_bytes,
            high_bytes=self.high_bytes + other.high_bytes,
            basis=self.basis if _RANK[self.basis] >= _RANK[other.basis] else other.basis,
        )


def exact(count: int) -> Quantity:
    """``count`` bytes without doubt."""
    return Quantity(bytes=count, low_bytes=count, high_bytes=count, basis="exact")


NOTHING = exact(0)
"""No bytes."""


def bounded(low: int, count: int, high: int, basis: Basis) -> Quantity:
    """``count`` bytes, believed to lie in [``low``, ``high``]."""
    assert low <= count <= high, (low, count, high)
    return Quantity(bytes=count, low_bytes=low, high_bytes=high, basis=basis)


def total(quantities: "list[Quantity] | tuple[Quantity, ...]") -> Quantity:
    """The sum; its basis is the weakest one that contributes bytes."""
    basis: Basis = max((q.basis for q in quantities if q.high_bytes), key=_RANK.__getitem__, default=BASES[0])
    return Quantity(
        bytes=sum(q.bytes for q in quantities),
        low_bytes=sum(q.low_bytes for q in quantities),
        high_bytes=sum(q.high_bytes for q in quantities),
        basis=basis,
    )


def round_up(count: int, multiple: int = ALLOCATION_GRANULARITY_BYTES) -> int:
    """``count`` rounded up to a multiple."""
    return -(-count // multiple) * multiple


# Decimal and binary units of bytes (SI and IEC 80000-13).
_BYTE_UNITS = {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for base, suffix in ((1000, ""), (1000, "b"), (1024, "ib"))
}
# vLLM reads 32k as 32,000 and 32K as 32,768 (vllm/utils/argparse_utils.py, human_readable_int).
_COUNT_UNITS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2, "g": 1000**3, "G": 1024**3}
_PARAMETER_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_NUMBER = re.compile(r"\s*(\d{1,18}(?:[_,]\d{3})*(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str, *, what: str) -> int:
    """``80GB`` (decimal) or ``80GiB`` (binary) as bytes.

    Raises:
        UsageError: ``text`` is no positive size.
    """
    return _parse(text, _BYTE_UNITS, what, "80GiB or 80GB", fold=True)


def parse_tokens(text: str | int, *, what: str) -> int:
    """A number of tokens; ``32k`` is 32,000 and ``32K`` 32,768, as vLLM reads them.

    Raises:
        UsageError: ``text`` is no positive whole number.
    """
    return _parse(str(text), _COUNT_UNITS, what, "2048, 32k (32,000) or 32K (32,768)", fold=False)


def parse_parameters(text: str | int, *, what: str = "parameters") -> int:
    """A number of parameters: ``70B``, ``1.5b``, ``350M`` or the whole number.

    Raises:
        UsageError: ``text`` is no positive number.
    """
    return _parse(str(text), _PARAMETER_UNITS, what, "70B, 350M or 6738415616", fold=True)


_LARGEST = 10**18


def _parse(text: str, units: dict[str, int], what: str, example: str, *, fold: bool) -> int:
    match = _NUMBER.fullmatch(text)
    unit = match[2].lower() if match and fold else match[2] if match else ""
    if match is None or unit not in units:
        raise UsageError(f"{what}: {text!r} is not a size", hint=f"write it like {example}")
    whole, _, fraction = re.sub("[_,]", "", match[1]).partition(".")
    scaled = int(whole + fraction) * units[unit]
    value, remainder = divmod(scaled, int(10 ** len(fraction)))
    if remainder and units[unit] == 1:
        raise UsageError(f"{what}: {text!r} is not a whole number", hint=f"write it like {example}")
    if not 0 < value <= _LARGEST:
        raise UsageError(f"{what}: {text!r} must be more than 0 and at most 10^18", hint=f"write it like {example}")
    return value


def parse_fraction(text: str, *, what: str) -> float:
    """``2%`` or ``0.02`` as 0.02.

    Raises:
        UsageError: ``text`` is no number from 0 on.
    """
    number, percent = (text.strip()[:-1], 100) if text.strip().endswith("%") else (text, 1)
    if not re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", number):
        raise UsageError(f"{what}: {text!r} is not a share", hint="write it like 2% or 0.02")
    return float(number) / percent
