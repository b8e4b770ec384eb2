"""Fit an engine's constants to logs of its starts, as `analytic.starts.beside` lays them beside the estimate."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median

from analytic.engine_constants import Constant, EngineCalibration, Scale
from analytic.errors import UllageError
from analytic.starts.beside import Beside, Row

DRAWS = 2000
"""Bootstrap draws of runs."""

_COMPONENTS: tuple[tuple[Constant, str, bool | None], ...] = (
    ("activations", "activations", None),
    ("graphs", "graphs", None),
    ("libraries", "libraries", False),
    ("libraries-several", "libraries", True),
)
"""Constant, the component of a row that tells it, and whether only of runs with tensor parallelism, or without."""


def fit(found: Sequence[Beside], *, draws: int = DRAWS) -> EngineCalibration:
    """Scales of what vLLM's estimates only assume; of llama.cpp nothing is left to fit in what it prints.

    A figure of nothing or less tells of other processes that freed memory meanwhile, and is left out.

    Raises:
        UllageError: no log of vLLM, or none with a figure that a constant hangs on.
    """
    runs = [beside for beside in found if beside.run.engine == "vllm"]
    if not runs:
        raise UllageError(
            "no constants to fit: only vLLM's start prints what its estimate assumes",
            hint="leave -o out to see the logs beside the estimate",
        )
    scales, lacking = [], []
    for constant, component, several in _COMPONENTS:
        pairs, left_out = _pairs(runs, component, several)
        if pairs:
            scales.append(_scale(constant, pairs, draws))
        else:
            lacking.append(f"{constant}: no log prints it")
        if left_out:
            lacking.append(f"{constant}: left out where a log prints nothing or less ({', '.join(left_out)})")
    if not scales:
        raise UllageError("no log prints activations, libraries or CUDA graphs", hint="give logs of the whole start")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    versions = tuple(sorted({beside.run.version or "unknown" for beside in runs}))
    return EngineCalibration(
        id=f"vllm-{versions[0] if len(versions) == 1 else 'several'}-{len(runs)}-runs",
        created_at=now,
        engine="vllm",
        versions=versions,
        gpus=tuple(sorted({beside.asked.gpu.name for beside in runs if beside.asked and beside.asked.gpu})),
        scales=tuple(scales),
        lacking=tuple(lacking),
        runs=tuple(f"{beside.source}: {beside.model.id}" for beside in runs),
    )


_Pair = tuple[float, float]


def _pairs(runs: Sequence[Beside], component: str, several: bool | None) -> tuple[list[_Pair], list[str]]:
    """Printed and estimated, the mean over the ranks of each run; and the files of figures that were left out."""
    pairs, left_out = [], []
    for beside in runs:
        if several is not None and beside.asked is not None and (beside.asked.degrees.tensor > 1) != several:
            continue
        rows = [row for row in beside.rows if row.component == component and row.estimated]
        if positive := [row for row in rows if row.printed > 0]:
            pairs.append(_mean(positive))
        if len(positive) < len(rows):
            left_out.append(beside.source)
    return pairs, left_out


def _mean(rows: Sequence[Row]) -> _Pair:
    return sum(row.printed for row in rows) / len(rows), sum(row.estimated for row in rows) / len(rows)


def _scale(constant: Constant, pairs: Sequence[_Pair], draws: int) -> Scale:
    """The median ratio, which one odd machine does not move, and its bootstrap interval over the runs."""
    draw = random.Random(0)
    ratios = [printed / estimated for printed, estimated in pairs]
    drawn = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(draws))
    return Scale(
        constant=constant,
        value=median(ratios),
        low=drawn[int(0.025 * draws)],
        high=drawn[max(0, -(-975 * draws // 1000) - 1)],
        least=min(ratios),
        most=max(ratios),
        runs=len(ratios),
    )
