"""`kamado devices`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import click

from ..errors import DoesNotFit
from ..memory.devices import DeviceFacts
from ..memory.devices import devices as find_devices
from ..memory.rates import Rates, measure_rates
from ..units import format_bytes
from .common import Output, common_options
from .table import format_facts


@click.command()
@click.option("--measure", is_flag=True, help="Measure the rates of every device now: some seconds each.")
@common_options
def devices(*, measure: bool, out: Output) -> None:
    """Show what each device has and is good at. The first one is what `--device auto` takes.

    Rates are shown as they were measured last; --measure measures them now, and keeps them in KAMADO_HOME.
    """
    found: Sequence[DeviceFacts] = find_devices()
    short: DoesNotFit | None = None
    if measure:
        found, short = _measured(found, out)
    out.json([facts.as_dict() for facts in found])
    for facts in found:
        for line in describe(facts):
            out.line(line)
    if short is not None:
        raise short


def _measured(found: Sequence[DeviceFacts], out: Output) -> tuple[list[DeviceFacts], DoesNotFit | None]:
    """With new rates; and what was in the way of one of them, once the others are measured."""
    measured, short = [], None
    for facts in found:
        try:
            with out.progress(None, "measuring", unit="steps") as update:
                rates = measure_rates(facts, progress=lambda what: update(0, detail=what))
        except DoesNotFit as error:
            short = short or error
            measured.append(facts)
        else:
            measured.append(replace(facts, rates=rates))
    return measured, short


def describe(facts: DeviceFacts) -> list[str]:
    """The lines for one device."""
    cores = f"{facts.cores} cores, {facts.threads} threads, {facts.usable_threads} usable"
    body = format_facts(
        [
            ("memory", f"{format_bytes(facts.available_bytes)} free of {format_bytes(facts.total_bytes)}"),
            ("processors", cores if facts.kind == "cpu" else f"{facts.cores} multiprocessors" if facts.cores else ""),
            ("capability", facts.capability),
            ("driver", facts.driver),
            ("has", " ".join(facts.features)),
            ("fast precisions", " ".join(facts.good_dtypes)),
            *_rates(facts.rates),
            *(("note", note) for note in facts.notes),
        ]
    )
    return [f"{facts.name}: {facts.model}", *(f"  {line}" for line in body)]


def format_rate(bytes_per_s: float) -> str:
    """`27.5 GB/s`, with GB of 10^9 bytes, as makers of memory count."""
    return f"{bytes_per_s / 1e9:.3g} GB/s"


def format_matrix_rate(form: str, operations_per_s: float) -> str:
    """`bfloat16 791 TFLOP/s`, `int8 286 GOP/s`."""
    unit, letter = (1e12, "T") if operations_per_s >= 1e12 else (1e9, "G")
    return f"{form} {operations_per_s / unit:.3g} {letter}{'OP' if form.startswith('int') else 'FLOP'}/s"


def _rates(rates: Rates | None) -> list[tuple[str, str]]:
    if rates is None:
        return [("rates", "not measured yet; `kamado devices --measure` does")]
    disk = format_rate(rates.disk_bytes_per_s) if rates.disk_bytes_per_s is not None else ""
    if rates.disk_read == "cached":
        disk += ", perhaps out of the page cache: the disk itself may be slower"
    threads = f", {rates.threads} threads" if rates.threads else ""
    day = time.strftime("%Y-%m-%d", time.localtime(rates.measured_s))
    return [
        ("memory rates", f"read {format_rate(rates.read_bytes_per_s)}, copy {format_rate(rates.copy_bytes_per_s)}"),
        ("matrix rates", ", ".join(format_matrix_rate(form, rate) for form, rate in rates.operations_per_s.items())),
        ("from RAM", ", ".join(f"{name} {format_rate(rate)}" for name, rate in rates.to_device_bytes_per_s.items())),
        ("disk", disk),
        ("measured", f"{day}, torch {rates.torch}{threads}"),
        *(("note", note) for note in rates.notes),
    ]
