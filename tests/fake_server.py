"""What the tests' servers on this machine have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(kw_only=True)
class FakeServer:
    """A server whose answers can stop halfway."""

    stalled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler, ABC):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at the requests that the server kept."""

    def do_GET(self) -> None:
        self.answer()

    @abstractmethod
    def answer(self) -> None:
        """Answer the request that `path` and `headers` are."""

    def send_body(self, body: bytes, server: FakeServer, stall_after: int | None = None) -> None:
        """Send it, or so many bytes of it and the rest when the server is released."""
        try:
            if stall_after is not None:
                self.wfile.write(body[:stall_after])
                self.wfile.flush()
                server.stalled.set()
                server.released.wait(30)
                body = body[stall_after:]
            self.wfile.write(body)
        except OSError:  # the client was killed
            self.close_connection = True


@contextmanager
def serving(server: FakeServer, handler: type[Handler]) -> Iterator[int]:
    """Answer with `handler` in threads of its own while the body runs. Yields the port."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield listener.server_address[1]
    finally:
        server.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
