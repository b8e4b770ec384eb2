"""The page: one file that needs nothing else, not even a network."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from gzip import compress
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from analytic.calibration import Calibration, shipped
from analytic.engines.engine import find_engine
from analytic.formats.table import itemsize
from analytic.hardware import gpus
from analytic.webpage import tables
from analytic.webpage.arithmetic import program
from analytic.webpage.values import literal
from analytic.weights import DTYPES
from analytic.writing import write_text

_FOLDER = files("analytic.webpage")


def script(calibrations: Iterable[Calibration] | None = None) -> str:
    """Everything that computes, without the page around it.

    Args:
        calibrations: fitted constants to embed; None for those that came with ullage.
    """
    translation = program()
    table = literal({gpu.name: gpu for gpu in gpus()}, translation.name)
    fitted = literal(_by_gpu(calibrations), translation.name)
    parts = (
        _text("runtime.js"),
        _text("tables.js"),
        translation.javascript(),
        f"const $gpus = {table};",
        f"const $calibrations = {fitted};",
        _text("asking.js"),
    )
    return "\n".join(parts)


def _by_gpu(calibrations: Iterable[Calibration] | None) -> dict[str, Calibration]:
    """The calibration that an estimate takes, by the name of its GPU."""
    if calibrations is None:
        found = {gpu.name: shipped(gpu) for gpu in gpus()}
        return {name: calibration for name, calibration in found.items() if calibration is not None}
    return {gpu.name: made for made in calibrations for gpu in gpus() if made.holds_for(gpu)}


def data(names: Iterable[str] | None = None) -> dict[str, Any]:
    """The tables, as JSON; ``names`` leaves the other models out."""
    return {
        "models": tables.models(names),
        "presets": tables.presets(),
        "methods": tables.methods(),
        "bits": tables.bits(),
        "itemsize": {dtype: itemsize(dtype) for dtype in DTYPES},
    }


def html() -> str:
    """The page."""
    code, style = f"{script()}\n{_text('page.js')}", _text("page.css")
    parts = {
        "version": version("ullage"),
        **{name: find_engine(name).VERSION for name in ("transformers", "vllm")},
        "style": style,
        "style_hash": _hash(style),
        "script_hash": _hash(code),
        "tables": _packed(data()),
        "script": code,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("template.html"))


def write(folder: Path) -> Path:
    """Write ``index.html`` into a folder, which is made; returns its path.

    Raises:
        UllageError: it cannot be written.
    """
    file = folder / "index.html"
    write_text(file, html(), make_folder=True)
    return file


def _hash(text: str) -> str:
    """What a Content-Security-Policy allows a ``<script>`` or ``<style>`` by."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _packed(document: dict[str, Any]) -> str:
    """A document as compressed text."""
    return b64encode(compress(json.dumps(document, separators=(",", ":")).encode(), 9, mtime=0)).decode()


def _text(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")
