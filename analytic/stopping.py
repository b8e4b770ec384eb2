"""Stopped in the middle: whatever is under way cleans up as after an error, and a hint says how to go on."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_SHOW_CURSOR = b"\x1b[?25h"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """SIGINT and SIGTERM raise KeyboardInterrupt; a second one ends the process at once, wherever it hangs.

    A worker then ends by itself, and temporary directories go at the next start.
    """

    def __init__(self) -> None:
        self._number = int(signal.SIGINT)
        self._heard: list[signal.Signals] = []

    def listen(self) -> None:
        """Hear both, unless whoever started this process has turned one off, as a shell does for ``ullage … &``."""
        self._heard = [s for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        for heard in self._heard:
            signal.signal(heard, self._stop)

    def _stop(self, number: int, _: Any) -> NoReturn:
        self._number = number
        for heard in self._heard:
            signal.signal(heard, _leave)
        raise KeyboardInterrupt

    def report(self, stopped: KeyboardInterrupt) -> int:
        """Say so on standard error, with the hint of the outermost `hinting`; the exit code, 130 or 143."""
        _show_cursor()
        hints: list[str] = ["start it again", *getattr(stopped, "__notes__", [])]
        print(f"ullage: interrupted\nhint: {hints[-1]}", file=sys.stderr)
        return 128 + self._number


def _leave(number: int, _: Any) -> NoReturn:
    _show_cursor()
    os._exit(128 + number)


def _show_cursor() -> None:
    """A line of progress hides it."""
    from analytic.progress import is_watched

    if is_watched():
        os.write(2, _SHOW_CURSOR)


@contextmanager
def hinting(hint: str) -> Iterator[None]:
    """How to go on after what runs within is stopped."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        stopped.add_note(hint)
        raise


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that comes meanwhile is heard when the context ends: nothing is begun that nobody would end."""
    if threading.current_thread() is not threading.main_thread():  # the only one that signals interrupt
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda told, _: came.append(told)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for told in came[:1]:
            signal.raise_signal(told)
