"""Inventories from the meta device, where torch is installed: computed once for a config, then cached by its hash."""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from analytic.errors import UllageError
from analytic.models.catalog import group_from_row, published_dtype, row_from_group
from analytic.models.model import Model, Source


def from_config(config: Mapping[str, Any], *, id: str, source: Source = "meta", revision: str | None = None) -> Model:
    """The model that the installed transformers builds of ``config``.

    Raises:
        UllageError: torch or transformers is missing, or cannot build it.
    """
    described = _cached(config)
    return Model(
        id=id,
        source=source,
        revision=revision,
        architecture=described["architecture"],
        dtype=published_dtype(config),
        config=config,
        tensors=tuple(group_from_row(row) for row in described["tensors"]),
    )


def _cached(config: Mapping[str, Any]) -> dict[str, Any]:
    file = _cache_file(config)
    try:
        cached = json.loads(file.read_bytes())
        return {"architecture": str(cached["architecture"]), "tensors": list(cached["tensors"])}
    except (OSError, ValueError, KeyError, TypeError):
        described = _describe(config)
    _write(file, described)
    return described


def _describe(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        models = import_module("profiler.models")
    except ImportError as error:
        raise UllageError(
            f"a config alone needs {error.name or 'torch'} to tell its tensors",
            hint="pip install 'ullage[profiler]', or give the checkpoint's safetensors beside the config",
        ) from error
    made = models.describe(config)
    return {"architecture": made["architecture"], "tensors": [row_from_group(group) for group in made["tensors"]]}


def _cache_file(config: Mapping[str, Any]) -> Path:
    from platformdirs import user_cache_dir

    try:
        builder = version("transformers")
    except PackageNotFoundError:
        builder = "none"
    key = json.dumps([config, builder, version("ullage")], sort_keys=True)
    folder = Path(os.environ.get("ULLAGE_CACHE_DIR") or user_cache_dir("ullage"))
    return folder / "meta" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Atomically; a cache that cannot be written is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(document))
        os.replace(partial, file)
    except OSError:
        return
