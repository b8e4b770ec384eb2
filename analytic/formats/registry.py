"""Every checkpoint format, found by its file: a module of this package that names a `Method`."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import analytic.formats
from analytic.errors import UllageError, UsageError
from analytic.formats.scheme import Method, Preset


@cache
def methods() -> Mapping[str, Method]:
    """By ``quant_method``."""
    modules = (import_module(f"analytic.formats.{found.name}") for found in iter_modules(analytic.formats.__path__))
    found = (value for module in modules for value in vars(module).values() if isinstance(value, Method))
    return {name: method for method in found for name in method.names}


@cache
def presets() -> Mapping[str, tuple[Preset, Method]]:
    """What ``--quantization`` can make, by name and alias in lower case, with its format."""
    rows = ((preset, method) for method in methods().values() for preset in method.presets)
    return {name.lower(): row for row in rows for name in (row[0].name, *row[0].aliases)}


def find_preset(name: str) -> tuple[Preset, Method]:
    """What ``--quantization`` makes of that name, in upper or lower case.

    Raises:
        UsageError: nothing.
    """
    if name.lower() not in presets():
        close = get_close_matches(name.lower(), ("bnb-nf4", "bnb-fp4", "bnb-int8", *presets()))
        meant = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(f"--quantization: {name!r} is not known", hint=f"{meant}ullage formats lists all")
    return presets()[name.lower()]


def find_method(name: str) -> Method:
    """The format of a ``quant_method``.

    Raises:
        UllageError: there is none.
    """
    if name not in methods():
        known = ", ".join(sorted(methods()))
        raise UllageError(f"config.json: quantization_config: {name!r} is not known to ullage", hint=f"known: {known}")
    return methods()[name]
