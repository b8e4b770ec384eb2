"""Measurements made up for tests of arithmetic: of a device called "synthetic", so that none passes for a real one."""

from typing import Any

from analytic.measurement import Device, MeasuredModel, Measurement, Phase
from analytic.models import catalog
from analytic.request import Request

SYNTHETIC = Device(kind="cuda", name="synthetic", capability=(9, 0), total_bytes=80 * 2**30, sms=132)
"""A GPU that nobody makes."""


def made_up(
    model: str = "llama-2-7b",
    *,
    id: str = "made-up",
    request: Request | None = None,
    device: Device = SYNTHETIC,
    twin_layers: int | None = None,
    status: Any = "ok",
    weights_are: Any = "sparse",
    phase: Any = "prefill",
    software: dict[str, str | None] | None = None,
    **figures: Any,
) -> Measurement:
    """A measurement of a catalogue model with one phase of serving.

    Keyword figures are ``weights``, ``state``, ``retained``, ``allocated``, ``reserved``, ``device_bytes`` and
    ``load_peak`` in bytes; what is left out is None.
    """
    whole = catalog.load(model)
    serving = Phase(
        name=phase,
        seconds=1.0,
        max_allocated_bytes=figures.get("allocated"),
        reserved_bytes=figures.get("reserved"),
        max_reserved_bytes=figures.get("reserved"),
        device_used_bytes=figures.get("device_bytes"),
        sequence_state_bytes=figures.get("state"),
    )
    return Measurement(
        id=id,
        created_at="2026-01-01T00:00:00+00:00",
        status=status,
        model=MeasuredModel(
            id=whole.id,
            source="catalog",
            architecture=whole.architecture,
            parameters=whole.parameters,
            config=whole.config,
            weights=weights_are,
            twin_layers=twin_layers,
        ),
        request=request or Request(dtype="bfloat16", prompt_tokens=128, output_tokens=1),
        device=device,
        software=software or {"torch": "2.13.0"},
        phases=(Phase(name="load", seconds=1.0, max_allocated_bytes=figures.get("load_peak")), serving),
        retained_bytes=figures.get("retained"),
        weights_by_format={"bfloat16": figures["weights"]} if "weights" in figures else {},
    )
