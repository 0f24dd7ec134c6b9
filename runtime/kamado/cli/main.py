"""The command `kamado`: finds the subcommand, and turns what went wrong into one or two lines and an exit status."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

import click

from ..errors import InvalidRequest, KamadoError
from .common import CliState
from .naming import by_flags
from .output import printable

INTERRUPTED = 130
_NO_FLAGS: Mapping[str, str] = {}

COMMANDS: Mapping[str, tuple[str, str]] = {
    # name: where it is, relative to this package, and what it does
    "run": ("run:run", "Generate with any model; chat if no prompt is given."),
    "batch": ("batch:batch", "Answer a file of requests; goes on where it was stopped."),
    "grid": ("grid:grid", "Try every combination of prompts, seeds and options, with a contact sheet."),
    "chain": ("chain:chain", "Run several models, what one makes going into the next."),
    "replay": ("replay:replay", "Make a picture, a sound, ... again from the recipe in its file."),
    "bench": ("bench:bench_command", "Measure how fast a model runs here."),
    "quantize": ("quantize:quantize", "Write a quantized checkpoint that loads at once."),
    "plan": ("plan:plan", "Show what would be loaded where, and whether it fits."),
    "devices": ("devices:devices", "Show what each device has and is good at."),
    "pull": ("store:pull", "Bring a model to this machine."),
    "list": ("store:list_models", "List the models that are here."),
    "show": ("store:show", "Show what a model is."),
    "rm": ("store:rm", "Remove a model from this machine."),
    "verify": ("store:verify", "Check a model's files against their hashes."),
    "convert-pickle": ("store:convert_pickle", "Turn a pickle checkpoint into safetensors, in a sandbox."),
}


class LazyGroup(click.Group):
    """Imports a command's module when that command is used: `kamado --help` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(f".{module}", __package__), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("kamado")
        except PackageNotFoundError:
            number = "(not installed)"
        click.echo(f"kamado {number}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Run open-weight generative models on your own machine.

    MODEL is a catalog name (smollm2:135m), org/name[@revision] on a hub, a folder, or a file (.gguf, .safetensors,
    .param).

    Exit status: 0 done, 1 failed, 2 wrong usage, 3 does not fit in memory, 4 no such model, 5 unsafe, 130 interrupted.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit status, never raises."""
    _prepare_streams()
    state = CliState()
    try:
        with _tidy_when_terminated():
            status = _invoke(list(sys.argv[1:] if args is None else args), state)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our stdout has left, as `head` does: nobody is there to be told.
        _discard(sys.stdout)
        return 1
    except BaseException as error:  # noqa: BLE001 - this is the last frame; KeyboardInterrupt and SystemExit end here too
        status, lines = explain(error, state.flags)
        for line in lines:
            click.echo(printable(line), err=True)
        if state.verbose and status != INTERRUPTED:
            traceback.print_exception(error, file=sys.stderr)
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # the interpreter would try again at its end, and change the status
            _discard(sys.stdout)
    return status


def _prepare_streams() -> None:
    """A terminal that cannot show a character is no reason to stop, nor is a stream that was closed (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def _tidy_when_terminated() -> Iterator[None]:
    """SIGTERM (`kill`, a shutdown) ends the command as Ctrl-C does: what it has half written is removed on the way out.
    Only where the program has not decided otherwise, and threads other than the main one cannot hear signals."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: tidying up is not to be torn, too
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _invoke(args: list[str], state: CliState) -> int:
    instruction = os.environ.get("_KAMADO_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "kamado", "_KAMADO_COMPLETE", instruction)
    try:
        with cli.make_context("kamado", args, obj=state) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as request:
        return request.exit_code
    return 0


def explain(error: BaseException, flags: Mapping[str, str] = _NO_FLAGS) -> tuple[int, list[str]]:
    """The exit status and the lines for stderr that an exception amounts to. `flags`: see `naming.by_flags`."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            return 2, [error.format_message()]
        case click.UsageError():
            path = error.ctx.command_path if error.ctx is not None else "kamado"
            return 2, [f"{path}: {error.format_message()}", f"`{path} --help` shows what can be given."]
        case click.ClickException():
            return error.exit_code, [f"kamado: {error.format_message()}"]
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED, []
        case InvalidRequest():
            return error.exit_status, [f"kamado: {by_flags(str(error), flags)}"]
        case KamadoError():
            return error.exit_status, [f"kamado: {error}"]
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1, []
        case MemoryError():
            return 1, [
                "kamado: the machine ran out of memory; --memory sets a limit, `kamado plan` shows what is needed."
            ]
        case OSError() if error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            return 1, [f"kamado: {where}{error.strerror}"]
        case _:
            text = " ".join(str(error).split())[:500]
            return 1, [f"kamado: unexpected {type(error).__name__}: {text}", "-v shows the traceback."]


def _discard(stream: TextIO) -> None:
    """Point the stream's file at nothing, so that flushing it at exit does not fail again."""
    try:
        target = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, target)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
