"""What weight formats cost in quality, as far as studies have measured it (``quality.toml``)."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files


@cache
def _costs() -> Mapping[str, tuple[str, str]]:
    rows = tomllib.loads(files("analytic.formats").joinpath("quality.toml").read_text("utf-8"))["cost"]
    return {name.lower(): (row["cost"], row["source"]) for row in rows for name in row["formats"]}


def quality_cost(name: str | None) -> tuple[str, str] | None:
    """What was measured of a ``--quantization``, and by whom; None where nothing is known."""
    return None if name is None else _costs().get(name.lower())
