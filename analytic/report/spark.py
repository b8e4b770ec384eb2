"""Memory over serving as lines of block characters."""

from collections.abc import Iterator, Sequence

from analytic.course import Course
from analytic.report.sentences import gib

_LEVELS = "▁▂▃▄▅▆▇█"
_LABEL_COLUMNS = 10
_MOST_COLUMNS = 60


def sparks(course: Course, *, room: int) -> Iterator[str]:
    """The most that was allocated and reserved in each part of serving, in ``room`` columns; nothing of few samples."""
    columns = min(_MOST_COLUMNS, room - _LABEL_COLUMNS)
    loaded = next((part.end for part in course.parts if part.name == "load"), 0.0)
    serving = [
        (sample.place, (sample.allocated_bytes, sample.reserved_bytes))
        for sample in course.samples
        if sample.place >= loaded and sample.allocated_bytes is not None and sample.reserved_bytes is not None
    ]
    if len(serving) < columns:
        return
    low, high = min(held for _, (held, _) in serving), max(kept for _, (_, kept) in serving)
    if low == high:
        return
    yield f"serving, from {gib(low)} to {gib(high)} GiB"
    for kind, name in enumerate(("allocated", "reserved")):
        most = _most([(place, sizes[kind]) for place, sizes in serving], columns)
        line = "".join(_LEVELS[(size - low) * (len(_LEVELS) - 1) // (high - low)] for size in most)
        yield f"{name:{_LABEL_COLUMNS}}{line}"


def _most(points: Sequence[tuple[float, int]], columns: int) -> list[int]:
    """The most in each column; a column without a sample has the one before's."""
    first, last = points[0][0], points[-1][0]
    found: dict[int, int] = {}
    for place, size in points:
        column = int((place - first) / (last - first) * (columns - 1)) if last > first else 0
        found[column] = max(found.get(column, 0), size)
    most = [points[0][1]]
    for column in range(columns):
        most.append(found.get(column, most[-1]))
    return most[1:]
