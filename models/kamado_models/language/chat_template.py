"""A model's chat template, rendered in a process of its own with limits on time, memory and length.

A template is a program that came with the checkpoint. jinja2's sandbox keeps it from the Python around it, but not from
looping or multiplying texts; a process can be killed, a thread cannot.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kamado.errors import InvalidRequest, UnsupportedCheckpoint

MAX_TEMPLATE_CHARS = 1 << 20
MAX_TEXT_CHARS = 16 << 20
MAX_INPUT_BYTES = 64 << 20
TIME_LIMIT_S = 10.0
"""For one rendering; the first one may also start the process."""

_PARTS = re.compile(r"\[['\"]type['\"]\]|\.type\b|\.get\(['\"]type['\"]\)")
"""What only a template has that looks at the kind of a part."""
_TEXTS = re.compile(r"\bis (not )?(string|iterable)\b")
"""What a template has that takes texts as well as lists of parts."""
_WORKER = Path(__file__).with_name("template_worker.py")


class _Hung(Exception):
    """The worker took too long, or died."""


class Worker:
    """One rendering process. Not thread safe."""

    def __init__(self) -> None:
        path = [entry for entry in sys.path if os.path.isabs(entry)]
        keep = ("TZ", "LD_LIBRARY_PATH", "SYSTEMROOT")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_WORKER), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONUTF8": "1"} | {name: os.environ[name] for name in keep if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the program, not for its helper
        )

    def ask(self, request: bytes, deadline: float) -> dict[str, str]:
        """The answer of `template_worker`. Raises _Hung."""
        source, target = self._process.stdout, self._process.stdin
        assert source is not None and target is not None
        os.set_blocking(target.fileno(), False)
        data = memoryview(struct.pack(">I", len(request)) + request)
        try:
            while data:
                self._wait(deadline, write=target.fileno())
                data = data[os.write(target.fileno(), data) :]
            size = struct.unpack(">I", self._read(source.fileno(), 4, deadline))[0]
            answer: dict[str, str] = json.loads(self._read(source.fileno(), size, deadline))
        except OSError as error:
            raise _Hung from error
        return answer

    def _wait(self, deadline: float, *, read: int | None = None, write: int | None = None) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Hung
        poll = select.poll()
        poll.register(write if read is None else read, select.POLLOUT if read is None else select.POLLIN)  # type: ignore[arg-type]
        if not poll.poll(left * 1000):
            raise _Hung

    def _read(self, descriptor: int, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(deadline, read=descriptor)
            some = os.read(descriptor, size - len(data))
            if not some:
                raise _Hung
            data += some
        return bytes(data)

    def kill(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def started_worker() -> Worker | None:
    """A process that gets ready while something else is done; None where none can be started."""
    try:
        return Worker()
    except OSError:
        return None


def _stop(workers: list[Worker]) -> None:
    while workers:
        workers.pop().kill()


class ChatTemplate:
    """One template. Thread safe. Its process starts on first use and ends with this object or the program."""

    def __init__(self, source: str, *, time_limit_s: float = TIME_LIMIT_S, max_chars: int = MAX_TEXT_CHARS) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise UnsupportedCheckpoint(
                f"the chat template has {len(source)} characters; at most {MAX_TEMPLATE_CHARS} are allowed"
            )
        self.source = source
        self._time_limit_s = time_limit_s
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers)

    def in_parts(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
        """The messages in the form that a template of a model that sees or hears takes; None: it takes texts alone."""
        if not _PARTS.search(self.source):
            return None
        return list(messages) if _TEXTS.search(self.source) else [_in_parts(message) for message in messages]

    def adopt(self, worker: Worker) -> None:
        """Use a process that was started before."""
        with self._lock:
            _stop(self._workers)
            self._workers.append(worker)

    def close(self) -> None:
        """End the process; a later `render` starts a new one."""
        with self._lock:
            _stop(self._workers)

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The prompt text. `variables`: what else the template may see, such as `bos_token`; plain JSON values.

        Raises InvalidRequest when the template refuses these messages, or takes too long or too much for them, and
        UnsupportedCheckpoint when it is no template at all.
        """
        try:
            request = json.dumps(
                {
                    "template": self.source,
                    "variables": {**variables, "messages": [dict(message) for message in messages]},
                    "max_chars": self._max_chars,
                }
            ).encode()
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"messages must be plain texts, numbers and lists: {error}") from error
        if len(request) > MAX_INPUT_BYTES:
            raise InvalidRequest(f"the messages have {len(request)} bytes; at most {MAX_INPUT_BYTES} are allowed")
        answer = self._ask(request)
        if "text" in answer:
            return answer["text"]
        if answer["kind"] == "template":
            raise UnsupportedCheckpoint(f"the model's chat template is not valid: {answer['error']}")
        refuses = "refuses" if answer["kind"] == "refused" else "fails for"
        raise InvalidRequest(f"the model's chat template {refuses} these messages: {answer['error']}")

    def _ask(self, request: bytes) -> dict[str, str]:
        with self._lock:
            if not self._workers:
                try:
                    self._workers.append(Worker())
                except OSError as error:
                    raise UnsupportedCheckpoint(
                        f"chat templates run in a process that cannot be started: {error}"
                    ) from error
            try:
                return self._workers[0].ask(request, time.monotonic() + self._time_limit_s)
            except _Hung:
                _stop(self._workers)
                raise InvalidRequest(
                    f"the model's chat template did not finish within {self._time_limit_s:g} s for these messages"
                ) from None
            except BaseException:
                # The rest of the answer would be taken for the next one.
                _stop(self._workers)
                raise
