"""A request on the virtual GPU: load and generate once on fakes, as far as the steps' law needs."""

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from analytic.request import Request
from profiler.live_bytes import cache_in, cache_storages
from profiler.serve import generate
from profiler.telling import reached
from profiler.virtual.attention import scaled_dot_product_attention
from profiler.virtual.bnb import fake_bitsandbytes
from profiler.virtual.device import fake_cuda
from profiler.virtual.load import load
from profiler.virtual.recorder import Recorder
from profiler.virtual.simulate import Program
from profiler.virtual.splice import AGREED, Traced, splice
from profiler.virtual.steps import TRACED_TOKENS, IrregularStepsError, extrapolate
from profiler.virtual.target import Target


@contextmanager
def virtual_gpu(target: Target, request: Request) -> Iterator[Recorder]:
    """Within it everything on ``cuda`` is fake, and recorded; Python's collector rests, as tracing makes no cycles."""
    with ExitStack() as stack:
        gc.disable()
        stack.callback(gc.enable)
        is_quantized = request.quantization not in (None, "none")
        kernels = stack.enter_context(fake_bitsandbytes()) if is_quantized else {}
        stack.enter_context(fake_cuda(target))
        stack.enter_context(torch.no_grad())
        attention = partial(scaled_dot_product_attention, target=target)
        stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        yield stack.enter_context(Recorder(target, kernels))


@dataclass(kw_only=True)
class Loaded:
    """A model on the virtual GPU, and what its loading allocated."""

    model: Any
    recorder: Recorder
    load_end: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a request allocates."""

    program: Program
    sequence_state_bytes: tuple[int, int]
    """Storages of the cache after the prefill, and at the end."""


def load_model(config: Mapping[str, Any], request: Request, recorder: Recorder, *, stored: str) -> Loaded:
    """Load it once; `serve` any number of requests with it."""
    model = load(config, request, stored=stored)
    recorder.name_resident(model)
    return Loaded(model=model, recorder=recorder, load_end=len(recorder.trace.events))


def serve(loaded: Loaded, request: Request, *, traced_tokens: int = TRACED_TOKENS) -> Run:
    """Trace ``request``, its later decode steps by their law.

    A length at which the model does otherwise, such as a sliding window that fills, is traced from a prompt that ends
    just before it, if it lies far from the last traced step.
    """
    if request.output_tokens > traced_tokens:
        try:
            return _extrapolated(loaded, request, traced_tokens)
        except IrregularStepsError:
            pass
    traced, prefilled = _traced(loaded, request, request.output_tokens)
    return _run(loaded, traced, prefilled, extra=0)


_TURNS = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings", "max_position_embeddings")
"""Lengths in a config that a decode step may pass."""

_MARGIN = 2
"""Steps around them that may be otherwise."""


def _turns(config: Any) -> list[int]:
    text = config.get_text_config()
    scaling = getattr(text, "rope_parameters", None) or {}
    told = [getattr(text, name, None) for name in _TURNS] + [scaling.get(name) for name in _TURNS]
    return sorted({length for length in told if isinstance(length, int)})


def _extrapolated(loaded: Loaded, request: Request, traced_tokens: int) -> Run:
    """Trace around the prompt and around every turn, and what lies between by the law of the steps before."""
    turns = [turn for turn in _turns(loaded.model.config) if turn + _MARGIN - request.prompt_tokens >= 0]
    whole: Traced | None = None
    prefilled = extra = 0
    here = request
    while True:
        tokens = traced_tokens
        while turns and turns[0] - _MARGIN <= here.prompt_tokens + tokens:  # so near that it is traced on the way
            tokens = max(tokens, turns.pop(0) + _MARGIN - here.prompt_tokens + traced_tokens)
        traced, state = _traced(loaded, here, min(tokens, here.output_tokens))
        prefilled = prefilled or state
        whole = splice(whole, traced, extra=extra) if whole else traced
        extra = max(0, here.output_tokens - tokens)
        if not extra or not turns or turns[0] - _MARGIN > here.prompt_tokens + here.output_tokens:
            return _run(loaded, whole, prefilled, extra=extra)
        prompt = min(turns[0] - _MARGIN, request.total_tokens - 2) - AGREED
        # the last step that was traced ends otherwise, and `splice` leaves it out
        extra = prompt + AGREED - (here.prompt_tokens + tokens - 2)
        here = replace(here, prompt_tokens=prompt, output_tokens=request.total_tokens - prompt)


def _traced(loaded: Loaded, request: Request, tokens: int) -> tuple[Traced, int]:
    """The first ``tokens`` of ``request``, and the cache's bytes after the prefill."""
    recorder = loaded.recorder
    starts: list[int] = []
    prefilled = 0
    cache: Any = None

    def begin(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal cache, prefilled
        reached(len(starts), tokens, "tokens")
        starts.append(len(recorder.trace.events))
        if len(starts) == 2:
            cache = cache_in(kwargs)
            prefilled = sum(cache_storages(cache).values())

    with recorder.fork(loaded.load_end) as trace, recorder.naming(loaded.model):
        hook = loaded.model.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            out = generate(loaded.model, replace(request, output_tokens=tokens), total_tokens=request.total_tokens)
        finally:
            hook.remove()
        end = len(trace.events)
        cached = cache_storages(cache or out.past_key_values)
        traced = Traced(
            trace=trace.until(end), starts=[*starts, end], cached=[recorder.live[storage] for storage in cached]
        )
        del out, cache
    return traced, prefilled or sum(cached.values())


def _run(loaded: Loaded, traced: Traced, prefilled: int, *, extra: int) -> Run:
    trace = traced.trace
    decode = extrapolate(trace, traced.starts, extra=extra) if extra else None
    cached = (trace.births[n].bytes if decode is None else decode.bytes_at_end(n, trace) for n in traced.cached)
    return Run(
        program=Program(trace=trace, load_end=loaded.load_end, starts=tuple(traced.starts[:-1]), decode=decode),
        sequence_state_bytes=(prefilled, sum(cached)),
    )
