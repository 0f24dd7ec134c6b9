"""Commands run in this process: a new one takes seconds to import what they need."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kamado.cli.main import main


@dataclass(frozen=True)
class Done:
    """What a command did."""

    status: int
    out: str
    err: str


Kamado = Callable[..., Done]


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    """`kamado ...` with stdin that is empty unless given."""

    def command(*args: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(args)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return command
