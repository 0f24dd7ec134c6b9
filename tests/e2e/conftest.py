"""The installed command, as typed."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from typed import typed

PROGRAM = Path(sys.executable).with_name("kamado")
Kamado = Callable[..., "subprocess.CompletedProcess[bytes]"]


def hear_interrupts() -> None:
    """In a new process: Ctrl-C counts, also where the test run itself was started in the background, deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "KAMADO_HOME": str(home), "TERM": "xterm-256color", "NO_COLOR": ""}


@pytest.fixture
def kamado(tmp_path: Path) -> Kamado:
    """Runs `kamado ...` to its end, with a store of its own and stdin that is empty unless given."""
    assert PROGRAM.exists(), f"{PROGRAM} is missing: the tests run against an installed package"

    def command(*args: str | bytes | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [PROGRAM, *args],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=300,
            env=environment(tmp_path / "home"),
        )

    return command


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    """As `kamado`, with the same store, but in this process: for what a new one, which takes seconds to import what it
    needs, would not do otherwise."""
    for name, value in environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    run = typed(monkeypatch, capsys)

    def command(*args: str | bytes | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = run(*map(os.fsdecode, args), stdin=stdin)
        return subprocess.CompletedProcess(args, done.status, done.out.encode(), done.err.encode())

    return command


class PseudoTerminal:
    """`kamado ...` with a person at a terminal."""

    def __init__(self, args: tuple[str | Path, ...], home: Path) -> None:
        import pty

        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, PROGRAM, *args],
            stdin=slave, stdout=slave, stderr=slave, env=environment(home), start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self._answered = 0

    def type(self, text: str) -> None:
        """Press keys. Control characters are keys: \\x03 is Ctrl-C, \\x1b\\r is Alt-Enter."""
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, timeout: float = 120) -> str:
        """Read until the pattern comes; returns and forgets all up to its end. Escape sequences are left out."""
        limit = time.monotonic() + timeout
        while (match := re.search(pattern, self.seen)) is None:
            assert time.monotonic() < limit, f"waited in vain for {pattern!r}; there was {self.seen[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._read()
        found = self.seen[: match.end()]
        self.seen = self.seen[match.end() :]
        return found

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # Linux says so when the other side has closed
            data = ""
            time.sleep(0.05)
        for _ in range(data.count("\x1b[6n")):
            os.write(self._master, b"\x1b[1;1R")  # a terminal answers where its cursor is
        self.seen += re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_]|\][^\x07]*\x07)", "", data)

    def wait(self, timeout: float = 60) -> int:
        """The exit status."""
        limit = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < limit, f"it does not end; there was {self.seen[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._master)


# Makes stdin the controlling terminal of the new session, so that Ctrl-C becomes a signal, and runs the program.
_TAKE_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background was started deaf to it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., PseudoTerminal]]:
    """Runs `kamado ...` on a pseudo terminal."""
    pytest.importorskip("pty", reason="this system has no pseudo terminals")
    opened: list[PseudoTerminal] = []

    def start(*args: str | Path) -> PseudoTerminal:
        opened.append(PseudoTerminal(args, tmp_path / "home"))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
