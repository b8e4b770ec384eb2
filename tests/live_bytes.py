"""Live bytes of a real run: what transformers' ``generate`` holds at its peak, storage by storage.

Every tensor storage that an operation returns is followed from birth to death. Parameters and buffers are left out;
what the cache holds at that moment is apart, so that ``Phase.activation_bytes`` is what the closed forms estimate.
"""

import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@dataclass(frozen=True, slots=True)
class LiveStorage:
    """A storage that was live at a peak: its bytes, and the tensor and the operation it was born as."""

    storage_bytes: int
    shape: tuple[int, ...]
    dtype: str
    op: str
    where: str


@dataclass(slots=True)
class Phase:
    """The peak of one forward: live bytes without weights and without the cache as stored at that moment."""

    activation_bytes: int = 0
    cache_bytes: int = 0
    live: list[LiveStorage] = field(default_factory=list)
    by_module: dict[str, "Phase"] = field(default_factory=dict)
    """The same peak within each module name (``self_attn``, ``mlp``, ``lm_head``, …); only when explaining."""

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


class LiveBytes(TorchDispatchMode):
    """Follows storages; ``enter_phase`` starts a new peak without forgetting what is live."""

    def __init__(self, ignored: Iterator[torch.Tensor], cache: Callable[[], Any], *, explain: bool = False) -> None:
        super().__init__()
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        self._cache = cache
        self._explain = explain
        self._live: dict[int, LiveStorage] = {}
        self._live_bytes = 0
        self.phases: list[Phase] = []
        self.modules: list[str] = []

    def enter_phase(self) -> None:
        self.phases.append(Phase())

    def follow(self, tensor: torch.Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live or key in self._ignored or storage.nbytes() == 0:
            return
        where = _caller() if self._explain else ""
        self._live[key] = LiveStorage(storage.nbytes(), tuple(tensor.shape), str(tensor.dtype)[6:], op, where)
        self._live_bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key).storage_bytes

    def _cached(self) -> set[int]:
        layers = getattr(self._cache(), "layers", [])
        held = [value for layer in layers for value in tree_iter(vars(layer)) if isinstance(value, torch.Tensor)]
        return {key for key in (t.untyped_storage()._cdata for t in held) if key in self._live}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.follow(value, str(func))
        self._look()
        return result

    def _look(self) -> None:
        if not self.phases:
            return
        phase = self.phases[-1]
        self._raise_peak(phase)
        if self._explain:
            self._raise_peak(phase.by_module.setdefault(self.modules[-1] if self.modules else "generate", Phase()))

    def _raise_peak(self, phase: Phase) -> None:
        if self._live_bytes <= phase.activation_bytes:
            return
        cached = self._cached()
        cache_bytes = sum(self._live[key].storage_bytes for key in cached)
        if self._live_bytes - cache_bytes > phase.activation_bytes:
            phase.activation_bytes = self._live_bytes - cache_bytes
            phase.cache_bytes = cache_bytes
            if self._explain:
                phase.live = [live for key, live in self._live.items() if key not in cached]


@contextmanager
def _phases_of(model: torch.nn.Module, mode: LiveBytes) -> Iterator[None]:
    """The second and later forwards of ``model`` each start a phase of their own."""
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            mode.enter_phase()

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
) -> tuple[Phase, Phase]:
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
    mode = LiveBytes(iter(tensors), lambda: held[-1]() if held else None, explain=explain)
    for tensor in (ids, mask):
        mode.follow(tensor, "input")
    DynamicCache.__init__ = remember
    try:
        with torch.no_grad(), _phases_of(model, mode), mode:
            mode.enter_phase()
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
    prefill, decode = mode.phases
    return prefill, decode
