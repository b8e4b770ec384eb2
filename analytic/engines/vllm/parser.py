"""Words of a ``vllm serve`` line, parsed as vLLM's own parser does (vllm/utils/argparse_utils.py, engine/arg_utils.py).

It is Python's argparse, abbreviations included, after words are rewritten: underscores in names, ``-O3``, and dotted
names of keys of JSON. The parser here is argparse too, built from the recorded table.
"""

import argparse
import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

from analytic.engines.vllm.options import OTHERS, Option, options
from analytic.errors import UsageError

Value = str | int | float | bool | list[Any] | dict[str, Any] | None

KEYS_HIGH = 32
"""Keys below each other in a dotted name."""

_MULTIPLIERS = {
    **{"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12},
    **{"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40},
}
_SUFFIXED = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)([kmgtKMGT])")
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """One use of an option."""

    option: Option
    text: str
    """As it stands on the line, by its full name."""
    value: Value


@dataclass(kw_only=True, slots=True)
class Parsed:
    """All words of a line."""

    model: str | None = None
    given: list[Given] = field(default_factory=list)
    """In their order; of an option that is given again, the last counts."""


def count(text: str) -> int:
    """``8k`` is 8,000, ``8K`` 8,192, ``1.5k`` 1,500 (human_readable_int).

    Raises:
        argparse.ArgumentTypeError: not a number, or a fraction of a binary multiple.
    """
    if not (match := _SUFFIXED.fullmatch(text.strip())):
        return int(text)
    number, suffix = match.groups()
    if suffix.islower():
        return int(float(number) * _MULTIPLIERS[suffix])
    if "." in number:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {suffix} is a binary multiple, of whole numbers; {suffix.lower()} is not"
        )
    return int(number) * _MULTIPLIERS[suffix]


def length(text: str) -> int:
    """A count, or ``auto`` for -1 (human_readable_int_or_auto)."""
    return -1 if text.strip() == "-1" or text.strip().lower() == "auto" else count(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not JSON") from error


def _object(text: str) -> Any:
    """JSON, in which numbers may have suffixes (_expand_json_human_readable_numbers)."""
    parts = _QUOTED.split(text)
    bare = re.compile(rf"\b{_SUFFIXED.pattern}\b")
    for index in range(0, len(parts), 2):
        parts[index] = bare.sub(lambda match: str(count(match[0])), parts[index])
    read = _json("".join(parts))
    if not isinstance(read, dict):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a JSON object")
    return read


def _object_or_str(text: str) -> Any:
    return _json(text) if re.match(r"(?s)^\s*{.*}\s*$", text) else text


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    **{"int": int, "float": float, "str": str, "count": count, "length": length, "json": _json},
    **{"object": _object, "object or str": _object_or_str},
}


def _converter(kind: str) -> Callable[[str], Any]:
    convert = _CONVERTERS[kind.removeprefix("none or ")]

    def read(text: str) -> Any:
        if kind.startswith("none or ") and text in ("", "None"):
            return None
        try:
            return convert(text)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not one of {kind.removeprefix('none or ')}") from error

    return read


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"vllm serve: {message}", hint="vllm serve --help=all lists its options and their values")


class _Keep(argparse.Action):
    """Keeps every use in the order of the line; ``option`` is set after construction."""

    option: Option

    def __call__(
        self, parser: argparse.ArgumentParser, space: argparse.Namespace, values: Any, name: str | None = None
    ) -> None:
        option = self.option
        if option.name == "help":
            raise UsageError("--help starts no server", hint="leave it out")
        value = name not in option.off if option.kind == "flag" else values
        words = [] if option.kind == "flag" else values if isinstance(values, list) else [values]
        text = " ".join((str(name), *(word if isinstance(word, str) else json.dumps(word) for word in words)))
        space.parsed.given.append(Given(option=option, text=text, value=value))


@cache
def _parser() -> _Parser:
    parser = _Parser(prog="vllm serve", add_help=False)
    parser.add_argument("model_tag", nargs="?")
    for option in options().values():
        kind: dict[str, Any] = {"nargs": 0}
        if option.kind != "flag":
            kind = {"nargs": option.takes, "type": _converter(option.kind), "choices": option.choices}
        action = parser.add_argument(*option.names, *option.off, action=_Keep, dest=option.name, **kind)
        if isinstance(action, _Keep):
            action.option = option
    return parser


def parse(words: Sequence[str]) -> Parsed:
    """The model and the options of the words after ``vllm serve``.

    Raises:
        UsageError: an option that vLLM has not, or an ambiguous one, a value that is none, or a word too many.
    """
    for word in words:
        _refuse_other(word)
    parsed = Parsed()
    space, rest = _parser().parse_known_args(rewritten(words), argparse.Namespace(parsed=parsed))
    if rest:
        raise _unknown(rest[0])
    parsed.model = space.model_tag
    return parsed


def _names() -> set[str]:
    return {name for option in options().values() for name in (*option.names, *option.off)}


def _refuse_other(word: str) -> None:
    name = word.partition("=")[0]
    engine = next((engine for engine, flags in OTHERS.items() if name in flags), None)
    if engine and name not in _names():
        raise UsageError(
            f"vllm serve has no {name}: that is a flag of {engine}", hint="vllm serve --help=all lists its own"
        )


def _unknown(word: str) -> UsageError:
    if not word.startswith("-"):
        return UsageError(
            f"vllm serve takes one model, and {word!r} is a further word", hint="quote values with spaces"
        )
    name = word.partition("=")[0].partition(".")[0]
    close = difflib.get_close_matches(name.replace("_", "-"), _names(), n=1)
    hint = f"did you mean {close[0]}?" if close else "vllm serve --help=all lists its options"
    return UsageError(f"vllm serve has no option {name}", hint=hint)


def rewritten(words: Sequence[str]) -> list[str]:
    """Words as vLLM hands them to argparse: dotted names last, as JSON (FlexibleArgumentParser.parse_args)."""
    plain: list[str] = []
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            head, dot, keys = name.partition(".")
            plain.append(head.replace("_", "-") + dot + keys + sign + value)
        elif word.startswith("-O") and word != "-O":
            plain += ["--optimization-level", word[3:] if word[2] == "=" else word[2:]]
        elif word == "-O" and words[index + 1 : index + 2] and words[index + 1] in "0123":
            plain.append("--optimization-level")
        else:
            plain.append(word)
    return _undotted(plain)


def _undotted(words: list[str]) -> list[str]:
    kept: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    left = iter(words)
    for word in left:
        name, sign, text = word.partition("=")
        if not name.startswith("-") or "." not in name:
            kept.append(word)
            continue
        if not sign and (text := next(left, "\0")) == "\0":
            raise UsageError(f"{name}: a value is missing", hint=f"{name} VALUE")
        head, *keys = name.removesuffix("+").split(".")
        if len(keys) > KEYS_HIGH:
            raise UsageError(f"{name[:80]}…: more than {KEYS_HIGH} keys", hint=f"give JSON to {head}")
        value = text.split(",") if name.endswith("+") else _key_value(text)
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        _merge(objects.setdefault(head, {}), nested)
    return [*kept, *(word for head, value in objects.items() for word in (head, json.dumps(value)))]


def _key_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return count(text)
    except (ValueError, OverflowError, argparse.ArgumentTypeError):
        return text


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Objects key by key; lists are joined, other values replaced."""
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            into[key] = [*old, *value]
        else:
            into[key] = value
