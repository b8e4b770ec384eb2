"""The command line: one thin command a question, errors turned into text in one place."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, Token

from analytic.errors import UllageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

app = App(
    name="ullage",
    help="How much GPU memory an LLM needs to be served, and how that is known.",
    help_format="plaintext",
    version=lambda: _version(),
)

DOES_NOT_FIT = 3
"""Exit code of an answer that is no."""


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


_WHOLE = Parameter(converter=_whole)


@app.command
def rule(
    parameters: str,
    /,
    *,
    bits: Annotated[int, _WHOLE] = 16,
    gpu_memory: str = "80GB",
    overhead: str = "0.2",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """The classic six-step rule of thumb, its quantisation step put right.

    Parameters
    ----------
    parameters
        Number of parameters: 70B, 350M, or the whole number.
    bits
        Bits a parameter: 32, 16, 8 or 4.
    gpu_memory
        Memory of one GPU, decimal as in the guide: 80GB.
    overhead
        Assumed overhead as a fraction of the weights.
    json
        Print one JSON document.
    """
    from analytic.quantity import parse_bytes, parse_parameters
    from analytic.rule import apply_rule

    answer = apply_rule(
        parse_parameters(parameters),
        bits=bits,
        gpu_memory_bytes=parse_bytes(gpu_memory, what="--gpu-memory"),
        overhead=overhead,
    )
    if json:
        from analytic.report.document import rule_document

        _print_json(rule_document(answer))
    else:
        from analytic.report.text import print_rule

        _print(print_rule, answer)
    return 0


@app.command
def estimate(
    model: str,
    /,
    *,
    gpu: str | None = None,
    gpu_memory: str | None = None,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    quantization: Literal["bnb-nf4", "bnb-fp4", "bnb-int8", "none"] | None = None,
    double_quant: Annotated[bool, Parameter(negative="")] = False,
    compute_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    batch_size: Annotated[int, _WHOLE] = 1,
    prompt_tokens: str = "2048",
    output_tokens: str = "256",
    padded: Annotated[bool, Parameter(negative="")] = False,
    attention: Literal["sdpa", "eager"] = "sdpa",
    engine: Literal["transformers"] = "transformers",
    pipeline_parallel_size: Annotated[int | None, _WHOLE, Parameter(alias="-pp")] = None,
    gpu_memory_utilization: float = 1.0,
    revision: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
) -> int:
    """Every component of the memory that serving MODEL needs, per GPU, with bounds.

    Parameters
    ----------
    model
        Catalogue name, Hub id, directory, config.json or .safetensors file.
    gpu
        A GPU of `ullage gpus`, and how many: h100-80gb or h100-80gb:2.
    gpu_memory
        A GPU that is not in the table, by its memory: 80GiB.
    dtype
        Dtype of what is not quantised; auto takes the publisher's.
    quantization
        Quantise while loading; none serves a quantised checkpoint dequantised.
    double_quant
        Quantise the 4-bit scales too (bnb_4bit_use_double_quant).
    compute_dtype
        Dtype that 4-bit weights are multiplied in (default: the serving dtype).
    kv_cache_dtype
        Dtype of the KV cache; transformers keeps the model's.
    batch_size
        Sequences at once.
    prompt_tokens
        Prompt of each sequence: 2048, 32k (32,000) or 32K (32,768).
    output_tokens
        New tokens of each sequence.
    padded
        Sequences differ in length, so that the batch needs an attention mask.
    attention
        Attention implementation.
    engine
        Serving engine.
    pipeline_parallel_size
        Split the layers over so many GPUs (the same as --gpu NAME:N).
    gpu_memory_utilization
        Share of the GPU's memory that may be used.
    revision
        Branch, tag or commit of a Hub model.
    json
        Print one JSON document.
    output
        Write the JSON document to this file.
    """
    from analytic.estimator import estimate as ask
    from analytic.quantity import parse_tokens

    answer = ask(
        model,
        gpu=_gpu(gpu, gpu_memory),
        gpus=pipeline_parallel_size,
        revision=revision,
        engine=engine,
        dtype=dtype,
        quantization=quantization,
        double_quant=double_quant,
        compute_dtype=compute_dtype,
        kv_cache_dtype=kv_cache_dtype,
        batch_size=batch_size,
        prompt_tokens=parse_tokens(prompt_tokens, what="--prompt-tokens"),
        output_tokens=parse_tokens(output_tokens, what="--output-tokens"),
        padded=padded,
        attention=attention,
        gpu_memory_utilization=gpu_memory_utilization,
    )
    if json or output is not None:
        from analytic.report.document import estimate_document

        document = estimate_document(answer)
        if output is not None:
            _write_json(document, output)
        if json:
            _print_json(document)
    if not json:
        from analytic.report.text import print_estimate

        _print(print_estimate, answer)
    return DOES_NOT_FIT if answer.fits is False else 0


@app.command
def gpus(*, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """The GPU table: what the driver reports, with a source a row.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from analytic.hardware import gpus as table

    if json:
        from analytic.report.document import table_document

        _print_json(table_document("gpus", table()))
    else:
        from analytic.report.text import print_gpus

        _print(print_gpus, table())
    return 0


@app.command
def models(*, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """The shipped catalogue of models.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from analytic.models.catalog import entries

    if json:
        from analytic.report.document import table_document

        _print_json(table_document("models", entries()))
    else:
        from analytic.report.text import print_models

        _print(print_models, entries())
    return 0


def _version() -> str:
    from importlib.metadata import version

    return version("ullage")


def _gpu(name: str | None, memory: str | None) -> Any:
    if memory is None:
        return name
    if name is not None:
        raise UsageError("--gpu and --gpu-memory contradict each other", hint="give one of them")
    from analytic.hardware import custom_gpu
    from analytic.quantity import parse_bytes

    return custom_gpu(parse_bytes(memory, what="--gpu-memory"))


def _print(render: Callable[[Any, Console], None], answer: object) -> None:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    with _standard_output():
        render(answer, Terminal(highlight=False))


def _print_json(document: dict[str, Any]) -> None:
    from json import dumps

    with _standard_output():
        print(dumps(document, indent=1))


@contextmanager
def _standard_output() -> Iterator[None]:
    """A reader that has seen enough changes no exit code; a full disk is an error."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UllageError(f"standard output: cannot be written: {error.strerror}") from error


def _write_json(document: dict[str, Any], path: str) -> None:
    from json import dumps
    from pathlib import Path

    if not path:
        raise UsageError("--output names no file", hint="write -o estimate.json")
    try:
        Path(path).write_text(dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UllageError(f"{path}: cannot be written: {error.strerror}") from error


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command; a known error is one line and a hint on stderr."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except UllageError as error:
        code = _report(error)
    except CycloptsError as error:
        code = _report(UsageError(str(error).strip().replace("\n", " "), hint="see ullage --help"))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _report(error: UllageError) -> int:
    print(f"ullage: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
