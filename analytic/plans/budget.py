"""What else would fit where an estimate was asked for: longer contexts, more sequences at once."""

from dataclasses import dataclass

from analytic.estimator import Estimate
from analytic.plans.needs import Needs, Room, held_of
from analytic.plans.options import Cell, matrix_of
from analytic.plans.question import CONCURRENCIES, CONTEXTS, Question


@dataclass(frozen=True, kw_only=True)
class BudgetMap:
    """Context × concurrency on the GPUs of one estimate."""

    contexts: tuple[int, ...]
    """Tokens of a sequence, prompt and output; the estimate's own among them."""
    concurrencies: tuple[int, ...]
    cells: tuple[tuple[Cell, ...], ...]
    """A row a context."""
    asked: tuple[int, int]
    """The estimate's own context and concurrency."""


def budget_map(answer: Estimate) -> BudgetMap | None:
    """Every cell is the estimate of its own request; None without a GPU."""
    request, gpu, capacity = answer.request, answer.gpu, answer.capacity_bytes
    if gpu is None or capacity is None:
        return None
    asked = (request.prompt_tokens + request.output_tokens, request.batch_size)
    question = Question(
        target_context=asked[0],
        target_concurrency=asked[1],
        output_tokens=request.output_tokens,
        contexts=_with(CONTEXTS, asked[0]),
        concurrencies=_with(CONCURRENCIES, asked[1]),
    )
    room = Room(capacity_bytes=capacity, total_bytes=gpu.total_bytes, shift=(0, 0, 0))
    rows = Needs(answer.asked, question, gpu.total_bytes).rows
    frontier = tuple((held_of(row, room.holds_certainly), held_of(row, room.holds_perhaps)) for row in rows)
    return BudgetMap(
        contexts=question.contexts,
        concurrencies=question.concurrencies,
        cells=matrix_of(frontier, len(question.concurrencies)),
        asked=asked,
    )


def _with(values: tuple[int, ...], value: int) -> tuple[int, ...]:
    return tuple(sorted({*values, value}))
