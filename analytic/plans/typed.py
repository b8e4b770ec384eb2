"""A plan from what was typed: names of GPUs, lists of numbers and formats."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analytic.asking import is_serve_line
from analytic.errors import UsageError
from analytic.estimator import split_flags
from analytic.hardware import Gpu, find_gpu, gpus
from analytic.models.resolve import resolve
from analytic.plans.options import Plan
from analytic.plans.plan import plan
from analytic.plans.prices import read_prices
from analytic.plans.question import CONCURRENCIES, CONTEXTS, COUNTS, Question, every_format
from analytic.quantity import parse_tokens

KINDS = ("data-centre", "workstation", "consumer", "laptop", "mig")
_USUAL_KINDS = ("data-centre", "workstation", "consumer")

_PUBLISHED = "published"
"""What a model's own format is called in ``--formats``."""

_VARIED = {
    "batch_size": "--target-concurrency",
    "prompt_tokens": "--target-context",
    "max_model_len": "--target-context",
    "ctx_size": "--target-context",
}
"""Flags of an estimate, and those of a plan that take their place."""

LONGEST_LIST = 64
"""Entries of a list that may be asked for."""


def plan_asked(
    model: str,
    *,
    revision: str | None,
    gpu: tuple[str, ...],
    gpus: str | None,
    formats: str | None,
    target_context: str,
    target_concurrency: int,
    contexts: str | None,
    concurrencies: str | None,
    node_gpus: int,
    prices: Path | None,
    serving: Mapping[str, Any],
) -> Plan:
    """``ullage plan``; the arguments are its flags.

    Raises:
        UllageError: what is unknown or contradictory, by name.
    """
    if is_serve_line(model):
        raise UsageError("a plan takes a model, not a whole line", hint="give the line to ullage estimate or check")
    given = dict(serving)
    for name, instead in _VARIED.items():
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} is what a plan varies", hint=f"give {instead}")
    if "quantization" in given:
        raise UsageError("--quantization is what a plan varies", hint="give --formats")
    question = Question(
        target_context=parse_tokens(target_context, what="--target-context"),
        target_concurrency=target_concurrency,
        output_tokens=given.pop("output_tokens", Question().output_tokens),
        contexts=_numbers(contexts, "--contexts") or CONTEXTS,
        concurrencies=_numbers(concurrencies, "--concurrencies") or CONCURRENCIES,
        counts=_numbers(gpus, "--gpus") or COUNTS,
        formats=tuple(_formats(formats)) if formats else (),
        node_gpus=node_gpus,
    )
    request, flags = split_flags(given)
    return plan(
        resolve(model, revision=revision),
        request,
        gpus=tuple(dict.fromkeys(_gpus(gpu))),
        question=question,
        flags=flags,
        prices=read_prices(prices) if prices else None,
    )


def _gpus(names: tuple[str, ...]) -> Iterator[Gpu]:
    for name in names or _USUAL_KINDS:
        if name == "all":
            yield from gpus()
        elif name in KINDS:
            yield from (gpu for gpu in gpus() if gpu.kind == name)
        elif ":" in name:
            raise UsageError(f"--gpu {name}: a plan takes kinds of GPU", hint="say how many with --gpus")
        else:
            yield find_gpu(name)


def _formats(text: str) -> Iterator[str | None]:
    for name in _split(text, "--formats"):
        if name == "all":
            yield from every_format()
        else:
            yield None if name == _PUBLISHED else name


def _numbers(text: str | None, what: str) -> tuple[int, ...]:
    return () if text is None else tuple(parse_tokens(part, what=what) for part in _split(text, what))


def _split(text: str, what: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(parts) > LONGEST_LIST:
        raise UsageError(f"{what}: {text!r} is no list of up to {LONGEST_LIST}", hint="separate entries by commas")
    return parts
