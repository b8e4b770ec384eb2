"""Requests at once, from threads that nobody waits for: whoever is stopped does not wait for a server's answer."""

from collections.abc import Callable, Collection, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_flight(ask: Callable[[Item], Answer], items: Collection[Item], *, at_most: int) -> Iterator[tuple[Item, Answer]]:
    """Each item with its answer, as they come; the first error is raised, and nothing more asked for."""
    waiting: SimpleQueue[Item] = SimpleQueue()
    answered: SimpleQueue[tuple[Item, Answer | None, BaseException | None]] = SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while (item := _next(waiting)) is not None:
            try:
                answered.put((item, ask(item), None))
            except BaseException as error:
                _empty(waiting)
                answered.put((item, None, error))

    for _ in range(min(at_most, len(items))):
        Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            item, answer, error = answered.get()
            if error is not None:
                raise error
            yield item, answer  # type: ignore[misc]
    finally:
        _empty(waiting)


def _next(waiting: "SimpleQueue[Item]") -> Item | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _empty(waiting: "SimpleQueue[Item]") -> None:
    while _next(waiting) is not None:
        pass
