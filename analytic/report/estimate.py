"""An estimate as JSON; what prints it and what makes its report are imported when they are asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from analytic.estimator import NOT_MODELED, Estimate
from analytic.report import SCHEMA_VERSION

if TYPE_CHECKING:
    from rich.console import Console

    from analytic.ledger import Ledger
    from analytic.quantity import Quantity
    from analytic.report.parts import Report


def text(answer: Estimate, console: Console) -> None:
    """Assumptions and verdict, the ledger of the fullest GPU, then what would help and what to know."""
    from analytic.report.estimate_text import print_estimate

    print_estimate(answer, console)


def report(answer: Estimate) -> Report:
    """The verdict, the ledger against the capacity, what else would fit, and the way from the rule of thumb."""
    from analytic.report.estimate_report import report_of

    return report_of(answer)


def document(answer: Estimate) -> dict[str, Any]:
    """``ullage estimate --json``."""
    model = answer.model
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": model.id,
            "source": model.source,
            "revision": model.revision,
            "architecture": model.architecture,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
        },
        "request": _request(answer),
        "per_gpu": [_gpu(answer, row) for row in answer.ledgers],
        "sequence_state_bytes_per_token": answer.sequence_state_bytes_per_token,
        "weights": {
            "by_format": answer.weights.by_format,
            "by_role": answer.weights.by_role,
            "unconverted": answer.weights.unconverted,
        },
        "verdict": {
            "fits": answer.fits,
            "certain": answer.is_certain,
            "gpus_needed": answer.gpus_needed,
            "short_by_bytes": answer.short_by_bytes,
        },
        "engine": {"name": answer.engine.NAME, "version": answer.engine.VERSION, "ignored": list(answer.ignored)}
        | answer.details,
        "capacity": {"max_sequences": answer.max_sequences, "max_tokens": answer.max_tokens},
        "levers": [asdict(lever) for lever in answer.levers] if answer.fits is False else [],
        "rule_of_thumb": asdict(answer.rule_of_thumb),
        "warnings": list(answer.warnings),
        "not_modeled": [*NOT_MODELED, *answer.engine.NOT_MODELED],
        "calibration": answer.calibrated_with,
    }


def _request(answer: Estimate) -> dict[str, Any]:
    degrees = answer.asked.degrees
    resolved = {
        "dtype": answer.dtype,
        "compute_dtype": answer.request.compute_dtype or answer.dtype,
        "tensor_parallel_size": degrees.tensor,
        "pipeline_parallel_size": degrees.pipeline,
        "data_parallel_size": degrees.data,
        "gpu": answer.gpu.name if answer.gpu else None,
    }
    if answer.request.engine == "transformers":
        resolved |= {
            "kv_cache_dtype": answer.dtype,
            "gpu_memory_utilization": answer.request.gpu_memory_utilization or 1.0,
        }
    return asdict(answer.request) | asdict(answer.asked.flags) | resolved


def _gpu(answer: Estimate, row: Ledger) -> dict[str, Any]:
    capacity = answer.capacity_bytes
    return {
        "rank": row.rank,
        "layers": None if row.layers is None else list(row.layers),
        "peak": {"phase": row.peak.name, "moment": row.peak.moment},
        "components": {name: _quantity(quantity) for name, quantity in row.components.items()},
        "parts": [asdict(part) for part in row.parts],
        "totals": {
            "allocated": _quantity(row.allocated),
            "reserved": _quantity(row.reserved),
            "device": _quantity(row.device),
        },
        "load_peak": _quantity(row.load_peak),
        "uncounted": _quantity(row.uncounted),
        "capacity_bytes": capacity,
        "fits": None if capacity is None else row.charged.bytes <= capacity,
        "headroom_bytes": None if capacity is None else capacity - row.charged.bytes,
    }


def _quantity(quantity: Quantity) -> dict[str, Any]:
    return {
        "bytes": quantity.bytes,
        "low_bytes": quantity.low_bytes,
        "high_bytes": quantity.high_bytes,
        "basis": quantity.basis,
    }
