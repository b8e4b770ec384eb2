"""Models of the Hub as they were last seen, under ULLAGE_CACHE_DIR (or the user's cache directory), by commit."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from analytic.errors import UllageError
from analytic.models.configfile import parse_object, read_bounded
from analytic.models.safetensors import StoredTensor, stored_bytes

_CACHE_SCHEMA = 1
_MAX_CACHE_BYTES = 1_000_000_000
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """What the Hub says about a model at one commit."""

    id: str
    """The id that was asked for, ``owner/name``."""
    commit: str
    """Full hash of the commit that everything else was read from."""
    config: dict[str, object]
    """Its ``config.json``, as data: code that it names (``auto_map``) is never run."""
    tensors: tuple[StoredTensor, ...] | None
    """Every tensor in its safetensors files; None for a repository that has none."""


def _cache_directory(repo_id: str) -> Path:
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ULLAGE_CACHE_DIR") or user_cache_dir("ullage")) / "hub" / repo_id.replace("/", "--")


def keep(model: HubModel, revision: str | None = None) -> None:
    """Keep a model by its commit; with ``revision``, also that this is where the branch or tag stood."""
    if revision is None:
        _write(_model_file(model.id, model.commit), _encode(model))
    else:
        _write(_ref_file(model.id, revision), {"commit": model.commit})


def _model_file(repo_id: str, commit: str) -> Path:
    return _cache_directory(repo_id) / f"{commit}.json"


def _ref_file(repo_id: str, revision: str) -> Path:
    return _cache_directory(repo_id) / "refs" / f"{quote(revision, safe='')}.json"


def remembered(repo_id: str, revision: str) -> str:
    """The commit that a branch or tag stood for when it was last seen; the revision itself if never."""
    with suppress(UllageError):
        commit = parse_object(read_bounded(_ref_file(repo_id, revision), limit_bytes=1000), "", limit_bytes=1000)
        return str(commit.get("commit", revision))
    return revision


def load(repo_id: str, commit: str) -> HubModel | None:
    """The cached model; None where there is none, or one that cannot be trusted."""
    if not COMMIT.fullmatch(commit):
        return None
    file = _model_file(repo_id, commit)
    with suppress(UllageError, KeyError, TypeError, ValueError):
        raw = read_bounded(file, limit_bytes=_MAX_CACHE_BYTES)
        return _decode(parse_object(raw, str(file), limit_bytes=_MAX_CACHE_BYTES), repo_id, commit)
    return None


def _encode(model: HubModel) -> dict[str, object]:
    rows = None if model.tensors is None else [[t.name, t.dtype, t.shape, t.file] for t in model.tensors]
    return {"schema": _CACHE_SCHEMA, "id": model.id, "commit": model.commit, "config": model.config, "tensors": rows}


def _decode(record: dict[str, Any], repo_id: str, commit: str) -> HubModel:
    if (record["schema"], record["id"], record["commit"]) != (_CACHE_SCHEMA, repo_id, commit):
        raise ValueError("another model's record")
    if not isinstance(record["config"]["model_type"], str):
        raise TypeError("not a configuration")
    tensors = None if record["tensors"] is None else tuple(_decode_tensor(*row) for row in record["tensors"])
    return HubModel(id=repo_id, commit=commit, config=record["config"], tensors=tensors)


def _decode_tensor(name: str, dtype: str, shape: list[int], file: str) -> StoredTensor:
    if (
        {type(name), type(dtype), type(file)} != {str}
        or {int} | {*map(type, shape)} != {int}
        or min(shape, default=0) < 0
    ):
        raise TypeError("not a tensor")
    size = stored_bytes(dtype, tuple(shape), name)
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), bytes=size, file=file)


def _write(file: Path, record: Mapping[str, object]) -> None:
    """Replace ``file`` in one step; a cache that cannot be written is no error."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(json.dumps(record))
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
