"""A process on a terminal of 80 columns, as someone sits before it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

ULLAGE = (sys.executable, "-c", "from analytic.cli import main; main()")
CONTROL_C = b"\x03"

_STUCK_S = 300
"""A process that says nothing for so long hangs."""
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])")


class Terminal:
    """Standard input and error are the terminal; so is standard output, unless it is ``piped``."""

    def __init__(self, *command: str, environment: dict[str, str], piped: bool = False) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=subprocess.PIPE if piped else slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.text = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read on until what came since the last call matches; the rest is for the next."""
        begin = len(self.text)
        while (found := re.compile(pattern).search(self.text, begin)) is None:
            assert self._read(), f"ended without {pattern!r}: {self.text[begin:]!r}"
        return found

    def type(self, keys: bytes) -> None:
        """Control-C reaches every process in the foreground, as the kernel sends it."""
        os.write(self._master, keys)

    def children(self) -> list[int]:
        """Process ids."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        os.close(self._master)
        return self.process.wait()

    @property
    def visible(self) -> list[str]:
        """The lines that stand in the end."""
        return screen(self.text)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], _STUCK_S)
        if not ready:
            self.process.kill()
            raise AssertionError(f"it hangs after {self.text[-500:]!r}")
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        self.text += chunk.decode()
        return bool(chunk)


def screen(text: str) -> list[str]:
    """What a terminal of any height would show: lines, carriage returns, cursor up, erase line; colours left out."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(text):
        if found := _SEQUENCE.match(text, at):
            if found[1] == "A":
                row -= 1
            elif found[1] == "K":
                lines[row] = ""
            at = found.end()
            continue
        sign, at = text[at], at + 1
        if sign == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif sign == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
