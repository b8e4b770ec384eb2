"""What a GPU costs an hour, from a file of the user's: TOML or JSON, a number a GPU."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analytic.errors import UllageError
from analytic.hardware import find_gpu

LARGEST_FILE_BYTES = 2**20
"""A price list of more is none."""

_EXAMPLE = 'write it like h100-80gb = 2.49 (TOML) or {"h100-80gb": 2.49} (JSON): a GPU, and its price an hour'


def read_prices(path: Path) -> Mapping[str, float]:
    """Prices an hour by the GPU's name in the table, in whatever currency.

    Raises:
        UllageError: the file cannot be read, or is no price list.
        UsageError: it names a GPU that is not in the table.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise UllageError(f"{path}: too large for a price list", hint=_EXAMPLE)
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UllageError(f"{path}: cannot be read: {reason}", hint=_EXAMPLE) from error
    try:
        rows: Any = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UllageError(f"{path}: {error}", hint=_EXAMPLE) from error
    if not isinstance(rows, dict) or not rows:
        raise UllageError(f"{path}: holds no prices", hint=_EXAMPLE)
    return {find_gpu(name).name: _price(path, name, value) for name, value in rows.items()}


def _price(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UllageError(f"{path}: {name}: {value!r} is no price", hint=_EXAMPLE)
    return float(value)
