"""MODEL on the command line: a path, a catalogue name, or a Hub id."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analytic.errors import UllageError
from analytic.models import catalog
from analytic.models.model import Model, Source


def resolve(name: str, *, revision: str | None = None) -> Model:
    """The model that ``name`` means.

    A path wins where something is there; then the catalogue (without ``revision``); then the Hub.

    Raises:
        UllageError: nothing by that name, or it cannot be read.
    """
    if _is_path(name):
        if revision is not None:
            raise UllageError(f"{name}: a path has no revision", hint="leave --revision out")
        return _local(Path(name))
    known = None if revision is not None else catalog.find(name)
    if known is not None:
        return catalog.load(known)
    if name.count("/") == 1:
        return _hub(name, revision)
    close = catalog.close_names(name)
    raise UllageError(
        f"model {name!r} is neither in the catalogue nor a path",
        hint=f"did you mean {' or '.join(close)}?" if close else "see ullage models, or give a Hub id like org/name",
    )


def _is_path(name: str) -> bool:
    looks = name.startswith((".", "/", "~")) or name.endswith((".json", ".safetensors", ".gguf")) or not name
    return looks or Path(name).exists()


def _local(path: Path) -> Model:
    from analytic.models.configfile import CONFIG, read_config
    from analytic.models.safetensors import read_directory, read_file

    path = path.expanduser()
    if path.suffix == ".gguf":
        raise UllageError(f"{path}: GGUF files are not read yet", hint="give the model that it was made from")
    if path.suffix == ".safetensors":
        return _from(read_config(path.parent / CONFIG), read_file(path), id=str(path), source="local")
    if path.is_dir():
        return _from(read_config(path), read_directory(path), id=str(path), source="local")
    return _from(read_config(path), None, id=str(path), source="local")


def _hub(name: str, revision: str | None) -> Model:
    from analytic.models import hub

    found = hub.fetch(name, revision=revision)
    return _from(found.config, found.tensors, id=found.id, source="hub", revision=found.commit)


def _from(
    config: Mapping[str, Any], stored: Any, *, id: str, source: Source, revision: str | None = None
) -> Model:
    """From the headers where their names are understood, else from the config on the meta device."""
    from analytic.models import meta
    from analytic.models.headers import from_headers

    if stored is not None:
        model = from_headers(stored, config, id=id, source=source, revision=revision)
        if model is not None:
            return model
    return meta.from_config(config, id=id, source=source, revision=revision)
