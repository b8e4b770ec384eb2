"""What every command shares: flags, and the way an answer leaves the program.

A module of `analytic.report` shows an answer: ``document`` (JSON), ``text`` (a terminal) and, where there is something
to look at, ``report`` (HTML, Markdown, figures). ``record`` is what a JSON file of it holds, where that is not the
document. The module is imported when the answer is there.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, Token

from analytic.errors import UllageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    text = tokens[0].value
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


Whole = Annotated[int, Parameter(converter=_whole)]
"""A flag that takes a whole number."""

Flag = Annotated[bool, Parameter(negative="")]
"""A flag that is there or not."""

Output = Annotated[tuple[str, ...], Parameter(alias="-o", negative="", negative_iterable=(), show_default=False)]
"""Files to write."""

_SHOWN = Group("Output", sort_key=9)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shown:
    """How an answer that has a report is shown."""

    json: Annotated[Flag, Parameter(group=_SHOWN, show_default=False)] = False
    """Print one JSON document."""
    markdown: Annotated[Flag, Parameter(group=_SHOWN, show_default=False)] = False
    """Print tables for an issue or a pull request."""
    output: Annotated[Output, Parameter(group=_SHOWN)] = ()
    """Write to this file: a report to FILE.html or FILE.md, else JSON; can be given again."""
    figures: Annotated[Path | None, Parameter(group=_SHOWN, show_default=False)] = None
    """Write each figure to this folder, as SVG and PNG."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before any work is done."""
        if self.json and self.markdown:
            raise UsageError("--json and --markdown contradict each other", hint="give one; -o writes files beside it")
        _require_names(self.output)

    @property
    def keeps_record(self) -> bool:
        """Whether a JSON file is written."""
        return any(_writer(name) is _record for name in self.output)

    def show(self, answer: object, view: str, *, make_folder: bool = False, **details: bool) -> None:
        """Print ``answer``, and write what was asked for; ``view`` is the module that shows it.

        Raises:
            UllageError: standard output or a file cannot be written.
        """
        module = import_module(view)
        _write_files(answer, module, self.output, make_folder=make_folder)
        if self.figures is not None:
            _save_figures(module.report(answer), self.figures)
        if self.markdown:
            print_lines(_markdown(answer, module))
        else:
            _print(answer, module, json=self.json, **details)


def show(answer: object, view: str, *, json: bool, output: Sequence[str] = (), **details: bool) -> None:
    """Print ``answer`` as text or as one JSON document, and write the document to the files of ``output``.

    Raises:
        UllageError: standard output or a file cannot be written.
    """
    _require_names(output)
    module = import_module(view)
    _write_files(answer, module, output)
    _print(answer, module, json=json, **details)


def _print(answer: object, module: Any, *, json: bool, **details: bool) -> None:
    if json:
        print_lines(_json(module.document(answer)))
    else:
        _print_text(partial(module.text, **details), answer)


def _print_text(render: Callable[[Any, Console], None], answer: object) -> None:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    with _standard_output():
        render(answer, Terminal(highlight=False))


def print_lines(text: str) -> None:
    """Print what is ready to be read.

    Raises:
        UllageError: standard output cannot be written.
    """
    with _standard_output():
        print(text, end="")


@contextmanager
def _standard_output() -> Iterator[None]:
    """A reader that has seen enough changes no exit code; a full disk is an error."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UllageError(f"standard output: cannot be written: {error.strerror}") from error


def _json(document: dict[str, Any]) -> str:
    from json import dumps

    return dumps(document, indent=1) + "\n"


def _markdown(answer: object, module: Any) -> str:
    from analytic.report.markdown import markdown

    return markdown(module.report(answer))


def _html(answer: object, module: Any) -> str:
    from analytic.report.html import html

    return html(module.report(answer))


def _record(answer: object, module: Any) -> str:
    return _json(getattr(module, "record", module.document)(answer))


_WRITERS = {".html": _html, ".htm": _html, ".md": _markdown, ".markdown": _markdown}
"""By the suffix of a file; all others hold JSON."""


def _writer(name: str) -> Callable[[object, Any], str]:
    return _WRITERS.get(Path(name).suffix.lower(), _record)


_PICTURES = (".svg", ".png", ".pdf", ".jpg", ".jpeg")

_OTHERS = (".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".txt", ".rst", ".tex", ".xlsx")
"""Formats that a name would promise and that are not written."""


def _require_names(output: Sequence[str]) -> None:
    for name in output:
        if not name:
            raise UsageError("--output names no file", hint="write -o estimate.json")
        suffix = Path(name).suffix.lower()
        if suffix in _PICTURES:
            raise UsageError(f"--output: {name} would be a picture", hint="--figures FOLDER writes them all")
        if suffix in _OTHERS:
            raise UsageError(f"--output: {name}: {suffix} is not written", hint="name it .json, .html or .md")


def _write_files(answer: object, module: Any, output: Sequence[str], *, make_folder: bool = False) -> None:
    from analytic.writing import write_text

    for name in output:
        writer = _writer(name)
        if writer is not _record and not hasattr(module, "report"):
            raise UsageError(f"--output: {name}: this command writes JSON alone", hint="write -o answer.json")
        write_text(Path(name), writer(answer, module), make_folder=make_folder)


def _save_figures(report: Any, folder: Path) -> None:
    from analytic.report.drawing import save

    for figure in report.figures:
        save(figure, folder)
