"""A peer in a program of its own that stays alive and is asked for one thing at a time, a JSON object a line."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil

_NOT_INHERITED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "PYTHON")
"""Settings of this program's threads, which are not to hold the peer back."""


class PeerFailed(Exception):
    """The peer said that it could not do what was asked, or ended."""


class Peer:
    """One child process. While it waits for a request it reads from a pipe and takes no CPU."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        """Raises PeerFailed if it does not come up."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        try:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise PeerFailed(f"{command[0]} cannot be run: {error.strerror}") from None
        self.hello = self._reply("start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """The reply. Raises PeerFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"the peer has ended; it could not be asked to {do}") from None
        return self._reply(do)

    def close(self) -> None:
        """It ends when nobody can ask any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # what it was to read, and it had ended
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _reply(self, do: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise PeerFailed(f"the peer ended with status {status} when it was to {do}; see what it said above")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerFailed(f"{do}: {reply['error']}")
        return reply


class IdleWatch:
    """How much CPU a process took while another one was measured: it should be next to none."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.shares: list[float] = []
        """Of one CPU, one of each time."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The process is to be idle while the body runs."""
        begin, before = time.perf_counter(), self._cpu_s()
        yield
        self.shares.append((self._cpu_s() - before) / max(time.perf_counter() - begin, 1e-9))

    def most(self) -> float:
        """The greatest share; 0 where nothing was watched. Times come in hundredths of a second."""
        return max(self.shares, default=0.0)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
