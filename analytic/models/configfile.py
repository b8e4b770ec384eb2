"""A model's ``config.json``, read strictly and as data only: nothing that it names is imported or run."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from analytic.errors import UllageError

MAX_CONFIG_BYTES = 10_000_000
"""No real configuration comes near it (the largest hold vocabularies of some 100 KB)."""
CONFIG = "config.json"
QUANT_CONFIG = "hf_quant_config.json"
"""Where older checkpoints of ModelOpt say how they are quantised."""
_BOM = b"\xef\xbb\xbf"


def read_config(path: str | Path) -> dict[str, object]:
    """The configuration in ``path``: a ``config.json`` or the directory that holds one."""
    path = Path(path)
    file = path / CONFIG if path.is_dir() else path
    config = parse_config(read_bounded(file, limit_bytes=MAX_CONFIG_BYTES), str(file))
    beside = file.parent / QUANT_CONFIG
    if file.name != CONFIG or not beside.is_file():
        return config
    return with_quantization(config, read_bounded(beside, limit_bytes=MAX_CONFIG_BYTES), str(beside))


def with_quantization(config: dict[str, object], raw: bytes, where: str) -> dict[str, object]:
    """The configuration with what a ``hf_quant_config.json`` adds to it; both must name the same algorithm."""
    own = parse_object(raw, where, limit_bytes=MAX_CONFIG_BYTES).get("quantization")
    if not isinstance(own, Mapping) or own.get("quant_algo") is None:
        return config
    said = config.get("quantization_config")
    if said is None:
        return {**config, "quantization_config": {"quant_method": "modelopt", **own}}
    if isinstance(said, Mapping) and said.get("quant_algo", own["quant_algo"]) != own["quant_algo"]:
        raise UllageError(
            f"{where}: says quant_algo {str(own['quant_algo'])[:40]!r}, config.json {str(said['quant_algo'])[:40]!r}",
            hint="take both files from the same checkpoint",
        )
    return {**config, "quantization_config": {**own, **said}} if isinstance(said, Mapping) else config


def parse_config(raw: bytes, where: str) -> dict[str, object]:
    """The configuration in ``raw``; ``where`` names its origin in errors."""
    config = parse_object(raw, where, limit_bytes=MAX_CONFIG_BYTES)
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise UllageError(
            f"{where}: no model_type, so it does not say which architecture it describes",
            hint="use the config.json that save_pretrained() of transformers writes",
        )
    return config


def architecture_of(config: Mapping[str, object]) -> str | None:
    """The class that a config names first; None where it names none."""
    names = config.get("architectures")
    if names in (None, []):
        return None
    if not isinstance(names, list) or not isinstance(names[0], str) or not names[0]:
        raise UllageError(
            f"config.json: architectures cannot be {repr(names)[:60]}", hint='it should hold ["LlamaForCausalLM"]'
        )
    return names[0]


def parse_object(
    raw: bytes, where: str, *, limit_bytes: int, quotes: Callable[[dict[str, Any]], int] | None = None
) -> dict[str, object]:
    """The JSON object in ``raw``, refusing what JSON itself leaves open: duplicate keys, NaN, lone surrogates.

    ``quotes`` tells how many quotation marks an object has that the caller will accept. Where the text has as many, no
    duplicate key was dropped, and none of 100,000 inner objects need be looked at one by one.
    """
    if len(raw) > limit_bytes:
        raise UllageError(f"{where}: larger than {limit_bytes:,} bytes, which no such file is")
    if raw.startswith(_BOM):
        raise UllageError(f"{where}: starts with a byte order mark", hint="save it as UTF-8 without one")
    try:
        value = _loads(raw.decode(), quotes)
    except UnicodeDecodeError as error:
        raise UllageError(f"{where}: not UTF-8 at byte {error.start}", hint="save it as UTF-8") from error
    except RecursionError as error:
        raise UllageError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise UllageError(f"{where}: not valid JSON: {error}", hint="the file may be cut short or not JSON") from error
    if not isinstance(value, dict):
        raise UllageError(f"{where}: holds a JSON {type(value).__name__}, not an object")
    return value


def read_bounded(file: Path, *, limit_bytes: int) -> bytes:
    """The bytes of a regular file, one more than ``limit_bytes`` at most."""
    require_file(file)
    with reading(file), file.open("rb") as stream:
        return stream.read(limit_bytes + 1)


def require_file(file: Path) -> None:
    """Refuse a path that is missing, a directory, or something that a read would block on."""
    with reading(file):
        if file.is_dir():
            raise UllageError(f"{file}: is a directory, not a file")
        if not file.exists():
            raise UllageError(f"{file}: no such file", hint="check the path, and that no link is broken")
        if not file.is_file():
            raise UllageError(f"{file}: not a regular file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the path that the system would not let us read."""
    try:
        yield
    except OSError as error:
        raise UllageError(f"{path}: cannot be read: {error.strerror}") from error


def _loads(text: str, quotes: Callable[[dict[str, Any]], int] | None) -> Any:
    if quotes is not None and "\\" not in text:  # without escapes, a string has two
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        if isinstance(value, dict) and text.count('"') == quotes(value):
            return value
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    if "\\" in text and "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be printed or stored
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"duplicate key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r}")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number
