"""The command line that asks again."""

import shlex
from collections.abc import Iterator
from dataclasses import fields

from analytic.compare import gpu_of
from analytic.estimator import Estimate
from analytic.flags import Flags, flag
from analytic.measurement import Measurement
from analytic.request import Request

_WORDS = {True: "on", False: "off"}

_WITH_NEGATIVE = ("enable_prefix_caching",)
"""Flags of which leaving out is not the same as no."""


def command_of(answer: Estimate) -> str | None:
    """``ullage estimate …``; None where the GPU is no row of the table, or constants came from a file."""
    gpu = answer.gpu
    if (gpu is not None and gpu.kind == "custom") or answer.calibrated_with is not None:
        return None
    words = ["ullage", "estimate", answer.model.id]
    if gpu is not None:
        words += ["--gpu", gpu.name if answer.gpus == 1 else f"{gpu.name}:{answer.gpus}"]
    return shlex.join([*words, *_of(answer.request, Request()), *_of(answer.asked.flags, Flags())])


def profile_command(measurement: Measurement) -> str:
    """``ullage profile …``, which measures the same again."""
    device, gpu = measurement.device.kind, gpu_of(measurement.device)
    where = f"virtual:{gpu.name}" if device == "virtual" and gpu else device
    layers = measurement.model.twin_layers
    twin = () if layers is None else ("--twin-layers", str(layers))
    words = ("ullage", "profile", measurement.model.id, "--device", where)
    return shlex.join([*words, *twin, *_of(measurement.request, Request())])


def _of(asked: Request | Flags, default: Request | Flags) -> Iterator[str]:
    """The flags whose values are not the defaults."""
    for field in fields(asked):
        value = getattr(asked, field.name)
        if value == getattr(default, field.name):
            continue
        if field.name == "flash_attn":
            yield from ("--flash-attn", _WORDS[value])
        elif value is True:
            yield flag(field.name)
        elif value is False:
            yield from (f"--no-{flag(field.name)[2:]}",) if field.name in _WITH_NEGATIVE else ()
        else:
            yield from (flag(field.name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
