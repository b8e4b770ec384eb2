"""What a plan is asked: what must fit, and what else is tried."""

from collections.abc import Mapping
from dataclasses import dataclass

from analytic.errors import UsageError
from analytic.formats.registry import presets
from analytic.models.model import Model
from analytic.request import LARGEST
from analytic.weights import QUANTIZATIONS

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288)
"""Tokens of a sequence, prompt and output, that a matrix has by default."""

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Sequences at once that a matrix has by default."""

COUNTS = (1, 2, 4, 8)
"""How many GPUs are tried by default."""

FORMATS: Mapping[str, tuple[str | None, ...]] = {
    "transformers": (None, "bnb-int8", "bnb-nf4"),
    "vllm": (None, "fp8", "w4a16"),
    "llamacpp": (None, "Q8_0", "Q4_K_M"),
}
"""Formats that are tried by default; None is as published."""


_LONGEST = LARGEST["prompt_tokens"] + LARGEST["output_tokens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a plan is asked."""

    target_context: int = 4096
    """Tokens of each sequence, prompt and output, that must fit."""
    target_concurrency: int = 1
    """Sequences at once that must fit."""
    output_tokens: int = 256
    """How many of a sequence's tokens are output."""
    contexts: tuple[int, ...] = CONTEXTS
    concurrencies: tuple[int, ...] = CONCURRENCIES
    counts: tuple[int, ...] = COUNTS
    formats: tuple[str | None, ...] = ()
    """Empty: those that are usual with the engine."""
    node_gpus: int = 8
    """GPUs of a node, over which no layer is split."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, values, most in (
            ("target-context", (self.target_context,), _LONGEST),
            ("target-concurrency", (self.target_concurrency,), LARGEST["batch_size"]),
            ("contexts", self.contexts, _LONGEST),
            ("concurrencies", self.concurrencies, LARGEST["batch_size"]),
            ("gpus", self.counts, 4096),
            ("node-gpus", (self.node_gpus,), 4096),
            ("output-tokens", (self.output_tokens,), LARGEST["output_tokens"]),
        ):
            for value in values:
                if not 1 <= value <= most:
                    raise UsageError(f"--{name}: {value} must lie between 1 and {most:,}")
            if list(values) != sorted(set(values)):
                raise UsageError(f"--{name}: {values} must rise", hint="give each number once, the smallest first")


def every_format() -> tuple[str | None, ...]:
    """As published, and all that ``--quantization`` can make."""
    named = dict.fromkeys(preset.name for preset, _ in presets().values())
    return (None, *QUANTIZATIONS, *named)


def formats_of(model: Model, engine: str, question: Question) -> tuple[str | None, ...]:
    """Those asked for, or the usual ones; a checkpoint that is packed already is taken as it is."""
    if question.formats:
        return question.formats
    return FORMATS[engine] if model.native_format is None and model.source != "gguf" else (None,)
