"""What a ``quantization_config`` says, held to what is possible: it is a stranger's text."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NoReturn

from analytic.errors import UllageError

COMPARE = "compare with the model's published config.json"

MAX_PATTERN, MAX_REPEATS = 256, 6
_NESTED_REPEAT = re.compile(r"\([^()]*[*+}][^()]*\)[*+{]")


def reject(key: str, value: object, *, why: str = "") -> NoReturn:
    """The error of a ``quantization_config`` that cannot be meant.

    Raises:
        UllageError: always.
    """
    because = f": {why}" if why else ""
    raise UllageError(f"config.json: quantization_config: {key} cannot be {repr(value)[:60]}{because}", hint=COMPARE)


def whole(native: Mapping[str, Any], key: str, *, among: range | tuple[int, ...], default: int | None = None) -> int:
    """A whole number of a config, held to what is possible.

    Raises:
        UllageError: it is missing without a default, or none of ``among``.
    """
    value = native.get(key, default)
    if type(value) is not int or value not in among:
        reject(key, value)
    return value


def choice(native: Mapping[str, Any], key: str, among: Mapping[str, Any], *, default: str | None = None) -> Any:
    """What a word of a config means.

    Raises:
        UllageError: the word is not known.
    """
    value = native.get(key, default)
    if not isinstance(value, str) or value not in among:
        reject(key, value, why=f"known: {', '.join(among)}")
    return among[value]


def flag(native: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """A yes or no of a config.

    Raises:
        UllageError: it is neither.
    """
    value = native.get(key, default)
    if not isinstance(value, bool):
        reject(key, value)
    return value


def names(native: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of module names of a config; empty where it has none.

    Raises:
        UllageError: it is something else.
    """
    value = native.get(key)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        reject(key, value)
    return tuple(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """Takes modules that a list names: whole, by parts between dots, with ``*``, or by ``re:`` and an expression."""

    names: tuple[str, ...]

    def __call__(self, module: str) -> bool:
        """Whether the list names ``module``."""
        return any(_is_named(module, name) for name in self.names)


def _is_named(module: str, name: str) -> bool:
    if name.startswith("re:"):
        return expression(name[3:]).match(module) is not None
    if "*" in name:
        return fnmatchcase(module, name)
    return module == name or f".{name}." in f".{module}."


@lru_cache(maxsize=1024)
def expression(pattern: str) -> re.Pattern[str]:
    """A regular expression of a config.

    Raises:
        UllageError: it is none, or one that could run for ever.
    """
    if len(pattern) > MAX_PATTERN or _NESTED_REPEAT.search(pattern) or len(re.findall(r"[*+{]", pattern)) > MAX_REPEATS:
        reject("a pattern", pattern, why="too long, or too many repetitions")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError) as error:
        reject("a pattern", pattern, why=str(error))
