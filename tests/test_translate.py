"""Python translated for the page answers as Python does: numbers, keys, classes and text; all else is refused."""

import json
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cached_property, lru_cache, singledispatch
from importlib.resources import files
from itertools import accumulate
from math import ceil, lcm, prod
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple

import pytest
from browser import chromium

from analytic.webpage.sources import Untranslatable
from analytic.webpage.translate import Program, space

# ---------------------------------------------------------------- what is translated


def whole(a: int, b: int) -> list[object]:
    """Integers of any size and sign."""
    return [a + b, a - b, a * b, -a, a // (b or 1), a % (b or 1), a**3, (a * b) // 7**20, divmod(a, b or 7), abs(b)]


def inexact(a: int, b: int) -> list[object]:
    """Floats, which stay apart from integers."""
    half = a / 2
    return [half, a / (b or 3), round(half), int(half), ceil(half), 0.1 * b, half // 3, half == a // 2, round(-0.4 * b)]


def compared(a: int, b: int) -> list[object]:
    """Order and truth."""
    found = b or a or "neither"
    return [a < b <= 2 * b, (a, b) < (b, a), a == b, a != 1 * a, not a, a and b, found, a in (1, b), a > 0, a is None]


def chosen(a: int, b: int) -> list[object]:
    """Helpers that take keys and defaults."""
    several = [a, b, 3, -a, b % 5]
    return [
        max(several, key=lambda x: -x),
        min((x for x in several if x > 10**40), default=None),
        sorted(several, key=lambda x: (x % 3, x)),
        sum(x * x for x in several if x),
        any(x > b for x in several),
        all(x > -(10**30) for x in several),
        next((x for x in several if x < 0), 0),
        list(accumulate(several, initial=1)),
        prod(several[:3]),
        bisect_left(range(100), 17 + a % 50),
        [y for x in range(3) for y in range(x) if y != a % 3],
        several[::-1],
        several[1:3],
        several[-1],
        list(zip(several, range(5), strict=True)),
        list(enumerate(reversed(several))),
    ]


class Pair(NamedTuple):
    """A named tuple."""

    first: int
    second: int = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base."""

    width: int
    height: int = 3
    double: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "double", 2 * self.width)

    @property
    def area(self) -> int:
        """Of it."""
        return self.width * self.height

    def scaled(self, by: int, *, up: bool = True) -> "Shape":
        """By so much."""
        return replace(self, width=self.width * by if up else self.width // by)

    def __add__(self, other: "Shape") -> "Shape":
        return Shape(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.init})


@dataclass(frozen=True, kw_only=True)
class Box(Shape):
    """A class of that base."""

    depth: int = 1
    sides: ClassVar[int] = 6

    @cached_property
    def volume(self) -> int:
        """Of it."""
        return self.area * self.depth


@singledispatch
def named(shape: object, times: int) -> str:
    """By the class."""
    raise AssertionError(f"{type(shape).__name__} is no shape")


@named.register
def _(shape: Shape, times: int) -> str:
    return "shape" * times


@named.register
def _(shape: Box, times: int) -> str:
    return f"box {times}"


@lru_cache(maxsize=16)
def remembered(pair: tuple[int, int]) -> list[int]:
    """One object for equal arguments."""
    return list(pair)


def classes(a: int, b: int) -> list[object]:
    """Dataclasses: values, keys, inheritance, keywords."""
    box, other = Box(width=a, depth=b), Box(width=a, height=3, depth=b)
    changes = {"by": 3, "up": False}
    wide = (Shape(width=a) + Shape(width=b)).width
    first, second = Pair(a)
    return [
        (box == other, box is other, box.volume, box.double, isinstance(box, Shape), isinstance(a, int | str)),
        (box.scaled(2).width, box.scaled(**changes).width, wide, len({box, other, Shape(width=a)})),
        (named(box, 2), named(Shape(width=1), 2), first, second, Pair(1, second=b)[1], *Pair(5)),
        remembered((a, b)) is remembered((a, b)),
    ]


def collected(a: int, b: int) -> list[object]:
    """Dicts and sets, by value."""
    counts = Counter((x % 3, a % 2) for x in range(10))
    held: dict[object, int] = {(a, b): 1, "key": 2, **dict.fromkeys(("x", "y"), a)}
    held[(a, b)] += b
    held |= {"more": a}
    for (rest, _), count in counts.items():
        held[rest] = count
    letters = [value for name in ("x", "none") if (value := held.get(name)) is not None]
    return [list(held.items()), (a, b) in held, {a, b} == {b, a}, sorted({a, b, a}), letters, held.setdefault("z", 5)]


def steps(limit: int) -> Iterator[tuple[int, str]]:
    """A generator."""
    at = 0
    while at < limit % 7:
        at += 1
        if at == 4:
            continue
        if at > 5:
            break
        yield at, "odd" if at % 2 else "even"
    else_ = "end"
    yield from ((x, else_) for x in range(2))


def generated(a: int, b: int) -> list[object]:
    """What a generator gives."""
    return [list(steps(abs(a))), sum(x for x, _ in steps(abs(b)))]


def caught(a: int, b: int) -> list[object]:
    """Errors."""
    try:
        found = {1: "one"}[a % 2]
    except KeyError:
        found = "none"
    try:
        ratio: object = a // (b % 2)
    except (ZeroDivisionError, KeyError):
        ratio = "undefined"
    return [found, ratio]


def written(a: int, b: int) -> list[object]:
    """Text."""
    fraction = Fraction(a, 8) * 3 + 1
    return [
        f"{a:,} and {b!r}, {a / 8:,.2f} {a / 1000:.1f} {b / 7:.3f} {(a % 100) / 100:.0%}",
        f"{'key'!r} {None} {a > b} {(a, 'x')} {0.5}",
        "-".join(str(x) for x in (a, b)) + "s" * (a > 1),
        "a_b_c".replace("_", "-").removesuffix("-c").partition("-"),
        (ceil(fraction), ceil(Fraction(7, 2) + a)),
    ]


SMALL, LARGE = 3, 2**70


@dataclass(frozen=True, kw_only=True)
class Way:
    """A dataclass that holds a function."""

    times: Callable[[int, int], int]


def _scaled_by(factor: int) -> Way:
    return Way(times=lambda a, b: factor * a + b)


WAYS: Mapping[str, Way] = {"once": _scaled_by(1), "twice": Way(times=lambda a, _: 2 * a)}
SIDES: Mapping[str, Callable[[int], int]] = {"one": lambda a: a + 1, "half": lambda a: a // 2}


def looked_up(a: int, b: int) -> list[object]:
    """Functions in tables, constants that are unpacked, what a class has, and a few more of Python's own."""
    once, twice = WAYS["once"].times, WAYS["twice"].times
    return [
        (once(a, b), twice(a, b), SIDES["one"](a), SIDES["half" if a > b else "one"](b)),
        (a * SMALL + LARGE, Box.sides, Box(width=a).sides, bool(a), bool(Fraction(b))),
        (list(range(0, a % 50, 4)), list(range(a % 9, -5, -3)), lcm(a % 1000, b % 60), lcm(a, 6, 4)),
        (round(a / 8, 2), round(b / 200, 2), round(a / 7, 3), round(0.5 * a, 0)),
    ]


FUNCTIONS = (whole, inexact, compared, chosen, classes, collected, generated, caught, written, looked_up)

# ---------------------------------------------------------------- both sides


def _program() -> str:
    where = Path(__file__).stem
    return Program(roots=[f"{where}.{function.__name__}" for function in FUNCTIONS]).javascript()


_PLAIN = """
const plain = (x) => typeof x === "bigint" ? ["int", String(x)]
  : typeof x === "number" ? ["int", String(Object.is(x, -0) ? "-0" : x)]
  : x instanceof $Float ? ["float", (Object.is(x.value, -0) ? "-" : "") + x.value.toExponential()]
  : Array.isArray(x) ? x.map(plain) : x;
"""


def _plain(value: Any) -> Any:
    """A result as JSON that tells integers from floats, which are written in as few digits as tell them apart."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return ["int", str(value)]
    if isinstance(value, float):
        shortest = next(text for digits in range(18) if float(text := f"{value:.{digits}e}") == value)
        mantissa, exponent = shortest.split("e")
        return ["float", f"{mantissa}e{int(exponent):+d}"]
    return [_plain(part) for part in value]


def _numbers() -> list[tuple[int, int]]:
    """Small ones, where all of signs and ties come up, and ones around and beyond 2^53."""
    random = Random(5)
    small = [(a, b) for a in range(-7, 8) for b in range(-4, 5)]
    return small + [
        (random.choice((-1, 1)) * random.randrange(10 ** random.randint(1, 30)), random.randrange(-(10**18), 10**18))
        for _ in range(300)
    ]


def test_translated_functions_answer_as_python() -> None:
    numbers = _numbers()
    runtime = (files("analytic.webpage") / "runtime.js").read_text("utf-8")
    names = [function.__name__ for function in FUNCTIONS]
    given = json.dumps([[str(a), str(b)] for a, b in numbers])
    calls = ", ".join(f"{name}: {space(Path(__file__).stem)}.{name}" for name in names)
    code = f"""() => {{ {runtime}\n{_program()}\n{_PLAIN}
      const functions = {{ {calls} }}, given = {given}.map((pair) => pair.map((x) => $int(BigInt(x))));
      return Object.entries(functions).map(([name, f]) => [name, given.map(([a, b]) => plain(f(a, b)))]); }}"""
    with chromium() as browser:
        answers = dict(browser.new_page().evaluate(code))
    for function in FUNCTIONS:
        for pair, answer in zip(numbers, answers[function.__name__], strict=True):
            assert answer == _plain(function(*pair)), (function.__name__, pair)


OUTSIDE = {
    "match": ("def f(x):\n    match x:\n        case 1:\n            return 2", 2, "Match"),
    "with": ("def f(x):\n    with x:\n        return 1", 2, "With"),
    "else after a loop": (
        "def f(x):\n    for y in x:\n        pass\n    else:\n        return 1",
        2,
        "else after a loop",
    ),
    "an unknown name": ("def f(x):\n    return eval(x)", 2, "the name eval"),
    "another library": ("import os\ndef f(x):\n    return os.getpid()", 3, "os.getpid"),
    "a method that no class has": ("def f(x):\n    return x.strip()", 2, "the method strip"),
    "an attribute that no class has": ("def f(x):\n    return x.real", 2, "the attribute real"),
    "shifting": ("def f(x):\n    return x << 2", 2, "LShift"),
    "any number of arguments": ("def f(*x):\n    return x", 1, "any number of arguments"),
    "a decorator": ("import abc\n@abc.x\ndef f(x):\n    return x", 3, "the decorator x"),
    "bytes": ("def f(x):\n    return b'a'", 2, "the constant b'a'"),
    "a test for list": ("def f(x):\n    return isinstance(x, list)", 2, "a test for list"),
    "an unknown keyword": ("def g(x):\n    return x\ndef f(x):\n    return g(y=x)", 4, "the keyword y"),
    "nonlocal": ("def f(x):\n    def g():\n        nonlocal x\n        return x\n    return g()", 3, "Nonlocal"),
    "await": ("async def f(x):\n    return await x", None, "the name f"),
    "finally": ("def f(x):\n    try:\n        return 1\n    finally:\n        x()", 2, "a try of this kind"),
    "a lambda with defaults": ("def f(x):\n    return lambda y=1: y", 2, "a lambda with defaults"),
    "format that is computed": ("def f(x):\n    return f'{x:{x}}'", 2, "a format that is computed"),
    "sorting in reverse": ("def f(x):\n    return sorted(x, reverse=True)", 2, "reverse= of sorted"),
    "a type that is called": ("def f(x):\n    return dict[str, int]()", 2, "a call of what an expression gives"),
    "constants that are unpacked as functions": (
        "A, B = (lambda x: x), 2\ndef f(x):\n    return A(x)",
        1,
        "functions that are unpacked",
    ),
    "a sum with a start": ("def f(x):\n    return sum(x, 3)", 2, "sum of 2 arguments"),
    "replacing a few": ("def f(x):\n    return x.replace('a', 'b', 1)", 2, "the method replace"),
    "a method that is not called": ("def f(x):\n    return map(x.get, x)", 2, "the attribute get"),
    "a call in a chain": ("def g(x):\n    return x\ndef f(x):\n    return 1 < g(x) < 3", 4, "a chain of comparisons"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_anything_else_is_refused_by_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, line, what = OUTSIDE[case]
    module = f"outside_{sorted(OUTSIDE).index(case)}"
    (tmp_path / f"{module}.py").write_text(source, "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    where = f"{module}.py" if line is None else f"{module}.py:{line}"
    with pytest.raises(Untranslatable, match=re.escape(f"{where}: {what}")):
        Program(roots=[f"{module}.f"]).javascript()


def _translated(name: str, source: str, folder: Path, given: dict[str, str] | None = None) -> str:
    """The translation of a module's ``f``; the folder is on the path."""
    (folder / f"{name}.py").write_text(source, "utf-8")
    return Program(roots=[f"{name}.f"], given=given or {}).javascript()


def test_a_changed_constant_or_formula_changes_the_translation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = _translated("formula_before", "SHARE = 0.4\ndef f(x):\n    return SHARE * x", tmp_path)
    after = _translated("formula_after", "SHARE = 0.5\ndef f(x):\n    return SHARE + x", tmp_path)
    assert "const SHARE = $F(0.4);" in before
    assert "return $mul(SHARE, x);" in before
    assert "const SHARE = $F(0.5);" in after
    assert "return $add(SHARE, x);" in after


def test_what_is_given_takes_the_place_of_a_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    source = "def read(x, *, y):\n    return open(x)\ndef f(x):\n    return read(y=1, x=x)"
    translated = _translated("formula_given", source, tmp_path, {"formula_given.read": "$table"})
    assert "const read = $table;" in translated
    assert "return read(x, 1);" in translated
    assert "open" not in translated
