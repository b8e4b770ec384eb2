"""A model on the Hub: its configuration and the headers of its safetensors files, never a weight.

Everything goes through ``huggingface_hub``, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean
there. Headers are asked for by byte range and kept, by commit, under ULLAGE_CACHE_DIR (or the user's cache directory).
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analytic.errors import UllageError, UsageError
from analytic.models.configfile import (
    CONFIG,
    MAX_CONFIG_BYTES,
    QUANT_CONFIG,
    parse_config,
    read_bounded,
    read_config,
    with_quantization,
)
from analytic.models.hubcache import COMMIT, HubModel, keep, load, remembered
from analytic.models.in_flight import in_flight
from analytic.models.ranges import UnreachableError, naming, read_range
from analytic.models.safetensors import (
    INDEX,
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    StoredTensor,
    join_shards,
    parse_header,
    parse_index,
    parse_length,
    read_directory,
    require_shards,
    shard_names,
    unindexed_files,
)
from analytic.progress import showing
from analytic.stopping import hinting

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

IN_FLIGHT = 16
"""Headers asked for at a time."""
ATTEMPTS = 3
"""Tries for one byte range when the connection breaks."""
RETRY_SECONDS = 0.5
"""Wait before the second try; doubled for the third."""


@hinting("start it again: the headers of a model are kept when all of them are read")
def fetch(repo_id: str, *, revision: str | None = None) -> HubModel:
    """The model ``repo_id`` at ``revision`` (a branch, tag or commit; the main branch if None)."""
    from huggingface_hub import constants

    _require_meaningful(repo_id, revision)
    if constants.HF_HUB_OFFLINE:
        return _fetch_offline(repo_id, revision or constants.DEFAULT_REVISION)
    if revision and (cached := load(repo_id, revision)):
        return cached
    info = model_info(repo_id, revision)
    commit = commit_of(info, repo_id)
    model = load(repo_id, commit)
    if model is None:
        model = _download(repo_id, commit, _sizes(info))
        keep(model)
    keep(model, revision or constants.DEFAULT_REVISION)
    return model


def _require_meaningful(repo_id: str, revision: str | None) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, exported lazily

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        hint = "a Hub id is owner/name; a directory, config.json, .safetensors or .gguf file must exist"
        raise UsageError(f"{repo_id!r} is neither a model on this machine nor a Hub id", hint=hint) from error
    if revision is not None and not revision.strip():
        raise UsageError("the revision is empty", hint="name a branch, a tag or a commit")


def model_info(repo_id: str, revision: str | None) -> "ModelInfo":
    """What the Hub says of a repository at a revision."""
    from huggingface_hub import HfApi, constants

    with showing("ask the Hub", of=repo_id), naming(f"{repo_id}@{revision}" if revision else repo_id):
        return HfApi(endpoint=constants.ENDPOINT, library_name="ullage").model_info(
            repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )


def commit_of(info: "ModelInfo", repo_id: str) -> str:
    """The commit that the Hub names."""
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise UllageError(f"{repo_id}: the server names no commit", hint="check HF_ENDPOINT: is it a Hub?")
    return info.sha


def _sizes(info: "ModelInfo") -> dict[str, int | None]:
    """Files in the repository's root and their sizes: only numbers count, whatever the server listed."""
    files = [file for file in info.siblings or () if isinstance(file.rfilename, str) and "/" not in file.rfilename]
    return {file.rfilename: file.size if type(file.size) is int else None for file in files}


def _download(repo_id: str, commit: str, sizes: Mapping[str, int | None]) -> HubModel:
    where = f"{repo_id}/{CONFIG}"
    if CONFIG not in sizes:
        hint = f"for a GGUF repository, name the quantisation: {repo_id}:Q4_K_M; an adapter needs its base model"
        raise UllageError(f"{repo_id}: no {CONFIG} in the repository", hint=hint)
    config = parse_config(_small_file(repo_id, commit, CONFIG, sizes, limit_bytes=MAX_CONFIG_BYTES), where)
    if QUANT_CONFIG in sizes:
        beside = _small_file(repo_id, commit, QUANT_CONFIG, sizes, limit_bytes=MAX_CONFIG_BYTES)
        config = with_quantization(config, beside, f"{repo_id}/{QUANT_CONFIG}")
    return HubModel(id=repo_id, commit=commit, config=config, tensors=_tensors(repo_id, commit, sizes))


def _small_file(repo_id: str, commit: str, name: str, sizes: Mapping[str, int | None], *, limit_bytes: int) -> bytes:
    """A JSON file of the repository, through the library's own cache."""
    from huggingface_hub import constants, hf_hub_download

    if (sizes[name] or 0) > limit_bytes:
        raise UllageError(f"{repo_id}/{name}: {sizes[name]:,} bytes, which no such file is")
    with showing("download", of=f"{repo_id}/{name}"), naming(f"{repo_id}/{name}"):
        path = hf_hub_download(
            repo_id,
            name,
            revision=commit,
            endpoint=constants.ENDPOINT,
            library_name="ullage",
            tqdm_class=_SilentBound,
        )
    return read_bounded(Path(path), limit_bytes=limit_bytes)


def _tensors(repo_id: str, commit: str, sizes: Mapping[str, int | None]) -> tuple[StoredTensor, ...] | None:
    weight_map: Mapping[str, str] = {}
    if INDEX in sizes:
        where = f"{repo_id}/{INDEX}"
        weight_map = parse_index(_small_file(repo_id, commit, INDEX, sizes, limit_bytes=MAX_HEADER_BYTES), where)
        require_shards(weight_map, sizes, where)
    names = shard_names(weight_map) or unindexed_files(sizes, repo_id)
    if not names:
        return None
    return join_shards(_headers(repo_id, commit, names, sizes), weight_map, repo_id)


def _headers(
    repo_id: str, commit: str, names: Sequence[str], sizes: Mapping[str, int | None]
) -> dict[str, tuple[StoredTensor, ...]]:
    found: dict[str, tuple[StoredTensor, ...]] = {}
    began, received_bytes = time.monotonic(), 0

    def rate() -> str:
        return f"{received_bytes / 1e6 / (time.monotonic() - began):.1f} MB/s"

    ask = partial(_header, repo_id, commit, sizes=sizes)
    with showing("headers", of=repo_id, total=len(names), note=rate, after_s=0) as task:
        for name, (tensors, length) in in_flight(ask, names, at_most=IN_FLIGHT):
            found[name] = tensors
            received_bytes += length
            task.done += 1
    return {name: found[name] for name in names}


def _header(
    repo_id: str, commit: str, name: str, *, sizes: Mapping[str, int | None]
) -> tuple[tuple[StoredTensor, ...], int]:
    """The tensors in one file, from its first eight bytes and then exactly its header; and how many bytes that was."""
    size = sizes[name]
    from huggingface_hub import constants, hf_hub_url

    where = f"{repo_id}/{name}"
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=constants.ENDPOINT)
    prefix, size = read_part(url, first=0, length=LENGTH_BYTES, size=size, where=where)
    length = parse_length(prefix, where)
    if length < 2 or (size is not None and LENGTH_BYTES + length > size):
        raise UllageError(f"{where}: a header of {length} bytes in a file of {size}", hint="the repository is damaged")
    blob, size = read_part(url, first=LENGTH_BYTES, length=length, size=size, where=where)
    data_bytes = None if size is None else size - LENGTH_BYTES - length
    return parse_header(blob, data_bytes=data_bytes, where=where), LENGTH_BYTES + length


def read_part(url: str, *, first: int, length: int, size: int | None, where: str) -> tuple[bytes, int | None]:
    """``length`` bytes from ``first`` on, and the file's size; tried again when the connection breaks."""
    for attempt in range(ATTEMPTS):
        try:
            with naming(where):
                return read_range(
                    url,
                    first=first,
                    length=length,
                    size=size,
                    where=where,
                    attempts=ATTEMPTS,
                    wait_seconds=RETRY_SECONDS,
                )
        except UnreachableError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(RETRY_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


class _SilentBound:
    """The progress bar of a small download: shows nothing, and stops one that does not end."""

    def __init__(self, *_: object, **__: object) -> None:
        self.received_bytes = 0

    def __enter__(self) -> "_SilentBound":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, received_bytes: int = 1) -> None:
        self.received_bytes += received_bytes
        if self.received_bytes > MAX_HEADER_BYTES:
            raise UllageError(f"the server sends more than {MAX_HEADER_BYTES:,} bytes for a small JSON file")


def _fetch_offline(repo_id: str, revision: str) -> HubModel:
    model = load(repo_id, remembered(repo_id, revision)) or _snapshot(repo_id, revision)
    if model is None:
        hint = "unset HF_HUB_OFFLINE, or run this once online"
        raise UllageError(f"{repo_id}@{revision}: offline mode is on and the model is not cached", hint=hint)
    return model


def _snapshot(repo_id: str, revision: str) -> HubModel | None:
    """The model from the library's own cache, if it was downloaded there."""
    from huggingface_hub import try_to_load_from_cache

    with naming(f"{repo_id}@{revision}"):
        path = try_to_load_from_cache(repo_id, CONFIG, revision=revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parent
    config, tensors = read_config(path), read_directory(folder)
    if tensors is None:
        hint = f"unset HF_HUB_OFFLINE, or estimate from the configuration alone: {path}"
        raise UllageError(f"{repo_id}@{revision}: offline mode is on and only its {CONFIG} is cached", hint=hint)
    return HubModel(id=repo_id, commit=folder.name, config=config, tensors=tensors)
