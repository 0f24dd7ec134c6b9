"""A hub on this machine: enough of the real one's interface for huggingface_hub's own client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from fake_server import FakeServer, Handler, serving


@dataclass
class FakeHub(FakeServer):
    """One repository, `org/name`, and what was asked of the server."""

    files: dict[str, bytes]
    url: str = ""
    commit: str = "c" * 40
    large: int = 64
    """Files of at least this size are told with their sha256, as the hub does with large ones."""
    requests: list[tuple[str, int]] = field(default_factory=list)
    """(file, first byte asked for), in order."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Close the connection after this many bytes of a file's answer; used up by it."""
    stall_after: dict[str, int] = field(default_factory=dict)
    """Send this many bytes of a file, then nothing until `released`."""
    status: int = 200
    served: dict[str, bytes] = field(default_factory=dict)
    """Bytes that are sent instead of the file's own."""

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if len(content) >= self.large:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": "org/name", "modelId": "org/name", "sha": self.commit, "siblings": siblings, "tags": []}


class _Handler(Handler):
    hub: FakeHub

    def answer(self) -> None:
        hub = self.hub
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name"):
            self._answer(hub.status, json.dumps(hub.info()).encode())
        elif path.startswith(f"/org/name/resolve/{hub.commit}/"):
            self._file(path.removeprefix(f"/org/name/resolve/{hub.commit}/"))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        hub = self.hub
        content = hub.served.get(name, hub.files[name])
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        hub.requests.append((name, start))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = content[start:]
        if name in hub.cut_after:
            self.wfile.write(body[: hub.cut_after.pop(name)])
            self.close_connection = True
            return
        self.send_body(body, hub, hub.stall_after.pop(name, None))


@contextmanager
def fake_hub(files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    """Serve `files` as the repository `org/name` while the body runs."""
    hub = FakeHub(dict(files))
    with serving(hub, type("Handler", (_Handler,), {"hub": hub})) as port:
        hub.url = f"http://127.0.0.1:{port}"
        yield hub


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have this process and its children take `url` for the hub."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )  # fmt: skip
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
