"""Follows every storage on the virtual GPU from birth to death, as the caching allocator would be asked for it."""

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from analytic.errors import UllageError
from profiler.virtual.hidden import Hidden, hidden_allocations
from profiler.virtual.target import Target
from profiler.virtual.values import UnknownValueError, Values

_OWN_KERNELS = frozenset({"bitsandbytes"})


class Sized(NamedTuple):
    """A size that is not affine in the length, as a law."""

    key: Hashable
    """Equal laws have equal keys."""
    after: Callable[[int], int]
    """Bytes when there are so many more tokens."""


_law: ContextVar[Sized | None] = ContextVar("law", default=None)
"""Of the tensor that is made."""


def sized(law: Sized) -> torch.Tensor:
    """A scratch tensor of a kernel, of the bytes that ``law`` tells now; even of none, as there may be some later."""
    token = _law.set(law)
    try:
        return torch.empty(law.after(0), dtype=torch.uint8, device="cuda")
    finally:
        _law.reset(token)


Purpose = Literal["result", "scratch", "library"]
"""A result of an operation; what its kernel gives back at once; or what a library keeps for good."""


class Birth(NamedTuple):
    """An allocation."""

    bytes: int
    op: str
    """The operation whose result it is, or the library that took it."""
    module: str
    """Name of the innermost module that ran, or of the parameter that it became."""
    shape: tuple[int, ...]
    dtype: str
    purpose: Purpose = "result"
    law: Sized | None = None
    """Where its size is not affine in the length."""


@dataclass(slots=True)
class Trace:
    """What was allocated and freed, in order."""

    births: list[Birth] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    """``n``: birth number n; ``~n``: its death."""

    def until(self, end: int) -> "Trace":
        """The trace up to an event."""
        return Trace(self.births, self.events[:end])

    def alive(self, end: int) -> set[int]:
        """Numbers of the births that live before event ``end``."""
        events = self.events[:end]
        return {event for event in events if event >= 0} - {~event for event in events if event < 0}


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what operations on fake CUDA tensors allocate, and answers what depends on values that are known."""

    def __init__(self, target: Target, kernels: Mapping[str, Callable[..., Any]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.live: dict[int, int] = {}
        """Birth number by the address of the storage."""
        self.unknown: set[str] = set()
        """What kernels take besides, of which no size is known."""
        self._target = target
        self._kernels = kernels or {}
        self._values = Values()
        self._deaths: dict[int, weakref.ref[Any]] = {}
        self._libraries: set[str] = set()
        self._modules: list[str] = []
        self._depth = 0
        """Kernels of libraries that run."""

    @contextmanager
    def fork(self, end: int) -> Iterator[Trace]:
        """Record on from event number ``end`` in a trace of its own, so that a loaded model can serve again."""
        before = self.trace
        births = sum(event >= 0 for event in before.events[:end])
        self.trace = Trace(before.births[:births], before.events[:end])
        libraries, self._libraries = self._libraries, set()
        try:
            yield self.trace
        finally:
            self.trace, self._libraries = before, libraries

    def birth_of(self, tensor: torch.Tensor) -> int | None:
        """The number of the birth of ``tensor``'s storage; None off the device."""
        return self.live.get(tensor.untyped_storage()._cdata)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in _OWN_KERNELS:
            return self._run_kernel(func, args, kwargs)
        if self._depth and func.namespace == "aten" and func._can_decompose():
            with self:  # below autograd composites such as linear arrive whole
                return func.decompose(*args, **kwargs)
        op = func._schema.name
        hidden = hidden_allocations(func, args, kwargs, self._target)
        around = [self._born(size, op, purpose="scratch") for size in hidden.around]
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            result = self._by_value(func, args, kwargs)
            if not isinstance(result, torch.Tensor):
                return result
        except UnsupportedOperatorException as error:
            raise UllageError(
                f"{self._where}: {func} has no kernel for fake tensors, so that what it allocates is not known",
                hint="profile the model on a device: --device cuda or --device cpu",
            ) from error
        for value in (result,) if isinstance(result, torch.Tensor) else tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                self._follow(value, op)
        self._take(hidden, op)
        self.trace.events.extend(~number for number in around)
        self._values.follow(func, args, kwargs, result)
        return result

    def _run_kernel(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a library's own Python code for CUDA in place of the shapes that it would return."""
        name = func._schema.name + ("." + func._overloadname if func._overloadname != "default" else "")
        kernel = self._kernels.get(name) or partial(func._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd)
        self._depth += 1
        try:
            with self:
                return kernel(*args, **kwargs)
        finally:
            self._depth -= 1

    @property
    def _where(self) -> str:
        return self._modules[-1] if self._modules else "generate"

    def _by_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return self._values.compute(func, args, kwargs)
        except UnknownValueError as unknown:
            if self._depth and func._schema.name == "aten::_local_scalar_dense" and args[0].dtype == torch.bool:
                return False  # int8 asks whether there are outliers, of which `measure` says that there are none
            raise UllageError(
                f"{self._where}: {func} depends on the values of activations, which a virtual GPU has none of",
                hint="profile it on a device: --device cuda or --device cpu",
            ) from unknown

    def _follow(self, tensor: torch.Tensor, op: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live:
            return
        size, law = storage.nbytes(), _law.get()
        if size == 0 and law is None:
            return
        self.live[key] = self._born(size, op, tuple(tensor.shape), str(tensor.dtype)[6:], law=law)
        self._deaths[key] = weakref.ref(storage, lambda _: self._died(key))

    def _born(
        self,
        size: int,
        op: str,
        shape: tuple[int, ...] = (),
        dtype: str = "uint8",
        *,
        purpose: Purpose = "result",
        law: Sized | None = None,
    ) -> int:
        trace = self.trace
        number = len(trace.births)
        trace.births.append(Birth(size, op, self._modules[-1] if self._modules else "", shape, dtype, purpose, law))
        trace.events.append(number)
        return number

    def _died(self, key: int) -> None:
        self.trace.events.append(~self.live.pop(key))
        del self._deaths[key]

    @contextmanager
    def naming(self, model: torch.nn.Module) -> Iterator[None]:
        """Tell births by the module of ``model`` that runs."""
        names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}

        def enter(module: torch.nn.Module, _: Any) -> None:
            self._modules.append(names.get(id(module)) or (self._modules[-1] if self._modules else ""))

        def leave(*_: Any) -> None:
            self._modules.pop()

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._modules.clear()

    def name_resident(self, model: torch.nn.Module) -> None:
        """Call the storages of parameters and buffers by their names."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            number = self.birth_of(tensor)
            if number is not None:
                self.trace.births[number] = self.trace.births[number]._replace(module=name)

    def _take(self, hidden: Hidden, op: str) -> None:
        if hidden.unknown is not None:
            self.unknown.add(hidden.unknown)
        for library, size in hidden.kept:
            if library not in self._libraries:
                self._libraries.add(library)
                self._born(size, library, purpose="library")
        scratch = [self._born(size, op, purpose="scratch") for size in hidden.scratch]
        self.trace.events.extend(~number for number in reversed(scratch))
