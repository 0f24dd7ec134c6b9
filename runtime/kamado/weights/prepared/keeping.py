"""Prepared weights of one runtime: what it finds, and what it leaves for later loads, written in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...errors import KamadoError
from .folder import PreparedFolder, limit_bytes

IDLE_S = 10.0
"""So long after loading, writing begins even if nobody has asked the model for anything."""
Write = Callable[[Callable[[], bool]], None]
"""Writes one file. Is given what says whether to go on."""

_log = logging.getLogger(__name__)


class Keeping:
    """Thread safe. No torch."""

    def __init__(self, home: Path | None = None) -> None:
        self.folder = PreparedFolder(home)
        self._pending: set[Pending] = set()
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """Whether anything may be kept. Raises InvalidRequest for a limit that is no size."""
        return limit_bytes() > 0

    def later(self, write: Write) -> Pending:
        """Have `write` called in a thread of its own, once it is told to begin, after IDLE_S, or by `finish`."""
        pending = Pending(write, self._ended)
        with self._lock:
            self._pending.add(pending)
        pending.start()
        return pending

    def finish(self) -> None:
        """Have everything written that is pending. Returns when it is."""
        self._each(lambda pending: pending.begin())
        self._each(lambda pending: pending.wait())

    def abandon(self) -> None:
        """Have nothing more written."""
        self._each(lambda pending: pending.abandon())

    def _each(self, do: Callable[[Pending], None]) -> None:
        with self._lock:
            pending = list(self._pending)
        for each in pending:
            do(each)

    def _ended(self, pending: Pending) -> None:
        with self._lock:
            self._pending.discard(pending)


class Pending:
    """One file that is to be written."""

    def __init__(self, write: Write, ended: Callable[[Pending], None]) -> None:
        self._write: Write | None = write
        self._ended = ended
        self._begin = threading.Event()
        self._goes_on = True
        # A program that ends does not wait for it; what was written of the file by then is removed by the next one.
        self._thread = threading.Thread(target=self._run, name="kamado-prepared", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self) -> None:
        """Write it now."""
        self._begin.set()

    def wait(self) -> None:
        self._thread.join()

    def abandon(self) -> None:
        """Stop writing, and let go of what was to be written. Returns when that is done."""
        self._goes_on = False
        self._begin.set()
        self._thread.join()

    def _run(self) -> None:
        self._begin.wait(IDLE_S)
        write, self._write = self._write, None
        assert write is not None
        try:
            if self._goes_on:
                write(lambda: self._goes_on)
        except (OSError, KamadoError, RuntimeError, MemoryError) as error:
            # It is a matter of speed only: a disk that is full or read-only, memory that is short.
            _log.debug("prepared weights were not kept: %s", error)
        finally:
            del write
            with suppress(RuntimeError):
                self._ended(self)
