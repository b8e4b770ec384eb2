"""How far a worker is, told to whoever watches: at most ten times a second, and to nobody unless within `telling`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_LEAST_SECONDS = 0.1

_teller: ContextVar["_Teller | None"] = ContextVar("teller", default=None)


class _Teller:
    def __init__(self, emit: Callable[..., None], clock: Callable[[], float]) -> None:
        self.emit = emit
        self._clock = clock
        self._next = clock() + _LEAST_SECONDS

    def step(self, **fields: Any) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + _LEAST_SECONDS
            self.emit("step", **fields)


@contextmanager
def telling(emit: Callable[..., None], *, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Steps and works within are told as the events ``step`` and ``doing``."""
    token = _teller.set(_Teller(emit, clock))
    try:
        yield
    finally:
        _teller.reset(token)


def reached(done: int, total: int, unit: str) -> None:
    """So many of so many ``unit`` are done; passed over where the last one was told a moment ago."""
    if (teller := _teller.get()) is not None:
        teller.step(done=done, total=total, unit=unit)


def doing(what: str) -> None:
    """Another part of the phase is begun, and counted by itself."""
    if (teller := _teller.get()) is not None:
        teller.emit("doing", what=what)
