"""Temporary directories that go away whatever happens: with their process, or at the next start after a kill -9."""

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

_DIRECTORY = re.compile(r"ullage-(?:job|sparse)-([1-9]\d*)-[a-z0-9_]{8}")  # tempfile.mkdtemp draws the last eight


@contextmanager
def scratch_directory(kind: Literal["job", "sparse"], parent: Path) -> Iterator[Path]:
    """A directory named after this process and locked by it, that goes with the context or at the latest at exit.

    What killed processes left behind in ``parent`` goes first.

    Raises:
        OSError: ``parent`` cannot be read or written.
    """
    _remove_stale(parent)
    prefix = f"ullage-{kind}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            with suppress(OSError):  # without locks nobody removes it: see _is_unlocked
                fcntl.flock(lock, fcntl.LOCK_SH)
            yield Path(name)
        finally:
            os.close(lock)


def partial_of(file: str) -> str:
    """Where ``file`` is written before it is whole."""
    return f"{file}.partial"


def _remove_stale(parent: Path) -> None:
    for entry in os.scandir(parent):
        match = _DIRECTORY.fullmatch(entry.name)
        if match and _is_own_directory(entry) and not _is_alive(int(match[1])) and _is_unlocked(entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_own_directory(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        status = entry.stat(follow_symlinks=False)
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_unlocked(path: str) -> bool:
    """Whether no process holds the directory: one in another container or on another host has no pid here."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(lock)
