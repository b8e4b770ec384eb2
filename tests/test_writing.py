"""Users' output files."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analytic.errors import UllageError
from analytic.writing import write_text


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "answer.json"
    for text in ("one", "two"):
        write_text(file, text, make_folder=True)
        assert file.read_text() == text
    assert [*file.parent.iterdir()] == [file]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "answer")
    reader.join()
    assert heard == ["answer"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_standard_output_is_written_to_where_it_is_a_pipe() -> None:
    code = "from pathlib import Path; from analytic.writing import write_text; write_text(Path('/dev/stdout'), 'new')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "new"


def test_the_null_device_stays_one() -> None:
    before = os.stat(os.devnull)
    write_text(Path(os.devnull), "answer")
    assert stat.S_ISCHR(before.st_mode)
    assert os.stat(os.devnull).st_rdev == before.st_rdev


def test_what_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "answer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "answer"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UllageError, match="cannot be written: Is a directory"):
        write_text(tmp_path, "answer")
