"""Fit the constants that no arithmetic gives to measurements, and say how sure they are.

For each component: measured less what the estimator knows exactly = Σ coefficient × feature, no coefficient below 0
(non-negative least squares: C. L. Lawson and R. J. Hanson, 1974). Intervals come from a bootstrap over models; errors
from leaving one model out at a time.
"""

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import median
from typing import Any

from analytic.calibration import Calibration, Environment, LeftOut, Overhead, Residual, Term
from analytic.compare import estimate_of, model_of
from analytic.engines.transformers.share import OUTLIERS, overhead_features, share_of
from analytic.errors import UllageError
from analytic.formats.table import itemsize
from analytic.ledger import Component
from analytic.measurement import Measurement
from analytic.progress import showing

LEAST_MEASUREMENTS = 3
LEAST_MODELS = 2

_DRAWS = 400
_SEED = 0
_TOTALS = ("allocated", "reserved", "device")
_PRECISIONS = {"bnb-int8": ("int8", 8), "bnb-nf4": ("4-bit", 4), "bnb-fp4": ("4-bit", 4)}

_WANTED = {
    ("context", "bnb-4bit"): 'formats = ["bfloat16", "bnb-nf4"]',
    ("context", "bnb-int8"): 'formats = ["bfloat16", "bnb-int8"]',
    ("context", "moe"): 'models = ["llama-2-7b", "qwen3-30b-a3b"]',
    ("context", "eager"): 'attention = ["sdpa", "eager"]',
    ("workspace", "bnb-4bit"): 'formats = ["bfloat16", "bnb-nf4"]',
    ("workspace", "bnb-int8"): 'formats = ["bfloat16", "bnb-int8"]',
    ("activations", OUTLIERS): 'formats = "bnb-int8"\nweights = "real"',
    ("allocator_slack", "state"): "batch_size = [1, 8]",
    ("allocator_slack", "outgrown"): "output_tokens = [4, 256]",
    ("allocator_slack", "staging"): 'formats = ["bfloat16", "bnb-nf4"]',
}
"""What a block of a sweep must vary for a term to be fitted."""


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A component of one measurement: what is left to explain, and by what."""

    measurement: Measurement
    target_bytes: float
    features: dict[str, float]


_Points = dict[Component, list[_Point]]
_Terms = dict[str, float]


def calibrate(measurements: Iterable[Measurement], *, held_out: Collection[str] = ()) -> Calibration:
    """Fit every constant that ``measurements`` can tell.

    Args:
        measurements: of one environment; runs that did not end are passed over.
        held_out: ids that are not fitted, only predicted.

    Raises:
        UllageError: no GPU's, of several environments, or too few; or scipy is not installed.
    """
    whole = [m for m in measurements if m.status == "ok"]
    environment = _environment(whole)
    fitted = [m for m in whole if m.id not in held_out]
    _require_enough(fitted)
    points = _points(fitted)
    terms = {component: _fit(rows) for component, rows in points.items()}
    made = Calibration(
        id=_id(environment, fitted),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        attention=tuple(sorted({m.request.attention for m in fitted})),
        terms=tuple(term for component, rows in points.items() for term in _terms(component, rows, terms[component])),
        residuals=tuple(_residual(component, rows) for component, rows in points.items() if terms[component]),
        left_out=(),
        overheads=tuple(_overheads(fitted)),
        lacking=tuple(_lacking(points, terms)),
        measurements=tuple(sorted(m.id for m in fitted)),
    )
    unseen = [m for m in whole if m.id in held_out]
    return replace(made, left_out=(*_left_out(fitted, made), *_errors(unseen, lambda _: made, held_out=True)))


def suggested_sweep(calibration: Calibration) -> str:
    """A matrix (TOML) whose measurements would let the terms that are lacking be fitted."""
    lacking = {tuple(line.partition(":")[0].split(" / ")) for line in calibration.lacking}
    blocks = dict.fromkeys(text for key, text in _WANTED.items() if key in lacking)
    return "\n\n".join(_block(text) for text in blocks)


def _block(text: str) -> str:
    given = {line.partition(" = ")[0] for line in text.splitlines()}
    defaults = {"models": '["llama-2-7b", "qwen3-0.6b"]', "formats": '"bfloat16"', "prompt_tokens": "512"}
    rest = [f"{key} = {value}" for key, value in defaults.items() if key not in given]
    return "\n".join(["[[runs]]", text, *rest])


def _environment(measurements: list[Measurement]) -> Environment:
    """The one environment of all measurements."""
    if not measurements:
        raise UllageError("no measurement that ended well", hint="measure with ullage sweep benchmarks/short.toml")
    found = [_environment_of(m) for m in measurements]
    for name in Environment.__dataclass_fields__:
        values = sorted({str(getattr(environment, name)) for environment in found})
        if len(values) > 1:
            raise UllageError(
                f"measurements of several environments: {name} is {' and '.join(values)}",
                hint="give only the files of one; constants of one do not hold in the other",
            )
    return found[0]


def _environment_of(measurement: Measurement) -> Environment:
    device, software = measurement.device, measurement.software
    if device.kind not in ("cuda", "virtual"):
        raise UllageError(
            f"{measurement.id}: measured on {device.name}, which has no allocator to calibrate",
            hint="give the measurements of a GPU",
        )
    versions = {name: software.get(name) for name in ("torch", "transformers", "bitsandbytes", "alloc_conf")}
    return Environment(gpu=device.name, kind=device.kind, driver=device.driver, cuda=device.cuda, **versions)


def _require_enough(measurements: list[Measurement]) -> None:
    models = {m.model.id for m in measurements}
    if len(measurements) >= LEAST_MEASUREMENTS and len(models) >= LEAST_MODELS:
        return
    raise UllageError(
        f"{len(measurements)} measurements of {len(models)} models: a fit needs {LEAST_MEASUREMENTS} of {LEAST_MODELS}",
        hint="ullage sweep benchmarks/short.toml --device cuda measures enough in six minutes",
    )


def _points(measurements: list[Measurement]) -> _Points:
    """What is left to explain in each component, measurement by measurement."""
    with showing("estimate", unit="measurements") as task:
        return _points_of(task.over(measurements))


def _points_of(measurements: Iterable[Measurement]) -> _Points:
    points: _Points = {"context": [], "workspace": [], "activations": [], "allocator_slack": []}
    for measurement in measurements:
        request = measurement.request
        estimate = estimate_of(measurement)
        row, seen = estimate.fullest, measurement.components
        share = share_of(model_of(measurement), estimate.dtype, request.weight_format)
        features = overhead_features(share, request, estimate.dtype)
        rounding = sum(part.bytes for part in row.parts if part.name == "rounding")
        at = next((p for p in row.phases if measurement.peak and p.name == measurement.peak.name), row.peak)
        known = {
            "context": 0,
            "workspace": rounding,
            "activations": at.transient.bytes,
            "allocator_slack": 0,
        }
        for component, rows in points.items():
            measured = getattr(seen, component)
            if measured is not None and _tells(component, measurement):
                target = measured - known[component]
                rows.append(_Point(measurement=measurement, target_bytes=target, features=features[component]))
    return points


def _tells(component: str, measurement: Measurement) -> bool:
    """Outliers are told by real weights in int8 alone; everything else by any measurement."""
    is_int8 = measurement.request.quantization == "bnb-int8"
    return component != "activations" or (is_int8 and measurement.model.weights == "real")


def _usable(rows: list[_Point]) -> list[str]:
    """Features that vary over ``rows``, and the constant one; a feature that never varies cannot be told from it."""
    names = rows[0].features if rows else {}
    return [
        name for name in names if name == "fixed" or len({row.features[name] for row in rows}) > 1 or len(names) == 1
    ]


def _fit(rows: list[_Point]) -> _Terms:
    names = _usable(rows)
    return dict(zip(names, _solve(rows, names), strict=True)) if names else {}


def _solve(rows: list[_Point], names: list[str]) -> list[float]:
    """Non-negative least squares, columns scaled to at most 1."""
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise UllageError("fitting needs scipy", hint="pip install 'ullage[calibrate]'") from error
    scales = [max(abs(row.features[name]) for row in rows) or 1.0 for name in names]
    matrix = [[row.features[name] / scale for name, scale in zip(names, scales, strict=True)] for row in rows]
    solution, _ = nnls(matrix, [row.target_bytes for row in rows])
    return [float(value) / scale for value, scale in zip(solution, scales, strict=True)]


def _terms(component: Component, rows: list[_Point], fitted: _Terms) -> Iterator[Term]:
    draws = list(_bootstrap(rows, list(fitted)))
    for place, (feature, value) in enumerate(fitted.items()):
        drawn = sorted(draw[place] for draw in draws) or [value]
        yield Term(
            component=component,
            feature=feature,
            value=value,
            low=min(value, _at(drawn, 0.025)),
            high=max(value, _at(drawn, 0.975)),
            measurements=sum(row.features[feature] != 0 for row in rows),
        )


def _bootstrap(rows: list[_Point], names: list[str]) -> Iterator[list[float]]:
    """Fits to as many models, drawn with replacement, and of each as many measurements, drawn likewise."""
    if not names:
        return
    by_model = _by_model(rows)
    chance = random.Random(_SEED)
    for _ in range(_DRAWS):
        models = chance.choices(list(by_model), k=len(by_model))
        drawn = [row for model in models for row in chance.choices(by_model[model], k=len(by_model[model]))]
        if {*names} <= {*_usable(drawn)}:
            yield _solve(drawn, names)


def _by_model(rows: list[_Point]) -> dict[str, list[_Point]]:
    found: dict[str, list[_Point]] = {}
    for row in rows:
        found.setdefault(row.measurement.model.id, []).append(row)
    return found


def _residual(component: Component, rows: list[_Point]) -> Residual:
    """Measured less predicted, each model by a fit to the others; by the fit itself where there is only one model."""
    by_model = _by_model(rows)
    missed = []
    for model, own in by_model.items():
        others = [row for row in rows if row.measurement.model.id != model] or rows
        terms = _fit(others)
        missed += [row.target_bytes - _predicted(row, terms) for row in own]
    return Residual(component=component, low_bytes=round(min(missed)), high_bytes=round(max(missed)))


def _predicted(row: _Point, terms: _Terms) -> float:
    return sum(value * row.features[name] for name, value in terms.items())


def _left_out(measurements: list[Measurement], made: Calibration) -> Iterator[LeftOut]:
    """Errors of the totals, each model estimated with what the others gave."""
    with showing("leave out", unit="models") as task:
        without = {
            model: _without(model, measurements, made) for model in task.over({m.model.id for m in measurements})
        }
    yield from _errors(measurements, lambda m: without[m.model.id], held_out=False)


def _without(model: str, measurements: list[Measurement], made: Calibration) -> Calibration:
    points = _points([m for m in measurements if m.model.id != model])
    terms = tuple(
        Term(component=component, feature=feature, value=value, low=value, high=value, measurements=len(rows))
        for component, rows in points.items()
        for feature, value in _fit(rows).items()
    )
    return replace(made, terms=terms, residuals=())


def _errors(
    measurements: list[Measurement], calibration: Callable[[Measurement], Calibration], *, held_out: bool
) -> Iterator[LeftOut]:
    errors: dict[str, list[float]] = {}
    for measurement in measurements:
        row = estimate_of(measurement, calibration(measurement)).fullest
        for figure in _TOTALS:
            measured = getattr(measurement.totals, figure)
            if measured:
                errors.setdefault(figure, []).append(abs(getattr(row, figure).bytes / measured - 1))
    for figure, sizes in errors.items():
        yield LeftOut(figure=figure, median_fraction=median(sizes), max_fraction=max(sizes), held_out=held_out)


def _overheads(measurements: list[Measurement]) -> Iterator[Overhead]:
    """The guide's percentage by precision, of whole models."""
    shares: dict[str, dict[str, float]] = {}
    for measurement in measurements:
        total = measurement.totals.device or measurement.totals.reserved
        if total is None or not measurement.model.parameters or measurement.model.twin_layers is not None:
            continue
        name, bits = _precision(measurement)
        base = measurement.model.parameters * bits / 8
        shares.setdefault(name, {})[measurement.id] = total / base - 1
    for name, by_id in shares.items():
        chance = random.Random(_SEED)
        medians = sorted(median(chance.choices(list(by_id.values()), k=len(by_id))) for _ in range(_DRAWS))
        least, most = min(by_id, key=by_id.__getitem__), max(by_id, key=by_id.__getitem__)
        yield Overhead(
            precision=name,
            measurements=len(by_id),
            median_fraction=median(by_id.values()),
            low_fraction=_at(medians, 0.025),
            high_fraction=_at(medians, 0.975),
            min_fraction=by_id[least],
            min_at=least,
            max_fraction=by_id[most],
            max_at=most,
        )


def _precision(measurement: Measurement) -> tuple[str, int]:
    request = measurement.request
    return _PRECISIONS.get(request.quantization or "", (request.dtype, 8 * itemsize(request.dtype)))


def _lacking(points: _Points, terms: dict[Component, _Terms]) -> Iterator[str]:
    for component, feature in _WANTED:
        if feature not in terms[component]:  # type: ignore[index]
            yield f"{component} / {feature}: {_why(points[component], feature)}"  # type: ignore[index]


def _why(rows: list[_Point], feature: str) -> str:
    if feature == OUTLIERS:
        return "no int8 measurement of real weights"
    if not rows:
        return "no measurement has this component"
    return "in none of the measurements" if not any(r.features[feature] for r in rows) else "the same in all of them"


def _at(ordered: list[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def _id(environment: Environment, measurements: list[Measurement]) -> str:
    told: Any = [environment, sorted(m.id for m in measurements)]
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
    gpu = environment.gpu.lower().replace(" ", "-")
    return f"{gpu}_torch-{environment.torch}_transformers-{environment.transformers}_{digest}"
