"""What every command shares: flags, and the way an answer leaves the program."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, Token

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

Output = Annotated[str | None, Parameter(alias="-o")]
"""A file to write."""


def show(answer: object, *, json: bool, document: str, text: str, output: str | None = None, **details: bool) -> None:
    """Print ``answer`` as text or as one JSON document, and write the document to ``output``.

    Args:
        answer: what was asked for.
        json: whether to print the document.
        document: ``module:function`` that makes the document; imported only if it is needed.
        text: ``module:function`` that prints the answer on a console; likewise.
        output: a file.
        **details: what else the text shows.

    Raises:
        UllageError: standard output or the file cannot be written.
    """
    made = _named(document)(answer) if json or output is not None else {}
    if output is not None:
        _write(made, output)
    if json:
        _print_json(made)
    else:
        _print(partial(_named(text), **details), answer)


def _named(reference: str) -> Any:
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def _print(render: Callable[[Any, Console], None], answer: object) -> None:
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    with _standard_output():
        render(answer, Terminal(highlight=False))


def _print_json(document: dict[str, Any]) -> None:
    from json import dumps

    with _standard_output():
        print(dumps(document, indent=1))


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


def _write(document: dict[str, Any], path: str) -> None:
    from json import dumps
    from pathlib import Path

    from analytic.writing import write_text

    if not path:
        raise UsageError("--output names no file", hint="write -o estimate.json")
    write_text(Path(path), dumps(document, indent=1) + "\n")
