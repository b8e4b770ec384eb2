"""Peaks of a real ``generate`` on the CPU, and what was live at them: prefill and the first decode step, apart."""

import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from profiler.live_bytes import LiveBytes, LiveStorage, cache_storages


@dataclass(slots=True)
class Peak:
    """The peak of one forward: live bytes without weights, and the cache that does not count among the activations."""

    live_bytes: int = 0
    cache_bytes: int = 0
    live: list[LiveStorage] = field(default_factory=list)
    by_module: dict[str, "Peak"] = field(default_factory=dict)
    """The same peak within each module name (``self_attn``, ``mlp``, ``lm_head``, …); only when explaining."""

    @property
    def activation_bytes(self) -> int:
        return self.live_bytes - self.cache_bytes

    def table(self, least_bytes: int = 0) -> str:
        """The live set at the peak, largest first, equal rows together."""
        rows = Counter((s.storage_bytes, s.shape, s.dtype, s.op, s.where) for s in self.live)
        lines = [
            f"{count} x {row[0]:>10,} {row[2]:9} {row[1]!s:28} {row[3]:36} {row[4]}"
            for row, count in sorted(rows.items(), key=lambda item: -item[0][0])
            if row[0] >= least_bytes
        ]
        return "\n".join([f"activations {self.activation_bytes:,} cache {self.cache_bytes:,}", *lines])


def _caller() -> str:
    """Innermost frame inside transformers: file:line."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/transformers/" in name:
            return f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


class ExplainedBytes(LiveBytes):
    """Live bytes beside the cache, as a peak for each forward; ``enter`` starts a new one.

    A prefill's activations are what its peak holds beyond the cache that it leaves behind, a decode step's what is live
    beside the cache of that moment.
    """

    def __init__(self, resident: Iterator[torch.Tensor], cache: Callable[[], Any], *, explain: bool = False) -> None:
        super().__init__(resident)
        self._cache = cache
        self._explain = explain
        self.peaks: list[Peak] = []
        self.modules: list[str] = []

    def enter(self) -> None:
        if len(self.peaks) == 1:
            left_behind = sum(cache_storages(self._cache()).values())
            for peak in (self.peaks[0], *self.peaks[0].by_module.values()):
                peak.cache_bytes = left_behind
        self.peaks.append(Peak())

    def born(self, storage_bytes: int, tensor: torch.Tensor, op: str) -> LiveStorage:
        where = _caller() if self._explain else ""
        return LiveStorage(storage_bytes, tuple(tensor.shape), str(tensor.dtype)[6:], op, where)

    def look(self) -> None:
        if not self.peaks:
            return
        peak = self.peaks[-1]
        self._raise_peak(peak)
        if self._explain:
            self._raise_peak(peak.by_module.setdefault(self.modules[-1] if self.modules else "generate", Peak()))

    def _raise_peak(self, peak: Peak) -> None:
        if self.live_bytes <= peak.activation_bytes:
            return
        is_decode = len(self.peaks) > 1
        cached = cache_storages(self._cache()).keys() & self.live.keys() if is_decode else set()
        cache_bytes = sum(self.live[key].storage_bytes for key in cached)
        if self.live_bytes - cache_bytes > peak.activation_bytes:
            peak.live_bytes = self.live_bytes
            peak.cache_bytes = cache_bytes
            if self._explain:
                peak.live = [live for key, live in self.live.items() if key not in cached]


@contextmanager
def _peaks_of(model: torch.nn.Module, mode: ExplainedBytes) -> Iterator[None]:
    """The second and later forwards of ``model`` each start a phase of their own."""
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            mode.enter()

    handles = [model.register_forward_pre_hook(begin)]
    for name, module in model.named_modules():
        within = _block_part(name)
        handles.append(module.register_forward_pre_hook(lambda *_, within=within: mode.modules.append(within)))
        handles.append(module.register_forward_hook(lambda *_: mode.modules.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _block_part(name: str) -> str:
    """``model.layers.1.self_attn.q_proj`` is part of ``self_attn``; what is outside the layers keeps its name."""
    match = re.search(r"\.\d+(?:\.([^.]+))?", name)
    return (match[1] or "layer") if match else (name or "model")


def measure(
    model: Any, *, batch_size: int, prompt_tokens: int, padded: bool = False, explain: bool = False
) -> tuple[Peak, Peak]:
    """Peaks of prefill (``prompt_tokens``) and of the first decode step (context ``prompt_tokens + 1``)."""
    from transformers import DynamicCache

    held: list[Any] = []
    make_cache = DynamicCache.__init__

    def remember(self: Any, *args: Any, **kwargs: Any) -> None:
        make_cache(self, *args, **kwargs)
        held.append(weakref.ref(self))

    ids = torch.randint(3, model.config.get_text_config().vocab_size, (batch_size, prompt_tokens))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, : prompt_tokens // 3] = 0
    tensors = [*model.parameters(), *model.buffers()]
    mode = ExplainedBytes(iter(tensors), lambda: held[-1]() if held else None, explain=explain)
    for tensor in (ids, mask):
        mode.follow(tensor, "input")
    DynamicCache.__init__ = remember
    try:
        with torch.no_grad(), _peaks_of(model, mode), mode:
            mode.enter()
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
    finally:
        DynamicCache.__init__ = make_cache
    prefill, decode = mode.peaks
    return prefill, decode
