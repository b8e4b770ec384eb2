"""How answers are shown; nothing is computed here."""

SCHEMA_VERSION = "1"
"""Of the JSON documents that commands print."""
