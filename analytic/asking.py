"""What was asked for: a model and flags, or a whole ``vllm serve …`` line and flags beside it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analytic.errors import UllageError, UsageError
from analytic.flags import flag
from analytic.models.model import Model
from analytic.models.resolve import resolve

if TYPE_CHECKING:
    from analytic.engines.vllm.serve_line import ServeLine

_DTYPES = {"half": "float16", "float": "float32"}
"""vLLM's other names."""

_KERNELS = frozenset(
    ("awq", "awq_marlin", "gptq", "gptq_marlin", "auto_awq", "auto_gptq", "compressed-tensors", "fp8", "mxfp4")
)
"""What ``--quantization`` may say of a checkpoint that is packed: which kernels, not which format."""

_TAKEN = (
    *("kv_cache_dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "tensor_parallel_size"),
    *("pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel", "enforce_eager", "block_size"),
    *("enable_prefix_caching", "kv_cache_memory_bytes"),
)
"""Taken as they are; ``dtype``, ``quantization``, ``revision`` and ``max_model_len`` are read first."""

_HARMLESS = ("tokenizer", "load_format")
"""Without effect on what is counted."""

_USUAL: Mapping[str, bool] = {"enable_chunked_prefill": True}
"""What vLLM does unasked, of options that are not off by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """A resolved model, and flags as fields of `Request` and `Flags`."""

    model: Model
    flags: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What the reader should know of a line: options that were left out of account, defaults that it takes."""
    ignored: tuple[str, ...] = field(default=())
    """Its options that change no memory, as they stand there."""


def is_serve_line(text: str) -> bool:
    """Whether ``text`` is a command line and not the name of a model, or a path with spaces."""
    return len(text.split()) > 1 and not os.path.exists(text)


def ask(model: str, given: Mapping[str, Any], *, revision: str | None = None) -> Asking:
    """Resolve ``model``, which may be a whole line.

    Args:
        model: a catalogue name, Hub id, path, or ``vllm serve …``.
        given: flags beside it, as fields of `Request` and `Flags`.
        revision: branch, tag or commit of a Hub model.

    Raises:
        UllageError: what is unknown, or said twice in different ways, by name.
    """
    if not is_serve_line(model):
        return Asking(model=resolve(model, revision=revision), flags=given)
    from analytic.engines.vllm.serve_line import read_serve_line

    line = read_serve_line(model)
    named = line.options.get("revision")
    if revision is not None and named not in (None, revision):
        raise UsageError(f"--revision {revision} and {named} in the line contradict each other", hint="give it once")
    resolved = resolve(line.model, revision=revision or (str(named) if named else None))
    flags = dict(_flags(line, resolved))
    for name, value in given.items():
        if flags.get(name, value) != value:
            raise UsageError(
                f"{flag(name)} {value} and {flags[name]} in the line contradict each other", hint="give it once"
            )
    merged = {**flags, **given}
    if "prompt_tokens" not in merged and merged["max_model_len"] > 1:
        merged["output_tokens"] = min(merged.get("output_tokens", 256), merged["max_model_len"] - 1)
        merged["prompt_tokens"] = merged["max_model_len"] - merged["output_tokens"]
    return Asking(model=resolved, flags=merged, notes=tuple(_notes(line, resolved)), ignored=line.ignored)


def _flags(line: "ServeLine", model: Model) -> Iterator[tuple[str, Any]]:
    options = line.options
    yield "engine", "vllm"
    yield "max_model_len", _longest(line, model)
    if (dtype := options.get("dtype")) is not None:
        yield "dtype", _DTYPES.get(str(dtype), dtype)
    quantization = options.get("quantization")
    if quantization is not None and not (model.native_format is not None and quantization in _KERNELS):
        yield "quantization", str(quantization)
    for name in _TAKEN:
        if options.get(name) is not None:
            yield name, options[name]


def _longest(line: "ServeLine", model: Model) -> int:
    """Of ``--max-model-len``, which vLLM takes from the config where it is not given."""
    asked = line.options.get("max_model_len")
    if isinstance(asked, int) and asked > 0:
        return asked
    if asked is not None:
        raise UsageError("--max-model-len auto is what an estimate tells", hint="leave it out, or give a number")
    advertised = model.geometry.max_position_embeddings
    if advertised is None:
        raise UllageError(f"{model.id} names no longest context", hint="add --max-model-len to the line")
    return advertised


def _notes(line: "ServeLine", model: Model) -> Iterator[str]:
    if line.options.get("max_model_len") is None:
        longest = model.geometry.max_position_embeddings
        yield f"the line has no --max-model-len: vLLM takes the model's, {longest:,} tokens"
    if line.version is not None:
        yield f"the line is for vLLM {line.version}: modelled is 0.33"
    known = {*_TAKEN, *_HARMLESS, "dtype", "quantization", "revision", "max_model_len"}
    own = {name: value for name, value in line.options.items() if name not in known and value is not None}
    left = [
        flag(name) if value is not False else flag(f"no_{name}")
        for name, value in own.items()
        if value != _USUAL.get(name, False)
    ]
    if left or line.unmodelled:
        yield f"not modelled, and left out of account: {', '.join((*left, *line.unmodelled))}"
    yield from line.notes
