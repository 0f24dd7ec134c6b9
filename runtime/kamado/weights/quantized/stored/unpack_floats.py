"""8-bit floats and 4-bit codes of quantized checkpoints. L: rows (outputs), N: columns (inputs)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..codebook import Codebook, table_of
from ..floats import DynamicFloats, Floats
from ..pieces import Pieces
from .entries import StoredWeight

Read = Mapping[str, Tensor]


def float8(entry: StoredWeight, read: Read) -> Floats:
    """values float8_e4m3fn (L, N), scales: one, one a row, or one for each block of rows and columns."""
    rows, columns = entry.shape
    height, width = entry.settings["block"]
    group = entry.settings["group"]
    grid = read["scales"].float().reshape(-(-rows // height), -(-columns // width))
    # Of a block that is cut off at the right there are fewer groups than of others, so each group looks for its own.
    places = torch.arange(columns // group) * group // width
    scale = grid[torch.arange(rows) // height][:, places]
    form = DynamicFloats if entry.settings["rounds"] else Floats
    return form((rows, columns), {"values": read["values"], "scale": scale.contiguous()})


def mxfp4(entry: StoredWeight, read: Read) -> Pieces:
    """blocks uint8 (E, L, G, 16), scales uint8 (E, L, G)."""
    _, columns, rows = entry.shape
    table = table_of("mxfp4", torch.device("cpu"))
    pieces = []
    for blocks, scales in zip(read["blocks"], read["scales"], strict=True):
        values = blocks.reshape(rows, columns // 2)
        # 255 is no number, and becomes none.
        powers = torch.ldexp(torch.ones(scales.shape), scales.to(torch.int32) - 127)
        scale = torch.where(scales == 255, torch.nan, powers).to(torch.bfloat16)
        parts = {"values": (values >> 4) | (values << 4), "scale": scale, "table": table}
        pieces.append(Codebook((rows, columns), parts, kind="mxfp4"))
    return Pieces(pieces)


def codebook(entry: StoredWeight, read: Read) -> Codebook | Tensor:
    """values: bytes of two codes, scales float32 or codes of such, table float32 (16). A plain matrix (L, N) where a
    block goes over the end of a row."""
    rows, columns = entry.shape
    settings = entry.settings
    block = settings["block"]
    scales, table = read["scales"].view(-1), read["table"].view(-1)
    if "nested_scales" in read:
        outer = read["nested_scales"].view(-1).repeat_interleave(settings["nested_block"])[: len(scales)]
        scales = read["nested_table"].view(-1)[scales.long()] * outer + settings["nested_offset"]
    values = read["values"].contiguous().view(-1).view(torch.uint8)
    if columns % block:
        codes = torch.stack((values >> 4, values & 15), dim=-1).view(-1)
        return (table[codes.long()] * scales.repeat_interleave(block)[: len(codes)]).view(rows, columns)
    own = table_of(settings["kind"], torch.device("cpu"))
    known = torch.allclose(table, own, rtol=0.0, atol=1e-6)
    parts = {"values": values.view(rows, -1), "scale": scales.view(rows, -1), "table": own if known else table}
    return Codebook((rows, columns), parts, kind=settings["kind"] if known else "")
