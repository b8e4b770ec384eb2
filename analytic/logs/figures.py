"""Tables of lines: regular expressions whose groups name a fact and its unit, and what they find.

A group ``weights__gib`` is the fact ``weights`` in GiB. Units: ``gib``, ``mib`` (printed to so many digits),
``mibfloor`` (cut to whole MiB), ``bytes``, ``n`` (a count), ``x`` (a ratio). Groups without a unit are not facts.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import combinations

from analytic.logs.reading import SHOWN, Line
from analytic.logs.records import Fact

NUMBER = r"-?\d[\d,]{0,20}(?:\.\d{1,12})?"

_GROUP = re.compile(r"(?<!\?P)<(\w+?__[a-z]+)>")
_UNITS = {"gib": 2**30, "mib": 2**20}


def compiled(*lines: str) -> tuple[re.Pattern[str], ...]:
    """Patterns of a table; ``<name__unit>`` stands for a group that takes a number."""
    return tuple(re.compile(_GROUP.sub(lambda group: f"(?P<{group[1]}>{NUMBER})", line)) for line in lines)


def found(line: Line, patterns: Iterable[re.Pattern[str]], place: str, *, decimals: int = 0) -> Iterator[Fact]:
    """The facts of a line; a figure that the end of a cut file may have cut is not one.

    Args:
        decimals: that the engine rounds to, whether or not it prints zeros at the end.
    """
    for pattern in patterns:
        for match in pattern.finditer(line.text):
            for group, value in match.groupdict().items():
                if value and "__" in group and not (line.is_cut and match.end(group) == len(line.text)):
                    yield _fact(group, value, line, match.groupdict().get("place") or place, decimals)


def is_cut_off(line: Line, patterns: Iterable[re.Pattern[str]]) -> bool:
    """Whether the file ends within a figure."""
    return line.is_cut and any(
        match.end() == len(line.text) and line.text[-1:].isdigit()
        for pattern in patterns
        for match in pattern.finditer(line.text)
    )


def _fact(group: str, value: str, line: Line, place: str, decimals: int) -> Fact:
    name, unit = group.rsplit("__", 1)
    said = {"name": name, "place": place, "line": line.number, "text": line.text[:SHOWN]}
    number = Fraction(value.replace(",", ""))
    if unit == "n":
        return Fact(count=int(number), **said)  # type: ignore[arg-type]
    if unit == "x":
        return Fact(count=float(number), **said)  # type: ignore[arg-type]
    if unit == "bytes":
        exact = int(number)
        return Fact(bytes=exact, low_bytes=exact, high_bytes=exact, **said)  # type: ignore[arg-type]
    if unit == "mibfloor":
        least = int(number) * 2**20
        return Fact(bytes=least, low_bytes=least, high_bytes=least + 2**20 - 1, **said)  # type: ignore[arg-type]
    digits = max(decimals, len(value.partition(".")[2]))
    half = Fraction(1, 2 * 10**digits)
    low, middle, high = ((number + way * half) * _UNITS[unit] for way in (-1, 0, 1))
    return Fact(bytes=round(middle), low_bytes=-(-low // 1), high_bytes=high // 1, **said)  # type: ignore[arg-type]


def contradictions(facts: Iterable[Fact]) -> Iterator[tuple[Fact, Fact]]:
    """Pairs of the same name and place that cannot both be so: the first of each, and the first that differs."""
    seen: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        seen.setdefault((fact.name, fact.place), []).append(fact)
    for same in seen.values():
        pair = next((pair for pair in combinations(same[:32], 2) if pair[0].contradicts(pair[1])), None)
        if pair:
            yield pair


def contradiction_notes(facts: Iterable[Fact], because: str) -> Iterator[str]:
    """A sentence for each contradiction."""
    for first, second in contradictions(facts):
        where = f" at {first.place}" if first.place else ""
        yield f"{first.name}{where} is printed twice and differs (lines {first.line} and {second.line}): {because}"
