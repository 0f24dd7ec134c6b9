"""`kamado quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from ..units import format_bytes
from .common import Output, SectionedCommand, common_options


@click.command(cls=SectionedCommand)
@click.argument("model")
@click.option("--quant", required=True, metavar="NAME", help="int8, int4, ..., or a .toml file with a table.")
@click.option(
    "-o", "out_path", required=True, metavar="DIR", type=click.Path(path_type=Path), help="The new folder to write."
)
@click.option("--base", metavar="REF", help="The pipeline that supplies what a single file lacks.")
@click.option("--device", default="auto", metavar="NAME", help="What it is for, and where both are compared.  [auto]")
@click.option("--memory", metavar="SIZE", help="The most memory to use for comparing.  [most of what is free]")
@click.option("--no-compare", is_flag=True, help="Do not compare the result with the original.")
@click.option("--accept-loss", is_flag=True, help="Keep the result even if it is broken.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@common_options
def quantize(
    model: str,
    *,
    quant: str,
    out_path: Path,
    base: str | None,
    device: str,
    memory: str | None,
    no_compare: bool,
    accept_loss: bool,
    offline: bool,
    out: Output,
) -> None:
    """Write MODEL with quantized weights to the new folder DIR, which loads at once and says what was lost.

    Tensors are quantized one at a time. Then DIR and MODEL are loaded in turn and compared: language models over a
    text, pipelines by pictures. A result that is broken is not kept (exit status 1), unless --accept-loss.
    """
    from ..quantizing import quantize as write

    done = write(
        model,
        out_path,
        quant,
        base=base,
        device=device,
        memory=memory,
        compare=not no_compare,
        accept_loss=accept_loss,
        offline=offline,
    )
    out.text(f"{done.path}\n")
    out.note(f"{format_bytes(done.stored_bytes)}, from {format_bytes(done.source_bytes)}")
    if done.kept:
        each = ", ".join(f"{kind} {format_bytes(count)}" for kind, count in sorted(done.kept.items()))
        out.note(
            f"{format_bytes(sum(done.kept.values()))} keep their precision, for which such files have no form: {each}"
        )
    out.note(done.quality.sentence() if done.quality is not None else done.note)
    out.json(
        {
            "path": str(done.path),
            "stored_bytes": done.stored_bytes,
            "source_bytes": done.source_bytes,
            "kept_bytes": dict(done.kept),
            "quality": None if done.quality is None else done.quality.as_json(),
            "note": done.note,
        }
    )
