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
from analytic.formats.registry import find_method
from analytic.models.catalog import group_from_row, published_dtype, row_from_group
from analytic.models.inventory import ROLES, TensorGroup
from analytic.models.model import Model, Source
from analytic.models.packed import quantization_of
from analytic.models.packing import pack_by_rules


class NoTorchError(UllageError):
    """torch or transformers is not installed."""


def from_config(config: Mapping[str, Any], *, id: str, source: Source = "meta", revision: str | None = None) -> Model:
    """The model that the installed transformers builds of ``config``.

    Raises:
        UllageError: torch or transformers is missing, or cannot build it.
    """
    native = quantization_of(config)
    if native is None or _is_marked_by_class(native):
        architecture, tensors = _cached(config if native is None else {**config, "quantization_config": native})
    else:
        rules = find_method(str(native["quant_method"])).read(native)
        architecture, plain = _cached(_without_quantization(config))
        tensors, config = tuple(pack_by_rules(plain, rules)), {**config, "quantization_config": native}
    return Model(
        id=id,
        source=source,
        revision=revision,
        architecture=architecture,
        dtype=published_dtype(config),
        config=config,
        tensors=tensors,
    )


def _is_marked_by_class(native: Mapping[str, Any]) -> bool:
    """Whether transformers' own quantiser tells on the meta device which tensors it packs."""
    plain_fp8 = native.get("weight_block_size") == [128, 128] and native.get("scale_fmt") in (None, "float")
    return native["quant_method"] == "mxfp4" or (native["quant_method"] == "fp8" and plain_fp8)


def _without_quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    keys = ("quantization_config", "quantization")
    nested = config.get("text_config")
    plain = {key: value for key, value in config.items() if key not in keys}
    if isinstance(nested, Mapping):
        plain["text_config"] = {key: value for key, value in nested.items() if key not in keys}
    return plain


_Described = tuple[str, tuple[TensorGroup, ...]]


def _cached(config: Mapping[str, Any]) -> _Described:
    file = _cache_file(config)
    try:
        return _decode(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        architecture, tensors = _describe(config)
    _write(file, {"architecture": architecture, "tensors": [row_from_group(group) for group in tensors]})
    return architecture, tensors


def _decode(document: Any) -> _Described:
    """What a cache file holds; a file that was not written by `_write` raises."""
    tensors = tuple(group_from_row(row) for row in document["tensors"])
    sound = all(isinstance(g.name, str) and g.role in ROLES and {int} >= {*map(type, g.shape)} for g in tensors)
    if not tensors or not sound or not isinstance(document["architecture"], str):
        raise ValueError("not an inventory")
    return document["architecture"], tensors


def _describe(config: Mapping[str, Any]) -> _Described:
    try:
        models = import_module("profiler.models")
    except ImportError as error:
        raise NoTorchError(
            f"a config alone needs {error.name or 'torch'} to tell its tensors",
            hint="pip install 'ullage[profiler]', or give the checkpoint's safetensors beside the config",
        ) from error
    try:
        made = models.describe(config)
    except UllageError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UllageError(
            f"transformers cannot build this config: {reason[:200]}", hint="compare with the published config.json"
        ) from error
    return made["architecture"], tuple(made["tensors"])


def _cache_file(config: Mapping[str, Any]) -> Path:
    from platformdirs import user_cache_dir

    key = json.dumps([config, _installed("transformers"), _installed("ullage")], sort_keys=True)
    folder = Path(os.environ.get("ULLAGE_CACHE_DIR") or user_cache_dir("ullage"))
    return folder / "meta" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Atomically; a cache that cannot be written is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(document))
        os.replace(partial, file)
    except OSError:
        return
