"""Rows of tokens through a network: like lengths together, padded to few lengths, so that requests share forwards.

A row is always padded to the same length, alone and in a crowd; masks keep the padding out of every sum. So what comes
out for it does not depend on its neighbours, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..library.kinds import Bench
from .tokens import Row

_POSITIONS = {"cpu": 1024, "gpu": 16384}
"""Of one forward of one request: others get their turn behind it."""
_MAX_ROWS = {"cpu": 16, "gpu": 64}


def padded_length(length: int, most: int) -> int:
    """To how many tokens a row of `length` is padded: at most an eighth more than it has, beyond 64 tokens."""
    step = 8
    while step * 8 < length:
        step *= 2
    return max(min(-(-length // step) * step, most), length)


def batches(rows: Sequence[Row], most: int, device: str) -> Iterator[list[int]]:
    """Numbers of rows that go into one forward: those that are padded to the same length, the longest first."""
    place = "cpu" if device == "cpu" else "gpu"
    by_form: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(rows):
        by_form.setdefault((padded_length(len(row.ids), most), len(row.asked)), []).append(number)
    for (length, _), numbers in sorted(by_form.items(), reverse=True):
        count = max(min(_POSITIONS[place] // length, _MAX_ROWS[place]), 1)
        for start in range(0, len(numbers), count):
            yield numbers[start : start + count]


def padded(rows: Sequence[Row], *, most: int, pad_id: int, device: str) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, (rows, length) int64, and where rows have them `token_type_ids` and `asked`.
    Padding is on the right: positions count from the first token."""
    length = padded_length(max(len(row.ids) for row in rows), most)
    columns = {
        "input_ids": [[*row.ids, *[pad_id] * (length - len(row.ids))] for row in rows],
        "attention_mask": [[1] * len(row.ids) + [0] * (length - len(row.ids)) for row in rows],
    }
    if all(row.types for row in rows):
        columns["token_type_ids"] = [[*row.types, *[0] * (length - len(row.types))] for row in rows]
    if all(row.asked for row in rows):
        columns["asked"] = [list(row.asked) for row in rows]
    return {name: torch.tensor(value, device=device) for name, value in columns.items()}


def pooled_mask(rows: Sequence[Row], mask: Tensor) -> Tensor:
    """The attention mask without the tokens that are not pooled."""
    found = mask.clone()
    for number, row in enumerate(rows):
        found[number, : row.skipped] = 0
    return found


def in_batches(bench: Bench, rows: Sequence[Row], most: int, call: Callable[[list[Row]], Tensor]) -> list[Any]:
    """What `call` makes of each row: it gets those of one forward, and returns a tensor with a row for each. In order,
    on the CPU. `most`: tokens that the network reads."""
    found: list[Any] = [None] * len(rows)
    done = 0
    for numbers in batches(rows, most, bench.device):
        made = call([rows[number] for number in numbers]).cpu()
        for number, row in zip(numbers, made, strict=True):
            found[number] = row
        done += len(numbers)
        bench.progress(done, len(rows))
    return found
