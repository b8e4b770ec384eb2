"""A matrix: TOML blocks of models, formats and requests, as cases with the most valuable first."""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from analytic.errors import UllageError, UsageError
from analytic.models import catalog
from analytic.quantity import parse_tokens
from analytic.request import Request
from analytic.weights import DTYPES
from profiler.case import Case

FORMATS: Mapping[str, Mapping[str, Any]] = {
    **{dtype: {"dtype": dtype} for dtype in DTYPES},
    "bnb-int8": {"quantization": "bnb-int8"},
    **{bits: {"quantization": bits} for bits in ("bnb-nf4", "bnb-fp4")},
    **{f"{bits}-dq": {"quantization": bits, "double_quant": True} for bits in ("bnb-nf4", "bnb-fp4")},
}
"""What each format asks of a request: a serving dtype, or a quantisation (``-dq``: of its scales too)."""

BESIDE_QUANTIZATION = "bfloat16"
"""Serving dtype of a quantised run that gives no ``dtype``."""

_OF_CASE = ("revision", "twin_layers", "weights")


def read_matrix(path: Path) -> tuple[Case, ...]:
    """The cases of a matrix, by falling ``value`` and then in the order of the file, each once.

    Raises:
        UllageError: the file cannot be read, or something in it is unknown, empty or of a wrong type;
            the message names the file and the run.
    """
    document = _document(path)
    _known(document, ("defaults", "runs"), str(path))
    defaults = _run(document.get("defaults", {}), f"{path}: defaults")
    runs = document.get("runs")
    if not isinstance(runs, list) or not runs:
        raise UsageError(f"{path}: no runs", hint="write at least one [[runs]] block with models and formats")
    valued = [
        (run["value"][0], case)
        for number, raw in enumerate(runs, start=1)
        for run in [{"value": (0,), **defaults, **_run(raw, f"{path}: run {number}")}]
        for case in _cases(run, f"{path}: run {number}")
    ]
    valued.sort(key=lambda pair: -pair[0])
    return _without_repeats(case for _, case in valued)


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UllageError(f"{path}: cannot be read: {error.strerror}", hint="see benchmarks/ for matrices") from error
    except ValueError as error:  # not TOML, or no UTF-8
        raise UsageError(f"{path}: not TOML: {error}", hint="see benchmarks/ for matrices") from error


def _known(table: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    known = tuple(keys)
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            raise UsageError(
                f"{where}: {key!r} is not known",
                hint=f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}",
            )


def _run(table: Any, where: str) -> dict[str, tuple[Any, ...]]:
    """The lists of one block, checked."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {table!r} is no table", hint="write [defaults] once and [[runs]] for each block")
    _known(table, _READERS, where)
    return {key: _values(key, value, f"{where}: {key}") for key, value in table.items()}


def _values(key: str, value: Any, what: str) -> tuple[Any, ...]:
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise UsageError(f"{what}: the list is empty", hint="leave the key out, or give a value")
    if key == "value" and isinstance(value, list):
        raise UsageError(f"{what}: {value!r} is a list", hint="a block has one value")
    return tuple(_READERS[key](item, what) for item in listed)


def _cases(run: Mapping[str, tuple[Any, ...]], where: str) -> Iterator[Case]:
    """The product of the lists of ``run``; the first key varies slowest."""
    for key in ("models", "formats"):
        if key not in run:
            raise UsageError(f"{where}: no {key}", hint=f"add {key} to the block or to [defaults]")
    if "dtype" in run and not any("quantization" in FORMATS[name] for name in run["formats"]):
        raise UsageError(
            f"{where}: dtype stands beside a quantisation, and no format is one",
            hint="name the serving dtype in formats",
        )
    axes = [key for key in _READERS if key in run and key != "value"]
    for chosen in product(*(run[key] for key in axes)):
        yield _case(dict(zip(axes, chosen, strict=True)), where)


def _case(chosen: dict[str, Any], where: str) -> Case:
    model, asked = chosen.pop("models"), FORMATS[chosen.pop("formats")]
    own = {key: chosen.pop(key) for key in _OF_CASE if key in chosen}
    try:
        request = Request(**{"dtype": BESIDE_QUANTIZATION, **chosen, **asked})
        return Case(model=model, request=request, **own)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message.removeprefix('--')}", hint=error.hint) from error


def _without_repeats(cases: Iterable[Case]) -> tuple[Case, ...]:
    unique: dict[str, Case] = {}
    for case in cases:
        unique.setdefault(case.id, case)
    return tuple(unique.values())


def _of(kind: type, named: str) -> Callable[[Any, str], Any]:
    def read(value: Any, what: str) -> Any:
        if type(value) is not kind:
            raise UsageError(f"{what}: {value!r} is no {named}", hint=f"give a {named}")
        return value

    return read


_text, _whole, _truth = _of(str, "text"), _of(int, "whole number"), _of(bool, "true or false")


def _model(value: Any, what: str) -> str:
    """A path that exists, a Hub id, or a name of the catalogue."""
    name = str(_text(value, what))
    is_path = name.startswith((".", "/", "~"))
    if is_path and not Path(name).expanduser().exists():
        raise UsageError(f"{what}: {name!r} is not there", hint="paths are relative to the working directory")
    if is_path or "/" in name or catalog.find(name) or (name and Path(name).exists()):
        return name
    close = catalog.close_names(name)
    hint = f"did you mean {' or '.join(close)}?" if close else "see ullage models, or give a Hub id like org/name"
    raise UsageError(f"{what}: model {name!r} is neither in the catalogue nor a path", hint=hint)


def _format(value: Any, what: str) -> str:
    if _text(value, what) not in FORMATS:
        raise UsageError(f"{what}: {value!r} is not known", hint=f"one of {', '.join(FORMATS)}")
    return str(value)


def _tokens(value: Any, what: str) -> int:
    return parse_tokens(value, what=what) if isinstance(value, str) else int(_whole(value, what))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UsageError(f"{what}: {value!r} is no number", hint="higher is measured first")
    return value


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "value": _number,
    "models": _model,
    "formats": _format,
    "dtype": _text,
    "compute_dtype": _text,
    "batch_size": _whole,
    "prompt_tokens": _tokens,
    "output_tokens": _tokens,
    "attention": _text,
    "cache_implementation": _text,
    "padded": _truth,
    "twin_layers": _whole,
    "weights": _text,
    "revision": _text,
}
"""The keys of a block, slowest first in the product, and how a value of each is checked."""
