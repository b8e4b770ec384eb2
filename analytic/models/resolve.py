"""MODEL on the command line: a path, a catalogue name, or a Hub id."""

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from analytic.errors import UllageError, UsageError
from analytic.models import catalog
from analytic.models.model import Model, Source
from analytic.models.safetensors import StoredTensor
from analytic.progress import showing

_SUFFIXES = (".json", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings that name a file of a model, never a model of the Hub."""


@contextmanager
def _without_collector() -> Iterator[None]:
    """A large checkpoint is 100,000 small objects, none in a cycle: looking for cycles takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def resolve(name: str, *, revision: str | None = None) -> Model:
    """The model that ``name`` means.

    A path wins where something is there; then the catalogue (without ``revision``); then the Hub.

    Raises:
        UllageError: nothing by that name, or it cannot be read.
    """
    if not name.strip() or "\0" in name:
        raise UsageError(
            f"{name!r} names no model", hint="give a directory, a catalogue name or a Hub id like org/name"
        )
    if (asked := _hub_gguf(name)) is not None:
        return _read_hub_gguf(*asked, revision)
    if _is_path(name):
        if revision is not None:
            raise UsageError(f"{name}: a path has no revision", hint="leave --revision out")
        return _local(_expanded(name))
    known = None if revision is not None else catalog.find(name)
    if known is not None:
        return catalog.load(known)
    if name.count("/") == 1:
        return _hub(name, revision)
    raise _unknown(name, revision)


_HUB_GGUF = re.compile(r"(?P<repo>[^/:\s]+/[^/:\s]+)(?::(?P<quant>[^/:\s]+)|/(?P<file>[^:\s]+\.gguf))")


def _hub_gguf(name: str) -> tuple[str, str | None, str | None] | None:
    """Repository, quantisation and file of ``ORG/NAME:Q4_K_M`` or ``ORG/NAME/FILE.gguf``; None of anything else."""
    match = _HUB_GGUF.fullmatch(name)
    if match is None or name.startswith((".", "/", "~")) or _exists(name):
        return None
    return match["repo"], match["quant"], match["file"]


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than any path
        return False


def _read_hub_gguf(repo: str, quantization: str | None, file: str | None, revision: str | None) -> Model:
    from analytic.models.gguf_model import from_gguf
    from analytic.models.hub_gguf import fetch_gguf

    with showing("header", of=repo):
        header, name, commit = fetch_gguf(repo, quantization=quantization, file=file, revision=revision)
    return from_gguf(header, id=f"{repo}/{name}", revision=commit)


def _is_path(name: str) -> bool:
    if name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES):
        return True
    return _exists(name)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UllageError(f"{name}: no such home directory", hint="write the path out") from error


def _unknown(name: str, revision: str | None) -> UllageError:
    if revision is not None and (known := catalog.find(name)):
        return UsageError(
            f"{name}: the catalogue keeps no revisions", hint=f"name the Hub's model: {catalog.load(known).id}"
        )
    close = catalog.close_names(name)
    hint = f"did you mean {' or '.join(close)}?" if close else "see ullage models, or give a Hub id like org/name"
    return UllageError(f"model {name!r} is neither in the catalogue nor a path", hint=hint)


def _local(path: Path) -> Model:
    try:
        kind = "directory" if path.is_dir() else path.suffix
    except OSError as error:
        raise UllageError(f"{str(path)[:80]}: cannot be read: {error.strerror}") from error
    return _READERS.get(kind, _read_other)(path)


def _read_directory(path: Path) -> Model:
    from analytic.models.configfile import read_config
    from analytic.models.safetensors import read_directory

    return _from(read_config(path), read_directory(path), id=str(path), source="local")


def _read_weights(path: Path) -> Model:
    from analytic.models.configfile import CONFIG, read_config
    from analytic.models.safetensors import read_file

    tensors = read_file(path)
    return _from(read_config(path.parent / CONFIG), tensors, id=str(path), source="local")


def _read_config(path: Path) -> Model:
    from analytic.models.configfile import read_config

    return _from(read_config(path), None, id=str(path), source="local")


def _read_other(path: Path) -> Model:
    if not path.exists():
        raise UllageError(f"{path}: no such file or directory", hint="check the path")
    hint = "name the model's directory, its config.json or a .safetensors file"
    if path.suffix in _SUFFIXES:
        raise UllageError(f"{path}: a pickle, which ullage never opens: unpickling can run code", hint=hint)
    raise UllageError(f"{path}: not a file that describes a model", hint=hint)


def _read_gguf(path: Path) -> Model:
    from analytic.models.gguf import read_gguf
    from analytic.models.gguf_model import from_gguf

    return from_gguf(read_gguf(path), id=str(path))


_READERS: dict[str, Callable[[Path], Model]] = {
    "directory": _read_directory,
    ".gguf": _read_gguf,
    ".safetensors": _read_weights,
    ".json": _read_config,
}


def _hub(name: str, revision: str | None) -> Model:
    from analytic.models import hub

    found = hub.fetch(name, revision=revision)
    return _from(found.config, found.tensors, id=found.id, source="hub", revision=found.commit)


def _from(
    config: Mapping[str, Any],
    stored: tuple[StoredTensor, ...] | None,
    *,
    id: str,
    source: Source,
    revision: str | None = None,
) -> Model:
    """From the headers where their names are understood, else from the config on the meta device."""
    from analytic.models import meta
    from analytic.models.headers import UnfamiliarError, from_headers, stored_dtype

    _require_sound(config, id)
    if stored is None:
        with showing("build on the meta device", of=id):
            return meta.from_config(config, id=id, source=source, revision=revision)
    try:
        return from_headers(stored, config, id=id, source=source, revision=revision)
    except UnfamiliarError as unfamiliar:
        try:
            with showing("build on the meta device", of=id):
                model = meta.from_config(config, id=id, source=source, revision=revision)
        except meta.NoTorchError:
            raise unfamiliar from None
        note = f"{unfamiliar.message}: counted is the class that transformers builds of config.json"
        return replace(model, dtype=model.dtype or stored_dtype(stored), notes=(*model.notes, note))


def _require_sound(config: Mapping[str, Any], id: str) -> None:
    """Refuse impossible sizes before anything is built of them, and a type that needs the repository's code."""
    from analytic.models.config_reader import ALIASES, FAMILIES, WRAPPERS, read_geometry
    from analytic.models.configfile import architecture_of

    architecture_of(config)
    model_type = config.get("model_type")
    if model_type in (*FAMILIES, *WRAPPERS, *ALIASES):
        read_geometry(config)
    elif config.get("auto_map"):
        raise UllageError(
            f"{id}: model_type {str(model_type)[:60]!r} needs the repository's own code (auto_map), which is never run",
            hint="use a version of the model for a transformers release that has the class built in",
        )
