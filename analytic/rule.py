"""The classic six-step rule of thumb, with its quantisation step the right way up."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from analytic.errors import UsageError

BITS = (32, 16, 8, 4)
"""Precisions that the rule knows, in bits a parameter."""

DEFAULT_OVERHEAD = Fraction(20, 100)
"""The guide's folklore overhead; `ullage calibrate` derives what it really is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The six steps and their result. Decimal gigabytes, as in the guide: 80 GB is 80 × 10⁹ bytes."""

    parameters: int
    bits: int
    base_bytes: int
    """Step 3: parameters × 4 bytes, the model at 32 bits."""
    quantized_bytes: int
    """Step 4: base × bits / 32. The published guide prints base × 32 / bits."""
    overhead_fraction: float
    total_bytes: int
    """Step 5: quantised × (1 + overhead)."""
    gpu_memory_bytes: int
    gpus_needed: int
    """Step 6: total / GPU memory, rounded up."""


def apply_rule(
    parameters: int, *, bits: int, gpu_memory_bytes: int, overhead: Fraction | float | str = DEFAULT_OVERHEAD
) -> Rule:
    """Apply the six steps in exact arithmetic.

    Raises:
        UsageError: a precision that the rule does not know, or a size that is not positive.
    """
    if bits not in BITS:
        raise UsageError(f"bits: {bits} is not a precision of the rule", hint=f"one of {', '.join(map(str, BITS))}")
    for what, value in (("parameters", parameters), ("GPU memory", gpu_memory_bytes)):
        if value <= 0:
            raise UsageError(f"{what}: {value} must be more than 0")
    fraction = _overhead(overhead)
    base = parameters * 4
    quantized = Fraction(base * bits, 32)
    total = ceil(quantized * (1 + fraction))
    return Rule(
        parameters=parameters,
        bits=bits,
        base_bytes=base,
        quantized_bytes=ceil(quantized),
        overhead_fraction=float(fraction),
        total_bytes=total,
        gpu_memory_bytes=gpu_memory_bytes,
        gpus_needed=ceil(Fraction(total, gpu_memory_bytes)),
    )


def published_misprint(parameters: int, *, bits: int) -> int:
    """What the published guide's step 4 gives: base × 32 / bits, so that memory grows as bits shrink."""
    return parameters * 4 * 32 // bits


def _overhead(value: Fraction | float | str) -> Fraction:
    try:
        fraction = Fraction(str(value)) if not isinstance(value, Fraction) else value
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"overhead: {value!r} is not a number", hint="write 0.2 for 20 %") from None
    if not 0 <= fraction <= 10:
        raise UsageError(f"overhead: {value} must lie between 0 and 10", hint="write 0.2 for 20 %")
    return fraction
