"""The entry: lazy commands, exit statuses, errors of one or two lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from kamado import errors
from kamado.cli.main import COMMANDS, cli, explain

from .conftest import Kamado


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kamado.cli.main import main\nstatus = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'prompt_toolkit', 'huggingface_hub', 'kamado.api',"
        " 'kamado.cli.run', 'kamado.cli.store'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_common_options(name: str, kamado: Kamado) -> None:
    done = kamado(name, "--help")
    assert done.status == 0
    assert all(option in done.out for option in ("--json", "--quiet", "--verbose"))
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help


def test_help_of_many_options_has_sections(kamado: Kamado) -> None:
    lines = kamado("run", "--help").out.splitlines()
    heads = ["Options:", "Text and pictures:", "Text:", "Pictures:", "Loading:"]
    assert [line for line in lines if line in heads] == heads
    place = {line.split()[0]: number for number, line in enumerate(lines) if line.startswith("  -")}
    marks = ["-o", "--seed", "--temperature", "--width", "--dtype"]
    assert [place[mark] for mark in marks] == sorted(place[mark] for mark in marks)


def test_version(kamado: Kamado) -> None:
    done = kamado("--version")
    assert done.status == 0 and done.out.startswith("kamado ")


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("run",),
        ("run", "m", "p", "extra"),
        ("run", "m", "--top-k", "x"),
        ("run", "m", "p", "--option", "nothing"),
        ("run", "m", "p", "--width", "wide"),
        ("batch", "m"),
        ("devices", "--nonsense"),
    ],
)
def test_wrong_usage_is_status_2_and_says_so_on_stderr(args: tuple[str, ...], kamado: Kamado) -> None:
    done = kamado(*args)
    assert done.status == 2
    assert done.out == "" and done.err
    assert "Traceback" not in done.err


def test_usage_errors_are_two_lines(kamado: Kamado) -> None:
    done = kamado("run", "m", "--nonsense")
    first, second = done.err.splitlines()
    assert first.startswith("kamado run: No such option '--nonsense'.")
    assert second == "`kamado run --help` shows what can be given."


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ModelNotFound("m"), 4),
        (errors.HubUnreachable("m"), 4),
        (errors.UnsupportedCheckpoint("m"), 4),
        (errors.UnsafeCheckpoint("m"), 5),
        (errors.DoesNotFit("m", needed_bytes=2, available_bytes=1), 3),
        (errors.InvalidRequest("m"), 2),
        (errors.ContextOverflow("m", prompt_tokens=2, context_tokens=1), 2),
        (errors.Cancelled("m"), 130),
        (errors.DeadlineExceeded("m"), 1),
        (errors.GenerationFailed("m"), 1),
        (errors.KamadoError("m"), 1),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    assert explain(error) == (status, ["kamado: m"])


def test_other_ends() -> None:
    assert explain(KeyboardInterrupt()) == (130, [])
    assert explain(SystemExit(7)) == (7, [])
    assert explain(OSError(28, "No space left on device", "x.txt")) == (1, ["kamado: x.txt: No space left on device"])
    assert explain(ValueError("odd\nthing")) == (
        1,
        ["kamado: unexpected ValueError: odd thing", "-v shows the traceback."],
    )
    assert explain(MemoryError())[0] == 1


def _fail(error: BaseException) -> None:
    raise error


def test_a_traceback_only_with_v(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.cli.devices.find_devices", lambda: _fail(ZeroDivisionError("by zero")))
    plain = kamado("devices")
    assert plain.status == 1
    assert plain.err.splitlines() == ["kamado: unexpected ZeroDivisionError: by zero", "-v shows the traceback."]
    told = kamado("devices", "-v")
    assert told.status == 1 and "Traceback" in told.err and told.out == ""


def test_errors_cannot_drive_the_terminal(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kamado.cli.devices.find_devices", lambda: _fail(errors.ModelNotFound("bad \x1b]0;title\x07 name"))
    )
    assert "\x1b" not in kamado("devices").err


def test_interruption_is_silent(kamado: Kamado, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.cli.devices.find_devices", lambda: _fail(KeyboardInterrupt()))
    done = kamado("devices", "-v")
    assert (done.status, done.out, done.err) == (130, "", "")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys\nfrom kamado.cli.main import main\nsys.exit(main(['devices', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert err == b""


def test_a_closed_stdout_is_no_error() -> None:
    code = (
        "import os, sys\nos.close(1)\nsys.stdout = None\nfrom kamado.cli.main import main\nsys.exit(main(['devices']))"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line() -> None:
    code = "import sys\nfrom kamado.cli.main import main\nsys.exit(main(['devices']))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and done.stderr.startswith(b"kamado: No space left on device\n")
