"""A report as Markdown, for issues and pull requests: the words and the tables."""

from collections.abc import Iterable, Iterator

from analytic.report.parts import Figure, Lines, Report, Table


def markdown(report: Report) -> str:
    """The whole report, a figure by its table and its ground."""
    parts = [f"### {report.title}", f"{report.assumptions} **{report.headline}**"]
    parts += [text for block in report.blocks if (text := _block(block))]
    if report.command:
        parts.append(f"```console\n$ {report.command}\n```")
    return "\n\n".join(parts) + "\n"


def _block(block: Table | Lines | Figure) -> str:
    if isinstance(block, Table):
        return _titled(block.title, "\n".join(_rows(block)), block.note)
    if isinstance(block, Lines):
        return _lines(block)
    if block.data is None:
        return ""
    grounds = "; ".join(f"{what}: {basis}" for what, basis in block.basis)
    return _titled(block.data.title, "\n".join(_rows(block.data)), f"{block.data.note} {grounds}.".strip())


def _titled(title: str, body: str, note: str) -> str:
    return "\n\n".join(part for part in (title and f"**{title}**", body, note and f"_{note}_") if part)


def _lines(block: Lines) -> str:
    if block.kind == "code":
        return _titled(block.title, "```\n" + "\n".join(block.lines) + "\n```", "")
    return _titled(block.title, "\n".join(f"- {line}" for line in block.lines), "")


def _rows(table: Table) -> Iterator[str]:
    words = len(table.columns) if table.words < 0 else table.words
    yield _row(table.columns)
    yield "|" + "|".join("---" if place < words else "---:" for place in range(len(table.columns))) + "|"
    yield from map(_row, table.rows)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
