"""How far long work is: a line each on standard error where that is a terminal, and nothing elsewhere.

Work only counts: whoever draws looks at the count five times a second, so that counting costs an addition.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.spinner import Spinner

T = TypeVar("T")

_LATE_S = 0.5
"""Work that ends sooner is not shown."""
_DRAWN_PER_S = 5
_BAR_WIDTH = 12
_UNITS = (("s", 1), ("min", 60), ("h", 3600))


@dataclass(kw_only=True, eq=False)
class Task:
    """Work under way."""

    what: str
    """What is done, for people."""
    of: str = ""
    """With what: a model, a folder."""
    total: int | None = None
    """Units in all; None where that is not known."""
    unit: str = ""
    """What is counted: ``tensors``."""
    done: int = 0
    """Units so far; of a new task, those of before, which tell nothing about its pace."""
    left_s: Callable[[], float | None] | None = None
    """Seconds left, where it is known better than by the pace so far; called from another thread."""
    note: Callable[[], str] | None = None
    """What else to say; likewise."""
    clock: Callable[[], float] = time.monotonic
    is_over: bool = False
    _before: int = field(init=False)
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._before, self._began = self.done, self.clock()

    def turn_to(self, what: str, *, total: int | None = None, unit: str = "", done: int = 0) -> None:
        """Something else is done from now on, with the same."""
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.__post_init__()

    def at(self, done: int, total: int, unit: str) -> None:
        """So many of so many; another unit than before begins anew."""
        if unit != self.unit:
            self.turn_to(self.what, total=total, unit=unit, done=done)
        self.done, self.total = done, total

    def over(self, items: Collection[T]) -> Iterator[T]:
        """``items``, each counted when the next one is asked for."""
        self.total = len(items)
        for item in items:
            yield item
            self.done += 1

    @property
    def pace(self) -> float | None:
        """Units a second since it began; None before the first."""
        seconds, done = self.clock() - self._began, self.done - self._before
        return done / seconds if done > 0 and seconds > 0 else None

    def figures(self) -> str:
        """``12/290 tensors · 4.0/s · 1:10 left``, or how long it has taken where the rest is not known."""
        pace, left = self.pace, self._seconds_left()
        count = _number(self.done) if self.total is None else f"{_number(self.done)}/{_number(self.total)}"
        parts = (
            f"{count} {self.unit}".rstrip() if self.total or self.done else "",
            _pace(pace) if pace else "",
            span(self.clock() - self._began) if left is None else f"{span(left)} left",
            self.note() if self.note else "",
        )
        return " · ".join(part for part in parts if part)

    def _seconds_left(self) -> float | None:
        if self.left_s is not None:
            return self.left_s()
        pace = self.pace
        return None if pace is None or self.total is None else max(0, self.total - self.done) / pace


def _pace(pace: float) -> str:
    unit, seconds = next(((u, s) for u, s in _UNITS if pace * s >= 1), _UNITS[-1])
    return f"{pace * seconds:.1f}/{unit}" if pace < 100 else f"{_number(round(pace))}/{unit}"


def _number(count: int) -> str:
    """``12,345``, and from a million on ``8.5M``."""
    return f"{count:,}" if count < 10**6 else f"{count / 1e6:.1f}M"


def span(seconds: float) -> str:
    """``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def showing(
    what: str,
    *,
    of: str = "",
    total: int | None = None,
    unit: str = "",
    done: int = 0,
    left_s: Callable[[], float | None] | None = None,
    note: Callable[[], str] | None = None,
    after_s: float = _LATE_S,
) -> Iterator[Task]:
    """A task whose line stands on the terminal from ``after_s`` until the context ends, below those around it."""
    task = Task(what=what, of=of, total=total, unit=unit, done=done, left_s=left_s, note=note)
    if not is_watched():
        yield task
        return
    due = threading.Timer(after_s, _screen.add, [task])
    due.daemon = True
    try:
        if after_s > 0:
            due.start()
        else:
            _screen.add(task)
        yield task
    finally:
        due.cancel()
        _screen.remove(task)


def say(text: str) -> None:
    """A line on standard error, above what is under way."""
    _screen.say(text)


def is_watched() -> bool:
    """Whether standard error is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class _Screen:
    """The lines of what is under way; drawn as long as there are any."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._live: Live | None = None
        self._lock = threading.RLock()

    def add(self, task: Task) -> None:
        with self._lock:
            if task.is_over:
                return
            self._tasks.append(task)
            if self._live is None:
                self._live = self._started()

    def remove(self, task: Task) -> None:
        with self._lock:
            task.is_over = True
            if self._tasks == [task] and self._live is not None:
                self._live.stop()
                self._live = None
            if task in self._tasks:
                self._tasks.remove(task)

    def say(self, text: str) -> None:
        with self._lock:
            if self._live is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._live.console.print(_plain(text), soft_wrap=True)

    def _started(self) -> "Live":
        from rich.console import Console
        from rich.live import Live

        live = Live(
            get_renderable=self._drawn,
            console=Console(stderr=True, force_terminal=True),
            transient=True,
            refresh_per_second=_DRAWN_PER_S,
            redirect_stdout=False,
        )
        live.start()
        return live

    def _drawn(self) -> "RenderableType":
        from rich.table import Table

        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column()
        table.add_column(no_wrap=True)
        for task in map(copy, [*self._tasks]):  # a moment of it: the work goes on meanwhile
            table.add_row(_plain(" · ".join(filter(None, (task.what, task.of)))), _gauge(task), _plain(task.figures()))
        return table


def _plain(text: str) -> "RenderableType":
    from rich.text import Text

    return Text("".join(sign if sign.isprintable() else "?" for sign in text))


def _gauge(task: Task) -> "RenderableType":
    from rich.progress_bar import ProgressBar

    if task.total is None:
        return _spinner().render(task.clock())
    return ProgressBar(total=task.total, completed=task.done, width=_BAR_WIDTH)


@cache
def _spinner() -> "Spinner":
    from rich.spinner import Spinner

    return Spinner("dots")


_screen = _Screen()
"""There is one terminal."""
