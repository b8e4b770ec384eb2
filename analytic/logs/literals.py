"""Settings as engines print them: ``key=value`` lists and Python dictionaries, read and never run."""

import re
from collections.abc import Iterator

_NAMED = {"None": None, "True": True, "False": False}
_NUMBER = re.compile(r"-?\d{1,18}(?:\.\d{1,18})?(?:e-?\d{1,3})?")
_ESCAPED = re.compile(r"\\(['\"\\])")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def top_level(text: str) -> Iterator[str]:
    """The parts of ``a=1, b='x, y', c=(2, 3)`` between commas outside of quotes and brackets.

    Stops where the bracket that the text is in closes. The last part is left out where the text ends within a value.
    """
    depth, quote, start, escaped = 0, "", 0, False
    for index, sign in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = sign == "\\"
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in _CLOSING:
            depth += 1
        elif sign in _CLOSING.values():
            if depth == 0:
                yield text[start:index].strip()
                return
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[start:index].strip()
            start = index + 1
    if depth == 0 and not quote:
        yield text[start:].strip()


def pairs(text: str, sign: str) -> dict[str, object]:
    """``name=value`` or ``'name': value`` parts, the first of each name; values that are no literals as they stand."""
    read: dict[str, object] = {}
    for part in top_level(text):
        name, found, value = part.partition(sign)
        name = name.strip().strip("'\"")
        if found and name.isidentifier():
            read.setdefault(name, literal(value.strip()))
    return read


def literal(text: str) -> object:
    """None, a truth value, a number or a string without its quotes; else the text (of ``torch.float16`` the name)."""
    if text in _NAMED:
        return _NAMED[text]
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text or "e" in text else int(text)
    if len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0]:
        return _ESCAPED.sub(r"\1", text[1:-1])
    return text.removeprefix("torch.")
