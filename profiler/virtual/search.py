"""The largest batch, prompt or output that a virtual GPU survives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from analytic.errors import UllageError
from analytic.measurement import Tried
from analytic.request import LARGEST, Request
from profiler.telling import doing
from profiler.virtual.generate import Loaded, serve
from profiler.virtual.simulate import simulated
from profiler.virtual.target import FINDS, Target


@dataclass(frozen=True, kw_only=True)
class Found:
    """The largest request that survives, and what was tried for it."""

    request: Request
    tried: tuple[Tried, ...] = ()


def search(loaded: Loaded, target: Target, request: Request, find: str) -> Found:
    """Double until a run dies, then halve the distance. That what is smaller survives too is taken for granted.

    Raises:
        UllageError: not even the smallest survives.
    """
    field = FINDS[find]
    limit = _limit(loaded.model.config, request, field)
    tried: list[Tried] = []

    def survives(value: int) -> bool:
        good = max((t.value for t in tried if t.status == "ok"), default=0)
        bad = min((t.value for t in tried if t.status == "oom"), default=None)
        more = most_tries_after(value, good=good, bad=bad, limit=limit)
        doing(f"{field} {value:,}, at most {more} more")
        run = serve(loaded, _with(request, field, value))
        failure = simulated(run.program, target).failure
        tried.append(Tried(value=value, status="oom" if failure else "ok"))
        if failure and failure.phase == "load":
            raise UllageError(
                f"{target.gpu.name}: out of memory while loading, whatever the request",
                hint="a larger GPU, or --quantization bnb-nf4",
            )
        return failure is None

    value = largest(survives, limit=limit)
    if value == 0:
        raise UllageError(
            f"--find {find}: out of memory with {field} 1 on {target.gpu.name}",
            hint="a larger GPU, a smaller request, or --quantization bnb-nf4",
        )
    return Found(request=_with(request, field, value), tried=tuple(tried))


def _with(request: Request, field: str, value: int) -> Request:
    changed: dict[str, Any] = {field: value}
    return replace(request, **changed)


def largest(survives: Callable[[int], bool], *, limit: int) -> int:
    """The largest value up to ``limit`` that survives; 0 where 1 does not."""
    good, bad = 0, 1
    while bad <= limit and survives(bad):
        good, bad = bad, min(2 * bad, limit) if bad < limit else limit + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if survives(middle) else (good, middle)
    return good


def most_tries_after(value: int, *, good: int, bad: int | None, limit: int) -> int:
    """How often `largest` may try again after ``value``, between one that survived and one that died, if one did."""
    if bad is not None:
        return (max(value - good, bad - value) - 1).bit_length()
    if value >= limit:
        return (value - good - 1).bit_length()
    doubled = most_tries_after(min(2 * value, limit), good=value, bad=None, limit=limit)
    return max((value - good - 1).bit_length(), 1 + doubled)


def _limit(config: Any, request: Request, field: str) -> int:
    """A context is no longer than the model's, where it has one."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if field == "batch_size" or not isinstance(context, int):
        return LARGEST[field]
    other = request.output_tokens if field == "prompt_tokens" else request.prompt_tokens
    return max(1, min(LARGEST[field], context - other))
