"""What deployments need on a kind of GPU, computed once, and the room that each GPU has."""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from analytic.deployment import Deployment
from analytic.engines.engine import find_engine
from analytic.estimator import ledgers_of
from analytic.hardware import Gpu, context_range
from analytic.ledger import Ledger
from analytic.plans.question import Question
from analytic.request import Request

_LIMITLESS_BYTES = 2**60


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What the fullest GPU of a deployment is charged, on a GPU without a limit."""

    low_bytes: int
    bytes: int
    """Without what the allocator would give back."""
    high_bytes: int
    """Likewise."""
    kept_bytes: int
    """What it would give back."""
    kept_high_bytes: int


def need_of(rows: Iterable[Ledger]) -> Need:
    """Of the GPU that decides."""
    row = max(rows, key=lambda row: row.charged.bytes)
    charged, kept = row.charged, row.reclaimable
    return Need(
        low_bytes=charged.low_bytes,
        bytes=charged.bytes - kept.bytes,
        high_bytes=charged.high_bytes - kept.high_bytes,
        kept_bytes=kept.bytes,
        kept_high_bytes=kept.high_bytes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What one GPU has for a deployment."""

    capacity_bytes: int
    """That may be used."""
    total_bytes: int
    shift: tuple[int, int, int]
    """How much more (low, middle, high) its context costs than that of the GPU that needs were computed for."""

    def used_bytes(self, need: Need) -> int:
        """With what the allocator keeps as long as there is room for it."""
        held = need.bytes + self.shift[1]
        return held + min(need.kept_bytes, max(0, self.total_bytes - held))

    def holds_certainly(self, need: Need) -> bool:
        """Whether the high bound fits."""
        most = need.high_bytes + self.shift[2]
        return most + min(need.kept_high_bytes, max(0, self.total_bytes - most)) <= self.capacity_bytes

    def holds_perhaps(self, need: Need) -> bool:
        """Whether the low bound fits."""
        return need.low_bytes + self.shift[0] <= self.capacity_bytes


@lru_cache(maxsize=65536)
def workload(request: Request, context: int, concurrency: int, output_tokens: int) -> Request:
    """Sequences of ``context`` tokens in all; at least one of them is prompt, and one output."""
    output = max(1, min(output_tokens, context - 1))
    return replace(request, prompt_tokens=max(1, context - output), output_tokens=output, batch_size=concurrency)


def kind_of(asked: Deployment) -> Hashable:
    """What has the same needs is of one kind: a GPU's memory matters where modules are placed by it."""
    assert asked.gpu is not None
    kind = asked.gpu if _is_placed(asked) else find_engine(asked.request.engine).kind(asked.gpu)
    return kind, asked.flags, asked.request


def _is_placed(asked: Deployment) -> bool:
    return asked.flags.device_map is not None


class Needs:
    """Needs of one deployment on one kind of GPU, computed once: a row a context, each as far as some GPU has room."""

    def __init__(self, asked: Deployment, question: Question, most_bytes: int) -> None:
        assert asked.gpu is not None
        self.gpu = asked.gpu
        self._asked = asked
        if not _is_placed(asked):
            self._asked = replace(asked, gpu=replace(asked.gpu, total_bytes=_LIMITLESS_BYTES))
        self._output_tokens = question.output_tokens
        self.rows = [self._row(context, question.concurrencies, most_bytes) for context in question.contexts]
        self.target = self._need(question.target_context, question.target_concurrency)

    def _row(self, context: int, concurrencies: tuple[int, ...], most_bytes: int) -> list[Need]:
        row: list[Need] = []
        for concurrency in concurrencies:
            need = self._need(context, concurrency)
            if need.low_bytes > most_bytes:
                break
            row.append(need)
        return row

    def _need(self, context: int, concurrency: int) -> Need:
        flags = self._asked.flags
        if flags.max_model_len is not None:
            flags = replace(flags, max_model_len=max(context, 2))
        request = workload(self._asked.request, context, concurrency, self._output_tokens)
        return need_of(ledgers_of(replace(self._asked, request=request, flags=flags)))


def held_of(row: list[Need], holds: Callable[[Need], bool]) -> int:
    """How many of a row's needs, which rise, are held."""
    return bisect_left(row, True, key=lambda need: not holds(need))


def shift_of(gpu: Gpu, of: Gpu, asked: Deployment) -> tuple[int, int, int]:
    """How much more ``gpu``'s context costs than that of ``of``, where the engine charges it."""
    if asked.calibration is not None or not find_engine(asked.request.engine).CHARGES_CONTEXT:
        return 0, 0, 0
    mine, other = context_range(gpu), context_range(of)
    return mine.low_bytes - other.low_bytes, mine.bytes - other.bytes, mine.high_bytes - other.high_bytes
