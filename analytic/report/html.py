"""A report as one page of HTML that needs nothing else: no script, no request, light and dark, screen and paper."""

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from analytic.errors import UllageError
from analytic.report.drawing import basis_line, svg
from analytic.report.drawing.markup import CLASS
from analytic.report.drawing.palette import dark_rules, variables
from analytic.report.parts import Block, Figure, Lines, Report, Status, Table

if TYPE_CHECKING:
    from jinja2 import Template

_STATUS: dict[Status, tuple[str, str]] = {
    "fits": ("●", "fits"),
    "tight": ("◐", "tight"),
    "no": ("○", "does not fit"),
}
"""Mark and word of a verdict."""

_LONG = 40
"""Characters of a cell from which on it may not be squeezed."""


def html(report: Report) -> str:
    """The page; the same report always gives the same text.

    Raises:
        UllageError: matplotlib or jinja2 is not installed.
    """
    names = [figure.name for figure in report.figures]
    assert len(names) == len(set(names)), names
    return _template().render(
        report=report,
        status=report.status and _STATUS[report.status],
        blocks=[_shown(block) for block in report.blocks],
        light=variables("light"),
        dark=variables("dark"),
        drawing=dark_rules("." + CLASS),
        version=_version(),
    )


def _shown(block: Block) -> dict[str, Any]:
    """A block with what the template needs to know of it."""
    match block:
        case Figure():
            data = block.data and _table(block.data)
            return {"kind": "figure", "block": block, "svg": svg(block), "basis": basis_line(block), "data": data}
        case Table():
            return {"kind": "table", "block": block, "table": _table(block)}
        case Lines():
            return {"kind": "lines", "block": block}


def _table(table: Table) -> dict[str, Any]:
    words = len(table.columns) if table.words < 0 else table.words
    columns = range(len(table.columns))
    return {"block": table, "kinds": [_kind([row[place] for row in table.rows], place < words) for place in columns]}


def _kind(cells: list[str], is_words: bool) -> str:
    """How a column is set: numbers stand right, long words have room."""
    if not is_words and any(letter.isdigit() for cell in cells for letter in cell):
        return "number"
    return "long" if max(map(len, cells), default=0) > _LONG else "words"


@lru_cache(maxsize=1)
def _template() -> "Template":
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise UllageError("a page needs jinja2", hint="pip install --force-reinstall ullage") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((files("analytic.report") / "report.html.jinja").read_text(encoding="utf-8"))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ullage")
    except PackageNotFoundError:
        return "from its source"
