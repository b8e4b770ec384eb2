"""Python values as JavaScript expressions: what modules hold as constants, and what the page is told as data."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction

from analytic.webpage.expressions import number, text
from analytic.webpage.sources import Symbol, Untranslatable

Name = Callable[[Symbol], str]
"""How a class is called where the expression stands."""


def literal(value: object, name: Name) -> str:
    """An expression that makes an equal value.

    Raises:
        Untranslatable: it holds something that is neither plain data nor a dataclass.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return number(value)
        case str():
            return text(value)
        case re.Pattern(pattern=str(pattern)) if value.flags == re.compile(pattern).flags:
            return f"new $Pattern({text(pattern)})"
        case Fraction():
            return f"new $Fraction({value.numerator}, {value.denominator})"
        case tuple() if hasattr(value, "_fields"):
            return f"new {name(_symbol(value))}({_items(value, name)})"
        case tuple() | list():
            return f"[{_runs(value, name)}]"
        case set() | frozenset():
            return f"$set([{_items(sorted(value, key=repr), name)}])"
        case Mapping():
            pairs = (f"[{literal(key, name)}, {literal(held, name)}]" for key, held in value.items())
            return f"new $Dict([{', '.join(pairs)}])"
    if is_dataclass(value) and not isinstance(value, type):
        return _instance(value, name)
    raise Untranslatable(type(value).__module__, None, f"a value of type {type(value).__name__}")


def holds_callable(value: object) -> bool:
    """Whether functions are part of it, which only a source tells."""
    match value:
        case Mapping():
            return any(map(holds_callable, value.values()))
        case tuple() | list():
            return any(map(holds_callable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return any(holds_callable(getattr(value, field.name)) for field in fields(value))
    return callable(value)


def _instance(value: object, name: Name) -> str:
    """Its class, and the fields that differ from their defaults."""
    held = {field.name: getattr(value, field.name) for field in fields(value) if field.init}  # type: ignore[arg-type]
    usual = {field.name: field.default for field in fields(value)}  # type: ignore[arg-type]
    given = (f"{key}: {literal(part, name)}" for key, part in held.items() if part != usual[key])
    return f"$make({name(_symbol(value))}, {{{', '.join(given)}}})"


def _runs(values: Iterable[object], name: Name) -> str:
    """Elements, equal ones in a row but once: a model has many equal layers."""
    runs: list[tuple[str, int]] = []
    for made in (literal(value, name) for value in values):
        if runs and runs[-1][0] == made:
            runs[-1] = (made, runs[-1][1] + 1)
        else:
            runs.append((made, 1))
    return ", ".join(made if count == 1 else f"...$repeat({made}, {count})" for made, count in runs)


def _items(values: Iterable[object], name: Name) -> str:
    return ", ".join(literal(value, name) for value in values)


def _symbol(value: object) -> Symbol:
    return type(value).__module__, type(value).__qualname__
