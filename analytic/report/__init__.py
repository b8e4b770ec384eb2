"""How answers are shown; nothing is computed here."""

from typing import Literal

SCHEMA_VERSION = "1"
"""Of the JSON documents that commands print."""

Status = Literal["fits", "tight", "no"]
"""Fits at both bounds; only within the bounds of error; does not, even at the low bound."""
