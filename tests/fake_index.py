"""A package index on this machine with one wheel, for pip itself and for the client that fetches after it."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fake_server import FakeServer, Handler, serving


@dataclass
class FakeIndex(FakeServer):
    """What it serves, and what Kamado's own client (not pip) asked of it."""

    wheel: Path
    package: str = "tiny-model"
    port: int = 0
    ranges: bool = True
    metadata: bool = True
    """Whether the wheel's metadata lie beside it (PEP 658)."""
    hashes: bool = True
    password: str | None = None
    status: int = 200
    """Answer to Kamado's requests for the wheel."""
    broken: bytes = b""
    """Sent to Kamado instead of the wheel."""
    cuts: list[int] = field(default_factory=list)
    """Close the connection after this many bytes of an answer to Kamado; each is used up by one answer."""
    stall_after: int | None = None
    """Send Kamado this many bytes, then nothing until `released`; used up by one answer."""
    requests: list[str | None] = field(default_factory=list)
    """The Range header of each of Kamado's requests."""
    whole_to_pip: int = 0
    """How often pip got the whole wheel."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"

    def page(self, content: bytes) -> bytes:
        fragment = f"#sha256={hashlib.sha256(content).hexdigest()}" if self.hashes else ""
        extra = ' data-dist-info-metadata="true"' if self.metadata else ""
        name = self.wheel.name
        return f'<!DOCTYPE html><body><a href="/files/{name}{fragment}"{extra}>{name}</a></body>'.encode()


class _Handler(Handler):
    index: FakeIndex

    def do_HEAD(self) -> None:  # noqa: N802 - the name that http.server calls
        self.answer()

    def answer(self) -> None:
        index = self.index
        path = urlsplit(self.path).path  # a proxy is asked for whole addresses
        content = index.wheel.read_bytes()
        wanted = f"Basic {base64.b64encode(f'user:{index.password}'.encode()).decode()}"
        if index.password is not None and self.headers.get("Authorization") != wanted:
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
        elif path == f"/simple/{index.package}/":
            self._send(200, index.page(content), {"Content-Type": "text/html"})
        elif path == f"/files/{index.wheel.name}.metadata" and index.metadata:
            with zipfile.ZipFile(index.wheel) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
                self._send(200, archive.read(name))
        elif path == f"/files/{index.wheel.name}":
            self._wheel(content)
        else:
            self._send(404, b"")

    def _wheel(self, content: bytes) -> None:
        index = self.index
        asked = self.headers.get("Range")
        is_pip = str(self.headers.get("User-Agent")).startswith("pip/")
        if not is_pip:
            index.requests.append(asked)
            content = index.broken or content
            if index.status != 200:
                self._send(index.status, b"")
                return
        headers = {"Accept-Ranges": "bytes"} if index.ranges else {}
        if asked is None or not index.ranges:
            index.whole_to_pip += is_pip and self.command == "GET"
            self._send(200, content, headers, to_kamado=not is_pip)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        end = int(last) + 1 if first and last else len(content)
        if start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(206, content[start:end], headers, to_kamado=not is_pip)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, to_kamado: bool = False
    ) -> None:
        index = self.index
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if to_kamado and index.cuts:
            body = body[: index.cuts.pop(0)]
            self.close_connection = True
        stall_after = None
        if to_kamado:
            stall_after, index.stall_after = index.stall_after, None
        self.send_body(body, index, stall_after)


@contextmanager
def fake_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIndex]:
    """Serve `wheel` while the body runs; pip in this process's children takes the server for its only index."""
    index = FakeIndex(wheel)
    with serving(index, type("Handler", (_Handler,), {"index": index})) as index.port:
        for name in [*os.environ]:
            if name.startswith("PIP_") or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in {"PIP_INDEX_URL": index.url, "PIP_CONFIG_FILE": os.devnull}.items():
            monkeypatch.setenv(name, value)
        yield index
