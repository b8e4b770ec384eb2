"""Byte ranges of a file on the Hub, and what the Hub's client raises as a named error."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from analytic.errors import UllageError

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


class UnreachableError(UllageError):
    """The connection failed, so that trying again may help."""


@contextmanager
def naming(what: str) -> Iterator[None]:
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
        return UnreachableError(f"{what}: the Hub could not be reached: {detail}", hint=_UNREACHABLE_HINT)
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = next((_REASONS[kind] for kind in kinds if kind in _REASONS), _STATUS_REASONS.get(status or 0))
    reason, hint = known or (f"the Hub's client failed: {detail}", "try again later")
    return UllageError(f"{what}: {reason}", hint=hint)


def read_range(
    url: str, *, first: int, length: int, size: int | None, where: str, attempts: int, wait_seconds: float
) -> tuple[bytes, int | None]:
    """``length`` bytes from ``first`` on, and the file's size (``size`` is what is known of it).

    Stops reading at the last byte wanted, whatever the server goes on sending; asks again where it is too busy.
    """
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
        max_retries=attempts - 1,
        base_wait_time=wait_seconds,
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
