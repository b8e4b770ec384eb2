"""How answers are shown; nothing is computed here."""
