"""Files that users name: whole or not at all, and never in place of what is no file."""

import os
from pathlib import Path

from analytic.errors import UllageError


def write_text(file: Path, text: str, *, make_folder: bool = False) -> None:
    """Write atomically, in UTF-8: a reader sees the old file or the whole new one. A pipe or a device is written to.

    Raises:
        UllageError: the folder or file cannot be written.
    """
    write_bytes(file, text.encode(), make_folder=make_folder)


def write_bytes(file: Path, content: bytes, *, make_folder: bool = False) -> None:
    """Write bytes as ``write_text`` does a text.

    Raises:
        UllageError: the folder or file cannot be written.
    """
    try:
        if file.exists() and not file.is_file():
            with file.open("wb") as stream:
                stream.write(content)
        else:
            place = file.resolve()
            if make_folder:
                place.parent.mkdir(parents=True, exist_ok=True)
            _replace(place, content)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UllageError(f"{file}: cannot be written: {why}", hint="name another file") from error


def _replace(file: Path, content: bytes) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
