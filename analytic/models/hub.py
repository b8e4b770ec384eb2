"""A model on the Hub: its configuration and the headers of its safetensors files, never a weight.

Everything goes through ``huggingface_hub``, so HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean
there. Headers are asked for by byte range and kept, by commit, under ULLAGE_CACHE_DIR (or the user's cache directory).
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from analytic.errors import UllageError, UsageError
from analytic.models.configfile import CONFIG, MAX_CONFIG_BYTES, parse_config, parse_object, read_bounded, read_config
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
    stored_bytes,
    unindexed_files,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

IN_FLIGHT = 16
"""Headers asked for at a time."""
SHOW_PROGRESS_FROM = 8
"""Shards from which a progress bar is worth its line."""
ATTEMPTS = 3
"""Tries for one byte range when the connection breaks."""
RETRY_SECONDS = 0.5
"""Wait before the second try; doubled for the third."""

_CACHE_SCHEMA = 1
_MAX_CACHE_BYTES = 1_000_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNREACHABLE_HINT = "check the connection, the proxy and HF_ENDPOINT; HF_HUB_OFFLINE=1 answers from what is cached"
_DENIED = ("access is refused", "accept the model's terms on the Hub, and set HF_TOKEN to a token that may read it")
_ABSENT = ("not found on the Hub, or private", "check the id; for a private model set HF_TOKEN")
_REASONS = {
    "GatedRepoError": ("the model is gated", _DENIED[1]),
    "DisabledRepoError": ("the model is disabled by the Hub", ""),
    "RepositoryNotFoundError": _ABSENT,
    "RevisionNotFoundError": ("no such revision", "name a branch, a tag or a commit of the model"),
    "LocalEntryNotFoundError": ("the Hub could not be reached", _UNREACHABLE_HINT),
    "EntryNotFoundError": ("the model lacks this file", ""),
    "FileMetadataError": ("the server is not a Hub", "check HF_ENDPOINT and the proxy"),
    "OfflineModeIsEnabled": ("offline mode is on", "unset HF_HUB_OFFLINE"),
}
"""What an exception of ``huggingface_hub``, or a base of it, means and the way out; by name, to import nothing."""
_STATUS_REASONS = {
    401: _DENIED,
    403: _DENIED,
    404: _ABSENT,
    416: ("the file is shorter than its header says", "the repository is damaged"),
    429: ("the Hub limits the rate of requests", "wait a few minutes, or set HF_TOKEN"),
}


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


def fetch(repo_id: str, *, revision: str | None = None) -> HubModel:
    """The model ``repo_id`` at ``revision`` (a branch, tag or commit; the main branch if None)."""
    from huggingface_hub import constants

    _require_meaningful(repo_id, revision)
    if constants.HF_HUB_OFFLINE:
        return _fetch_offline(repo_id, revision or constants.DEFAULT_REVISION)
    if revision and (cached := _load(repo_id, revision)):
        return cached
    info = _model_info(repo_id, revision)
    commit = _commit(info, repo_id)
    model = _load(repo_id, commit)
    if model is None:
        model = _download(repo_id, commit, _sizes(info))
        _write(_model_file(repo_id, commit), _encode(model))
    _write(_ref_file(repo_id, revision or constants.DEFAULT_REVISION), {"commit": commit})
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


def _model_info(repo_id: str, revision: str | None) -> "ModelInfo":
    from huggingface_hub import HfApi, constants

    with _naming(f"{repo_id}@{revision}" if revision else repo_id):
        return HfApi(endpoint=constants.ENDPOINT, library_name="ullage").model_info(
            repo_id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )


def _commit(info: "ModelInfo", repo_id: str) -> str:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise UllageError(f"{repo_id}: the server names no commit", hint="check HF_ENDPOINT: is it a Hub?")
    return info.sha


def _sizes(info: "ModelInfo") -> dict[str, int | None]:
    """Files in the repository's root and their sizes: only numbers count, whatever the server listed."""
    files = [file for file in info.siblings or () if isinstance(file.rfilename, str) and "/" not in file.rfilename]
    return {file.rfilename: file.size if type(file.size) is int else None for file in files}


def _download(repo_id: str, commit: str, sizes: Mapping[str, int | None]) -> HubModel:
    where = f"{repo_id}/{CONFIG}"
    if CONFIG not in sizes:
        hint = "for a GGUF repository, download the .gguf file and name it; an adapter needs its base model"
        raise UllageError(f"{repo_id}: no {CONFIG} in the repository", hint=hint)
    config = parse_config(_small_file(repo_id, commit, CONFIG, sizes, limit_bytes=MAX_CONFIG_BYTES), where)
    return HubModel(id=repo_id, commit=commit, config=config, tensors=_tensors(repo_id, commit, sizes))


def _small_file(repo_id: str, commit: str, name: str, sizes: Mapping[str, int | None], *, limit_bytes: int) -> bytes:
    """A JSON file of the repository, through the library's own cache."""
    from huggingface_hub import constants, hf_hub_download

    if (sizes[name] or 0) > limit_bytes:
        raise UllageError(f"{repo_id}/{name}: {sizes[name]:,} bytes, which no such file is")
    with _naming(f"{repo_id}/{name}"):
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
    with _progress(len(names)) as advance, ThreadPoolExecutor(IN_FLIGHT) as pool:
        pending = {name: pool.submit(_header, repo_id, commit, name, sizes[name]) for name in names}
        try:
            for future in as_completed(pending.values()):
                future.result()
                advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: future.result() for name, future in pending.items()}


def _header(repo_id: str, commit: str, name: str, size: int | None) -> tuple[StoredTensor, ...]:
    """The tensors in one file: its first eight bytes, then exactly its header."""
    from huggingface_hub import constants, hf_hub_url

    where = f"{repo_id}/{name}"
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=constants.ENDPOINT)
    prefix, size = _read_range(url, first=0, length=LENGTH_BYTES, size=size, where=where)
    length = parse_length(prefix, where)
    if length < 2 or (size is not None and LENGTH_BYTES + length > size):
        raise UllageError(f"{where}: a header of {length} bytes in a file of {size}", hint="the repository is damaged")
    blob, size = _read_range(url, first=LENGTH_BYTES, length=length, size=size, where=where)
    return parse_header(blob, data_bytes=None if size is None else size - LENGTH_BYTES - length, where=where)


def _read_range(url: str, *, first: int, length: int, size: int | None, where: str) -> tuple[bytes, int | None]:
    """``length`` bytes from ``first`` on, and the file's size; tried again when the connection breaks."""
    for attempt in range(ATTEMPTS):
        try:
            with _naming(where):
                return _read_range_once(url, first=first, length=length, size=size, where=where)
        except _UnreachableError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(RETRY_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _read_range_once(url: str, *, first: int, length: int, size: int | None, where: str) -> tuple[bytes, int | None]:
    """Stop reading at the last byte wanted, whatever the server goes on sending."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, exported lazily
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    wanted = {"Range": f"bytes={first}-{first + length - 1}", "Accept-Encoding": "identity"}
    with http_stream_backoff(
        "GET",
        url,
        headers={**build_hf_headers(library_name="ullage"), **wanted},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=ATTEMPTS - 1,
        base_wait_time=RETRY_SECONDS,
        retry_on_exceptions=(),
    ) as response:
        hf_raise_for_status(response)
        start, total = _span(response.status_code, response.headers, first, where)
        body = _take(response.iter_raw(), first - start + length)[first - start :]
    if len(body) < length:
        raise UllageError(f"{where}: {len(body)} bytes came of {length} asked for", hint="the file is cut short")
    if total is not None and size is not None and total != size:
        raise UllageError(f"{where}: {size:,} bytes by the file list, {total:,} by the server", hint="try again")
    return body, size if total is None else total


def _span(status: int, headers: Mapping[str, str], first: int, where: str) -> tuple[int, int | None]:
    """Where in the file the body begins, and how long the file is, as the server says."""
    if headers.get("content-encoding", "identity") != "identity":
        raise UllageError(f"{where}: the server compresses byte ranges", hint="check HF_ENDPOINT and the proxy")
    if status == 200:  # it ignores Range and sends the file from its start
        length = headers.get("content-length", "")
        return 0, int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if status != 206 or not match or int(match[1]) != first:
        hint = "check HF_ENDPOINT and the proxy"
        raise UllageError(f"{where}: asked for bytes from {first}, the server answered with others", hint=hint)
    return first, None if match[3] == "*" else int(match[3])


def _take(chunks: Iterable[bytes], length: int) -> bytes:
    taken = bytearray()
    for chunk in chunks:
        taken += chunk
        if len(taken) >= length:
            break
    return bytes(taken[:length])


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


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where someone sees it and has to wait; yields what advances it."""
    if total < SHOW_PROGRESS_FROM or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("headers", total=total)
        yield lambda: bar.advance(task)


class _UnreachableError(UllageError):
    """The connection failed, so that trying again may help."""


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises (httpx, OSError, ValueError, hf_xet's own) into a named error."""
    try:
        yield
    except UllageError:
        raise
    except Exception as error:
        raise _named(what, error) from error


def _named(what: str, error: BaseException) -> UllageError:
    if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__:
        error = error.__cause__
    kinds = [kind.__name__ for kind in type(error).__mro__]
    detail = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "TransportError" in kinds:
        return _UnreachableError(f"{what}: the Hub could not be reached: {detail}", hint=_UNREACHABLE_HINT)
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = next((_REASONS[kind] for kind in kinds if kind in _REASONS), _STATUS_REASONS.get(status or 0))
    reason, hint = known or (f"the Hub's client failed: {detail}", "try again later")
    return UllageError(f"{what}: {reason}", hint=hint)


def _fetch_offline(repo_id: str, revision: str) -> HubModel:
    model = _load(repo_id, _remembered(repo_id, revision)) or _snapshot(repo_id, revision)
    if model is None:
        hint = "unset HF_HUB_OFFLINE, or run this once online"
        raise UllageError(f"{repo_id}@{revision}: offline mode is on and the model is not cached", hint=hint)
    return model


def _snapshot(repo_id: str, revision: str) -> HubModel | None:
    """The model from the library's own cache, if it was downloaded there."""
    from huggingface_hub import try_to_load_from_cache

    with _naming(f"{repo_id}@{revision}"):
        path = try_to_load_from_cache(repo_id, CONFIG, revision=revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parent
    config, tensors = read_config(path), read_directory(folder)
    if tensors is None:
        hint = f"unset HF_HUB_OFFLINE, or estimate from the configuration alone: {path}"
        raise UllageError(f"{repo_id}@{revision}: offline mode is on and only its {CONFIG} is cached", hint=hint)
    return HubModel(id=repo_id, commit=folder.name, config=config, tensors=tensors)


def _cache_directory(repo_id: str) -> Path:
    from platformdirs import user_cache_dir

    return Path(os.environ.get("ULLAGE_CACHE_DIR") or user_cache_dir("ullage")) / "hub" / repo_id.replace("/", "--")


def _model_file(repo_id: str, commit: str) -> Path:
    return _cache_directory(repo_id) / f"{commit}.json"


def _ref_file(repo_id: str, revision: str) -> Path:
    return _cache_directory(repo_id) / "refs" / f"{quote(revision, safe='')}.json"


def _remembered(repo_id: str, revision: str) -> str:
    """The commit that a branch or tag stood for when it was last seen; the revision itself if never."""
    with suppress(UllageError):
        commit = parse_object(read_bounded(_ref_file(repo_id, revision), limit_bytes=1000), "", limit_bytes=1000)
        return str(commit.get("commit", revision))
    return revision


def _load(repo_id: str, commit: str) -> HubModel | None:
    """The cached model; None where there is none, or one that cannot be trusted."""
    if not _COMMIT.fullmatch(commit):
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
