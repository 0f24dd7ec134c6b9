"""`kamado bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..bench.options import BenchOptions, Row, parse_batches
from ..bench.run import Measured, bench, bench_trace
from ..bench.trace import read_trace
from ..errors import InvalidRequest, KamadoError
from ..media.inputs import opened_media
from ..units import format_bytes, format_seconds
from .bench_media import media_table, number, share
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options
from .kinds import opened, options_for
from .loading import abilities, fitted, open_runtime, quiet_libraries, what_it_makes
from .media_options import Given, media_options
from .picture_options import picture_options
from .table import format_facts, format_table

_SHARES = ("p50", "p90", "p99")


@click.command("bench", cls=SectionedCommand)
@click.argument("model")
@click.option("-p", "prompt_tokens", type=int, metavar="N", help="Tokens of the prefill test; 0 for none.  [512]")
@click.option("-n", "new_tokens", type=int, metavar="N", help="Tokens that decoding tests make; 0 for none.  [128]")
@click.option("-d", "--depth", type=int, metavar="N", help="Tokens of prompt before decoding.  [16]")
@click.option("-b", "batches", metavar="N,N", help="Requests, or pictures, at the same time.  [1,8; of pictures 1]")
@click.option("--reps", type=int, metavar="N", help="Repetitions of each test, after one that does not count.  [5]")
@click.option(
    "--load", "trace", metavar="FILE", type=click.Path(path_type=Path), help="Play a trace of requests instead."
)
@click.option("--concurrency", type=int, metavar="N", help="With --load: the most requests in flight.  [no limit]")
@picture_options
@media_options
@model_options
@common_options
def bench_command(
    model: str,
    *,
    prompt_tokens: int | None,
    new_tokens: int | None,
    depth: int | None,
    batches: str | None,
    reps: int | None,
    trace: Path | None,
    concurrency: int | None,
    given: Given,
    load: LoadOptions,
    out: Output,
) -> None:
    """Measure how fast MODEL runs here, and what share that is of what the device can do.

    Texts: prefill (pp512), decoding (tg128), decoding of several at once (batch8). Pictures, sounds, videos, vectors
    and others: steps, seconds, seconds of sound, inputs, with the options of `kamado run`. --load plays a trace: lines
    like {"at": 0.5, "prompt_length": 200, "max_tokens": 50}.

    Exit status 1 if the device, precision or quantization that was asked for is not what ran.
    """
    texts = {"-p": prompt_tokens, "-n": new_tokens, "-d": depth}
    tests = {**texts, "-b": batches, "--reps": reps}
    if trace is not None:
        _check_alone(
            "with --load,", {**tests, **{f"--{name.replace('_', '-')}": 1 for name in (*given.picture, *given.media)}}
        )
        _bench_trace(model, trace, concurrency, load, out)
        return
    _check_alone("--load is missing; without it", {"--concurrency": concurrency})
    typed = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "depth": depth, "reps": reps}
    chosen: dict[str, Any] = {name: value for name, value in typed.items() if value is not None}
    if batches is not None:
        chosen["batches"] = parse_batches(batches)
    BenchOptions(**chosen)
    found = abilities(model, load, out)
    kind, options = options_for(found, model, given)
    if kind != "text":
        what = "pictures" if "image" in found.makes else " and ".join(found.makes)
        _check_alone(f"{model} makes {what};", texts)
        several = found.makes[0] in ("embedding", "scores")
        inputs = opened(options) if found.takes is None else opened_media(options, found.takes.inputs)
        chosen = {"batches": (1, 8, 32) if several else (1,), **chosen, "picture": inputs}
    load = fitted(model, load)
    with open_runtime(load) as runtime, out.progress(None, f"bench {Path(model).name}", unit="tests") as update:
        measured = bench(
            runtime,
            model,
            BenchOptions(**chosen),
            load={**load.of_model(), **load.of_lanes()},
            report=lambda what: update(0, detail=what),
            around=lambda: quiet_libraries(out),
        )
    _show(measured, out)


def _check_alone(why: str, options: dict[str, Any]) -> None:
    """Raises InvalidRequest for an option that is not for this case."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise InvalidRequest(f"{why} {given} has no meaning here; leave it out")


def _bench_trace(model: str, trace: Path, concurrency: int | None, load: LoadOptions, out: Output) -> None:
    if concurrency is not None and concurrency < 1:
        raise InvalidRequest(f"--concurrency must be at least 1, not {concurrency}")
    try:
        arrivals = read_trace(trace)
    except OSError as error:
        raise InvalidRequest(f"--load {trace}: {error.strerror}") from None
    makes = what_it_makes(model, load, out)
    if "text" not in makes:
        raise InvalidRequest(f"--load is for text models, and {model} makes {' and '.join(makes)}")
    load = fitted(model, load)
    with open_runtime(load) as runtime, out.progress(len(arrivals), "requests", unit="sent") as update:
        measured = bench_trace(
            runtime,
            model,
            arrivals,
            concurrency=concurrency,
            load={**load.of_model(), **load.of_lanes()},
            sent=update,
            around=lambda: quiet_libraries(out),
        )
    _show(measured, out)
    if measured.failed:
        first = measured.failed[0]
        raise KamadoError(
            f"{len(measured.failed)} of {len(arrivals)} requests failed; the first in line {first.line}: {first.error}"
        )


def _show(measured: Measured, out: Output) -> None:
    out.json(measured.rows)
    for line in describe(measured.rows):
        out.line(line)
    for note in measured.notes:
        out.note(note)


def describe(rows: Sequence[Row]) -> list[str]:
    """The lines for people."""
    first = rows[0]
    quant = first["quant"] if isinstance(first["quant"], str) else first["quant"]["scheme"]
    head = format_facts(
        [
            ("model", first["model"]),
            ("device", f"{first['device']}: {first['hardware']}"),
            ("precision", first["dtype"] + (f", weights {quant}" if quant != "none" else "")),
            ("kernels", _kernels(first)),
            ("draft", first.get("draft") or ""),
            ("loaded in", format_seconds(first["load_s"])),
            ("compiled in", format_seconds(first["compile_s"]) if first["compile_s"] else ""),
            ("peak memory", format_bytes(max(row["peak_memory_bytes"] for row in rows))),
        ]
    )
    other = media_table if "s_per_answer" in first else _text_table
    table = other if other is media_table else {"load": _load_table, "image": _image_table}.get(first["test"], other)
    return [*head, "", *table(rows)]


def _kernels(row: Row) -> str:
    parts = [row["kernel"], "a step is one call" if row["step"] == "native" else None]
    return ", ".join(part for part in parts if part)


def _text_table(rows: Sequence[Row]) -> list[str]:
    header = (
        "test",
        "tokens/s",
        "\u00b1",
        "first token ms",
        "next p50 ms",
        "p99 ms",
        "read GB/s",
        "of rate",
        "GOP/s",
        "of rate ",
    )
    cells = [
        (
            row["test"],
            *(number(row[name]) for name in ("tokens_per_s", "stddev", "ttft_ms", "itl_ms_p50", "itl_ms_p99")),
            number(row["bandwidth_GB_s"]),
            share(row["bandwidth_utilization"]),
            number(row["operations_G_s"]),
            share(row["operations_utilization"]),
        )
        for row in rows
    ]
    return format_table(header, cells, right=header[1:])


def _image_table(rows: Sequence[Row]) -> list[str]:
    header = ("test", "size", "steps", "at once", "steps/s", "s/image", "\u00b1", "GOP/s", "of rate")
    cells = [
        (
            row["test"],
            f"{row['width']} x {row['height']}",
            str(row["steps"] or ""),
            str(row["batch"]),
            *(number(row[name]) for name in ("steps_per_s", "s_per_image", "stddev", "operations_G_s")),
            share(row["operations_utilization"]),
        )
        for row in rows
    ]
    return format_table(header, cells, right=header[2:])


def _load_table(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        limit = f", at most {row['concurrency']} at the same time" if row["concurrency"] else ""
        done = f"{row['requests'] - row['failed']} of {row['requests']} in {format_seconds(row['duration_s'])}{limit}"
        lines += format_facts(
            [
                ("requests", f"{done}; {number(row['requests_per_s'])}/s"),
                ("tokens", f"{number(row['tokens_per_s'])}/s made, {number(row['prompt_tokens_per_s'])}/s read"),
            ]
        )
        names = {"ttft_ms": "first token ms", "itl_ms": "next token ms", "total_ms": "whole answer ms"}
        cells = [(label, *(number(row[f"{name}_{share}"]) for share in _SHARES)) for name, label in names.items()]
        lines += ["", *format_table(("", *_SHARES), cells, right=_SHARES)]
    return lines
