"""What is said of an estimate in words, wherever it is shown."""

from analytic.estimator import Estimate, Lever
from analytic.ledger import Ledger
from analytic.quantity import GiB, Quantity
from analytic.report import Status


def assumptions(answer: Estimate) -> str:
    """Model, precision, engine and workload."""
    request, model = answer.request, answer.model
    quantized = request.weight_format not in (None, "none")
    precision = f"{request.weight_format} and {answer.dtype}" if quantized else answer.dtype
    if model.native_format and request.weight_format is None:
        precision = f"{model.native_format} as published, {answer.dtype}"
    return (
        f"{model.id} ({model.parameters / 1e9:,.2f} B) in {precision}, {answer.engine.setting(answer.asked)}, "
        f"{request.batch_size:,} sequence{'s' * (request.batch_size > 1)} of "
        f"{request.prompt_tokens:,} + {request.output_tokens:,} tokens"
    )


def verdict(answer: Estimate) -> str:
    """What it needs and whether that fits, in lower case."""
    device = gib(answer.fullest.device.bytes)
    if answer.gpu is None:
        return f"needs {device} GiB on {'one GPU' if answer.gpus == 1 else f'each of {answer.gpus} GPUs at most'}."
    where = f"{answer.gpus} × {answer.gpu.name} ({gib(answer.capacity_bytes or 0)} GiB usable each)"
    certain = "" if answer.is_certain else ", within the bounds of error"
    if answer.fits:
        spare = (answer.capacity_bytes or 0) - answer.fullest.charged.bytes
        return f"fits on {where} with {gib(spare)} GiB to spare{certain}."
    needed = f"{answer.gpus_needed} of them hold it" if answer.gpus_needed else "no number of them holds it"
    return f"does not fit on {where}: {gib(answer.short_by_bytes or 0)} GiB short{certain}; {needed}."


def sentence(words: str) -> str:
    """With a capital, and nothing else changed."""
    return words[:1].upper() + words[1:]


def status_of(answer: Estimate) -> Status:
    """Whether it fits: at both bounds, within them, or not."""
    return "tight" if not answer.is_certain else "fits" if answer.fits else "no"


def lever_words(lever: Lever) -> str:
    """A change, and what it would do."""
    return f"{lever.change}: {gib(lever.device_bytes)} GiB, {'fits' if lever.fits else 'still too much'}"


def most(answer: Estimate) -> str:
    """The largest batch and the longest context that fit."""
    return (
        f"At most {answer.max_sequences:,} such sequences, or {answer.max_tokens:,} tokens in each of "
        f"{answer.request.batch_size:,}."
    )


def cells(quantity: Quantity) -> tuple[str, str, str, str]:
    """GiB, the bounds where they differ, and the basis."""
    exact = quantity.low_bytes == quantity.high_bytes
    low, high = ("", "") if exact else (gib(quantity.low_bytes), gib(quantity.high_bytes))
    return gib(quantity.bytes), low, high, quantity.basis


def split_cells(row: Ledger) -> tuple[str, str, str]:
    """A GPU's layers, and its weights and all of it in GiB."""
    layers = "all" if row.layers is None else f"{row.layers[0]}–{row.layers[1] - 1}"
    return layers, gib(row.components["weights"].bytes), gib(row.device.bytes)


def gib(count: int) -> str:
    """In GiB, without the unit."""
    return f"{count / GiB:,.2f}"
