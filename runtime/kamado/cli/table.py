"""Plain aligned columns: readable in a terminal, in a log and through `column`, `awk` or a screen reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .output import printable


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """Lines of a table; the columns named in `right` are aligned to the right."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        fields = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, header, strict=True)
        )
        lines.append("  ".join(fields).rstrip())
    return lines


def format_facts(facts: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of `name  value`; facts without a value are left out."""
    kept = [(name, printable(value)) for name, value in facts if value]
    width = max((len(name) for name, _ in kept), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in kept]
