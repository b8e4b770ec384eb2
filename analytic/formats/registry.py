"""Every checkpoint format, found by its file: a module of this package that names a `Method`."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import analytic.formats
from analytic.errors import UllageError
from analytic.formats.scheme import Method, Preset


@cache
def methods() -> Mapping[str, Method]:
    """By ``quant_method``."""
    modules = (import_module(f"analytic.formats.{found.name}") for found in iter_modules(analytic.formats.__path__))
    found = (value for module in modules for value in vars(module).values() if isinstance(value, Method))
    return {name: method for method in found for name in method.names}


@cache
def presets() -> Mapping[str, tuple[Preset, Method]]:
    """What ``--quantization`` can make, by name and alias, with its format."""
    rows = ((preset, method) for method in methods().values() for preset in method.presets)
    return {name: row for row in rows for name in (row[0].name, *row[0].aliases)}


def find_preset(name: str) -> tuple[Preset, Method]:
    """What ``--quantization`` makes of that name.

    Raises:
        UllageError: nothing.
    """
    if name not in presets():
        raise UllageError(f"format {name!r} is not known", hint=f"known: {', '.join(sorted(presets()))}")
    return presets()[name]


def find_method(name: str) -> Method:
    """The format of a ``quant_method``.

    Raises:
        UllageError: there is none.
    """
    if name not in methods():
        known = ", ".join(sorted(methods()))
        raise UllageError(f"config.json: quantization_config: {name!r} is not known to ullage", hint=f"known: {known}")
    return methods()[name]
