"""A Hub on the loopback: enough of its HTTP for the real ``huggingface_hub`` client, and it counts every byte.

    hub = LoopbackHub()
    hub.add("acme/tiny", {"config.json": b"{...}", "model.safetensors": SparseFile(header, size=15_000_000_000)})
    with hub:                       # serves at hub.url until the block ends
        ...                         # HF_ENDPOINT=hub.url, or hub.patch(monkeypatch, tmp_path)
    hub.bytes_served("acme/tiny/model.safetensors"), hub.requests

Faults are attributes of the repository (``gated``) or of the server (``ignore_range``, ``redirect_to``, …).
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 1 << 16
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")


@dataclass(frozen=True, kw_only=True)
class SparseFile:
    """A file of any size that takes no room: a head, then zeros."""

    head: bytes
    size: int

    def chunks(self, first: int, last: int) -> Iterator[bytes]:
        """The bytes from ``first`` to ``last``, both included."""
        while first <= last:
            length = min(CHUNK_BYTES, last + 1 - first)
            yield self.head[first : first + length].ljust(length, b"\0")
            first += length


@dataclass(kw_only=True)
class Repository:
    """One model, at one commit."""

    id: str
    files: dict[str, SparseFile]
    commit: str
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    """Its description is public, its files need ``LoopbackHub.token``."""
    listed_sizes: dict[str, object] = field(default_factory=dict)
    """What the file list claims instead of the truth."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    range: str | None
    authorization: str | None


class LoopbackHub:
    """The server; a context manager."""

    def __init__(self, *, token: str = "hf_loopback") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.served: Counter[str] = Counter()
        """Body bytes that left, by ``owner/name/file`` (or the path of the request)."""
        self.pages: dict[str, object] = {}
        """JSON answered for other paths than a model's, or instead."""
        self.redirect_to: str | None = None
        """Another server's url, that GETs of safetensors files are sent to (as the Hub does to its CDN)."""
        self.ignore_range = False
        self.content_range: str | None = None
        """Sent instead of the true Content-Range."""
        self.fail_next: list[int] = []
        """Statuses to answer the next GETs of safetensors files with; 0 hangs up, 1 does so inside the body."""
        self.stall_seconds = 0.0
        """Wait before every answer."""
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo_id: str, files: Mapping[str, bytes | SparseFile], **options: Any) -> Repository:
        """Publish a model; ``options`` are fields of Repository. The commit follows from the files."""
        sparse = {n: f if isinstance(f, SparseFile) else SparseFile(head=f, size=len(f)) for n, f in files.items()}
        digest = hashlib.sha1(repr([(n, f.size, f.head) for n, f in sorted(sparse.items())]).encode()).hexdigest()
        repository = Repository(**{"id": repo_id, "files": sparse, "commit": digest, **options})
        self.repositories[repo_id] = repository
        return repository

    def bytes_served(self, prefix: str = "") -> int:
        """Body bytes that left the server for paths that start so."""
        with self.lock:
            return sum(count for path, count in self.served.items() if path.startswith(prefix))

    def patch(self, monkeypatch: Any, folder: Path) -> None:
        """Point this process's ``huggingface_hub`` and ullage's cache here (the library reads HF_* when imported)."""
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

        close_session()
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("ULLAGE_CACHE_DIR", str(folder / "ullage"))

    def environment(self, folder: Path) -> dict[str, str]:
        """The same for another process."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf-home"),
            "NO_PROXY": "127.0.0.1",
            "ULLAGE_CACHE_DIR": str(folder / "ullage"),
        }

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> None:
        """Stall as asked, at most until the server ends."""
        if self.stall_seconds:
            self._stop.wait(self.stall_seconds)


def safetensors_head(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], **metadata: str) -> SparseFile:
    """A safetensors file of zeros: tensor name to (dtype, shape, bytes)."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    return SparseFile(head=struct.pack("<Q", len(blob)) + blob, size=8 + len(blob) + position)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # the default, 5, drops some of 16 connections made at once, for a second each


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            with hub.lock:
                hub.requests.append(
                    Request(
                        method=self.command,
                        path=unquote(self.path),
                        range=self.headers["Range"],
                        authorization=self.headers["Authorization"],
                    )
                )
                hub.in_flight += 1
                hub.most_in_flight = max(hub.most_in_flight, hub.in_flight)
            hub.wait()
            with hub.lock:  # before the answer, after which the client may ask again
                hub.in_flight -= 1
            try:
                self._route(urlsplit(self.path).path)
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

        def _route(self, path: str) -> None:
            if path in hub.pages:
                return self._send(json.dumps(hub.pages[path]).encode())
            match = _API.fullmatch(path) or _RESOLVE.fullmatch(path)
            repository = hub.repositories.get(match["repo"]) if match else None
            if match is None or repository is None:
                return self._fail(404, "RepoNotFound")
            revision = unquote(match["revision"] or "main")
            if revision not in (repository.commit, *repository.revisions):
                return self._fail(404, "RevisionNotFound")
            if match.re is _API:
                return self._describe(repository)
            return self._resolve(repository, unquote(match["name"]))

        def _describe(self, repository: Repository) -> None:
            files = [
                {"rfilename": name, "size": repository.listed_sizes.get(name, file.size)}
                for name, file in repository.files.items()
            ]
            self._send(json.dumps({"id": repository.id, "sha": repository.commit, "siblings": files}).encode())

        def _resolve(self, repository: Repository, name: str) -> None:
            file, weights = repository.files.get(name), name.endswith(".safetensors")
            if repository.gated and self.headers["Authorization"] != f"Bearer {hub.token}":
                return self._fail(403 if self.headers["Authorization"] else 401, "GatedRepo")
            if file is None:
                return self._fail(404, "EntryNotFound", commit=repository.commit)
            if weights and hub.redirect_to:
                return self._send(b"", status=302, headers={"Location": hub.redirect_to + self.path})
            if weights and hub.fail_next:
                status = hub.fail_next.pop(0)
                return self._fail(status, "") if status > 1 else self._hang_up(answer_first=status == 1)
            return self._serve(repository, name, file)

        def _serve(self, repository: Repository, name: str, file: SparseFile) -> None:
            headers = {
                "X-Repo-Commit": repository.commit,
                "ETag": f'"{hashlib.sha1(file.head).hexdigest()}"',
                "Accept-Ranges": "bytes",
            }
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
            if asked is None or hub.ignore_range:
                return self._body(f"{repository.id}/{name}", file, 0, file.size - 1, 200, headers)
            first, last = int(asked[1]), min(int(asked[2]), file.size - 1)
            if first >= file.size:
                return self._fail(416, "")
            headers["Content-Range"] = hub.content_range or f"bytes {first}-{last}/{file.size}"
            return self._body(f"{repository.id}/{name}", file, first, last, 206, headers)

        def _body(
            self, what: str, file: SparseFile, first: int, last: int, status: int, headers: dict[str, str]
        ) -> None:
            self._start(status, {**headers, "Content-Length": str(last + 1 - first)})
            for chunk in file.chunks(first, last) if self.command == "GET" else ():
                self.wfile.write(chunk)
                with hub.lock:
                    hub.served[what] += len(chunk)

        def _send(self, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self._start(status, {"Content-Length": str(len(body)), **(headers or {})})
            if self.command == "GET":
                self.wfile.write(body)
                with hub.lock:
                    hub.served[self.path] += len(body)

        def _start(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _fail(self, status: int, code: str, *, commit: str = "") -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": commit}
            self._send(b"", status=status, headers={name: value for name, value in headers.items() if value})

        def _hang_up(self, *, answer_first: bool) -> None:
            if answer_first:
                self._start(200, {"Content-Length": "100"})
                self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
