"""Output where Unicode cannot be written: ASCII stand-ins, so that nothing is lost and nothing is a question mark."""

import codecs
from typing import TextIO

STAND_INS = {
    **dict(
        zip(
            "×–−…≥≤≈±·●◐→’“”",
            ("x", "-", "-", "...", ">=", "<=", "~", "+-", ".", "+", "~", "->", "'", '"', '"'),
            strict=True,
        )
    ),
    **dict(zip("▁▂▃▄▅▆▇█", "_.-=+*%#", strict=True)),
}
"""By character. Those of tables and bars are one column wide, so that columns stay below each other."""

_HANDLER = "ullage-stand-ins"


def degrade(stream: TextIO) -> None:
    """Let ``stream`` write stand-ins, and escapes where there are none, for what its encoding cannot carry."""
    codecs.register_error(_HANDLER, _stand_in)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=_HANDLER)


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(STAND_INS.get(character) or _escape(character) for character in lost), error.end


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
