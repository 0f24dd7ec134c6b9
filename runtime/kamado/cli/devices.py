"""`kamado devices`."""

from __future__ import annotations

import click

from ..memory.devices import DeviceFacts
from ..memory.devices import devices as find_devices
from ..units import format_bytes
from .common import Output, common_options
from .table import format_facts


@click.command()
@common_options
def devices(out: Output) -> None:
    """Show what each device has and is good at. The first one is what `--device auto` takes."""
    found = find_devices()
    out.json([facts.as_dict() for facts in found])
    for facts in found:
        for line in describe(facts):
            out.line(line)


def describe(facts: DeviceFacts) -> list[str]:
    """The lines for one device."""
    cores = f"{facts.cores} cores, {facts.threads} threads, {facts.usable_threads} usable"
    body = format_facts(
        [
            ("memory", f"{format_bytes(facts.available_bytes)} free of {format_bytes(facts.total_bytes)}"),
            ("processors", cores if facts.kind == "cpu" else f"{facts.cores} multiprocessors" if facts.cores else ""),
            ("capability", facts.capability),
            ("has", " ".join(facts.features)),
            ("fast precisions", " ".join(facts.good_dtypes)),
            *(("note", note) for note in facts.notes),
        ]
    )
    return [f"{facts.name}: {facts.model}", *(f"  {line}" for line in body)]
