"""Requests for several answers of which not all were made."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .common import Output

PARTLY = 1
"""The exit status."""


def check_whole(missing: Sequence[str], out: Output) -> None:
    """`missing`: a sentence for each answer that was not made. They go to stderr, and if there are any, the command
    ends here with its exit status."""
    for sentence in missing:
        out.error(sentence)
    if missing:
        raise click.exceptions.Exit(PARTLY)
