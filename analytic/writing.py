"""Files that users name: whole or not at all, and never in place of what is no file."""

import os
from pathlib import Path

from analytic.errors import UllageError


def write_text(file: Path, text: str, *, make_folder: bool = False) -> None:
    """Write atomically: a reader sees the old file or the whole new one. A pipe or a device is written to.

    Raises:
        UllageError: the folder or file cannot be written.
    """
    try:
        place = file.resolve()
        if place.exists() and not place.is_file():
            with place.open("w", encoding="utf-8") as stream:
                stream.write(text)
        else:
            if make_folder:
                place.parent.mkdir(parents=True, exist_ok=True)
            _replace(place, text)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UllageError(f"{file}: cannot be written: {why}", hint="name another file") from error


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
