"""What the README and docs/ say is what the records give, what the commands print, and what the arithmetic makes."""

import ast
import json
import operator
import re
from collections.abc import Iterator
from functools import cache
from math import ceil, floor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from readme_tables import PAGES, ROOT, blocks, examples, printed, with_tables

README, METHOD = PAGES
DOCS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(("page", "names"), [(README, ["accuracy"]), (METHOD, ["recorded"])], ids=["README", "method"])
def test_tables_are_what_the_records_give(page: Path, names: list[str]) -> None:
    text = page.read_text("utf-8")
    assert blocks(text) == names
    assert with_tables(text) == text, "run: python tests/readme_tables.py"


def test_commands_print_what_the_readme_shows() -> None:
    shown = dict(examples(README.read_text("utf-8")))
    assert len(shown) >= 2
    for command, output in shown.items():
        assert printed(command) == output, "run: python tests/readme_tables.py"


def named(page: Path) -> Iterator[str]:
    """Commands of ullage that a page names, in code."""
    for code in re.findall(r"`(ullage [^`]+)`|^\$ (ullage .+)$", page.read_text("utf-8"), re.M):
        yield "".join(code)


@cache
def flags_of(command: str) -> frozenset[str]:
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", printed(f"ullage {command} --help")))


def test_commands_and_flags_that_are_named_exist() -> None:
    commands = set(re.findall(r"^│ (\w+) ", printed("ullage --help"), re.M))
    seen = set()
    for page in DOCS:
        for line in named(page):
            words = line.partition("#")[0].split(" | ")[0].split()
            asked = re.sub(r'"[^"]*"', "", " ".join(words[2:]))
            assert words[1] in commands, f"{page.name}: {line}"
            seen.add(words[1])
            given = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", asked))
            assert given <= flags_of(words[1]), f"{page.name}: {line}"
    assert seen >= {"estimate", "plan", "profile", "sweep", "compare", "calibrate"}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS = {"×": "*", "−": "-", "⌊": "floor(", "⌋": ")", "⌈": "ceil(", "⌉": ")", ",": ""}


def value(text: str) -> int:
    """A line of arithmetic in the notation of the docs, rounded."""
    for sign, python in _SIGNS.items():
        text = text.replace(sign, python)
    return round(_value(ast.parse(text, mode="eval").body))


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=op, right=right):
            found: float = _OPERATORS[type(op)](_value(left), _value(right))
            return found
        case ast.Call(func=ast.Name(id=("floor" | "ceil") as name), args=[inner]):
            return {"floor": floor, "ceil": ceil}[name](_value(inner))
    raise AssertionError(ast.dump(node))


def worked() -> Iterator[tuple[str, list[list[str]]]]:
    """A command of docs/method.md, and the rows of the table that follows in its section."""
    for section in METHOD.read_text("utf-8").split("\n### ")[1:]:
        command = re.search(r"^\$ (ullage estimate .* --json)$", section, re.M)
        table = re.search(r"^\| figure \| arithmetic \| bytes \|\n.*\n((?:\|.*\n)+)", section, re.M)
        assert command is not None
        assert table is not None
        yield command[1], [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


WORKED = dict(worked())


def figures(answer: dict[str, Any]) -> dict[str, int]:
    """Everything that a worked example may name."""
    (row,) = answer["per_gpu"]
    engine = answer["engine"]
    parts = {name.replace("_", " "): part["bytes"] for name, part in {**row["components"], **row["totals"]}.items()}
    own = {"budget": "budget_bytes", "blocks": "gpu_blocks", "tokens": "kv_cache_tokens"}
    parts |= {name: engine[key] for name, key in own.items() if key in engine}
    return parts | ({"KV cache": engine["kv_cache_bytes"]["bytes"]} if "kv_cache_bytes" in engine else {})


@pytest.mark.parametrize("command", WORKED)
def test_worked_examples_are_what_the_arithmetic_and_the_command_give(command: str) -> None:
    found = figures(json.loads(printed(command)))
    checked = 0
    for name, arithmetic, size in WORKED[command]:
        assert found[name] == int(size.replace(",", "")), name
        if not arithmetic[0].isalpha():
            assert value(arithmetic) == found[name], name
            checked += 1
    assert checked >= 3


def test_every_engine_has_a_worked_example() -> None:
    assert {"vllm", "llamacpp"} < {word for command in WORKED for word in command.split()}


def test_the_guides_table_is_the_rule() -> None:
    rows = re.findall(
        r"^\| (\d+) bits \| ([\d,]+) GB \| (\d+) GB \| (\d+) GB \| (\d+) \|$", README.read_text("utf-8"), re.M
    )
    assert [int(row[0]) for row in rows] == [32, 16, 8, 4]
    for bits, upside_down, base, total, gpus in rows:
        assert int(upside_down.replace(",", "")) == 70 * 4 * 32 // int(bits)
        assert int(base) == 70 * 4 * int(bits) // 32
        rule = json.loads(printed(f"ullage rule 70B --bits {bits} --gpu-memory 80GB --json"))
        assert (rule["total_bytes"], rule["gpus_needed"]) == (int(total) * 10**9, int(gpus))


def test_the_picture_is_whole_and_fetches_nothing() -> None:
    root = ElementTree.parse(ROOT / "docs" / "loop.svg").getroot()
    names = {element.get("id"): element.text for element in root.iter() if element.get("id")}
    assert all(names[reference] for reference in root.attrib["aria-labelledby"].split())
    drawn = ElementTree.tostring(root, encoding="unicode")
    assert not re.findall(r"(?:href|src)=|url\(|@import", drawn)
    shown = [element.text for element in root.iter() if element.get("class") == "name"]
    assert shown == ["rule", "estimate", "profile", "compare", "calibrate"]
