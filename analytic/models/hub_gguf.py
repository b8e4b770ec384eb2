"""GGUF files on the Hub: found by the name of their quantisation, their headers read by byte ranges."""

import re
from collections.abc import Mapping

from analytic.errors import UllageError
from analytic.models import hub
from analytic.models.gguf import GgufHeader, join_parts, parse_gguf, read_gguf

_SHARD = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_TOWERS = re.compile(r"(^|/)(mmproj|.*mmproj)[^/]*$", re.IGNORECASE)


def fetch_gguf(
    repo_id: str, *, quantization: str | None = None, file: str | None = None, revision: str | None = None
) -> tuple[GgufHeader, str, str]:
    """The header of a GGUF file (or set of files) of a repository, the file's name and the commit.

    Args:
        repo_id: ``owner/name``.
        quantization: what the file's name holds, as llama.cpp's ``-hf owner/name:Q4_K_M`` means it.
        file: the name itself, folders included; a set by any of its parts.
        revision: branch, tag or commit.

    Raises:
        UllageError: no such file or several, or the Hub cannot be read.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(repo_id, file, revision or constants.DEFAULT_REVISION)
    info = hub.model_info(repo_id, revision)
    commit = hub.commit_of(info, repo_id)
    sizes = {s.rfilename: s.size if type(s.size) is int else None for s in info.siblings or ()}
    name = _chosen(repo_id, sizes, quantization, file)
    folder, _, base = name.rpartition("/")

    def read(own: str) -> GgufHeader:
        path = f"{folder}/{own}" if folder else own
        if path not in sizes:
            raise UllageError(f"{repo_id}/{path}: missing from the repository", hint="its set of files is incomplete")
        return _header(repo_id, commit, path, sizes[path])

    return join_parts(base, read), name, commit


def gguf_files(names: Mapping[str, object]) -> list[str]:
    """The models among a repository's files: one name a set, without vision towers."""
    found = (name for name in names if name.endswith(".gguf") and not _TOWERS.search(name))
    return sorted(name for name in found if (match := _SHARD.search(name)) is None or int(match[1]) == 1)


def _chosen(repo_id: str, sizes: Mapping[str, object], quantization: str | None, file: str | None) -> str:
    models = gguf_files(sizes)
    if file is not None:
        if file in sizes:
            return file
        raise UllageError(f"{repo_id}: no file {file!r}", hint=_named(repo_id, models))
    if quantization is not None:
        pattern = re.compile(rf"(^|[-._/]){re.escape(quantization)}([-._/]|$)", re.IGNORECASE)
        models = [name for name in models if pattern.search(name.removesuffix(".gguf"))]
    if len(models) == 1:
        return models[0]
    wanted = "" if quantization is None else f" of {quantization}"
    every = gguf_files(sizes)
    raise UllageError(f"{repo_id}: {len(models) or 'no'} GGUF models{wanted}", hint=_named(repo_id, models or every))


def _named(repo_id: str, models: list[str]) -> str:
    shown = ", ".join(models[:12]) + (" …" if len(models) > 12 else "")
    return f"name one: {repo_id}/FILE.gguf, of {shown}" if models else "the repository holds no .gguf file"


def _header(repo_id: str, commit: str, name: str, size: int | None) -> GgufHeader:
    from huggingface_hub import constants, hf_hub_url

    where = f"{repo_id}/{name}"
    url = hf_hub_url(repo_id, name, revision=commit, endpoint=constants.ENDPOINT)

    def read(first: int, length: int) -> bytes:
        blob, _ = hub.read_part(url, first=first, length=length, size=size, where=where)
        return blob

    return parse_gguf(read, size=size, where=where)


def _cached(repo_id: str, file: str | None, revision: str) -> tuple[GgufHeader, str, str]:
    """A file that the library downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    path = None if file is None else try_to_load_from_cache(repo_id, file, revision=revision)
    if file is None or not isinstance(path, str):
        hint = "unset HF_HUB_OFFLINE, or name a downloaded file: OWNER/NAME/FILE.gguf"
        raise UllageError(f"{repo_id}@{revision}: offline mode is on and the file is not cached", hint=hint)
    return read_gguf(path), file, revision
