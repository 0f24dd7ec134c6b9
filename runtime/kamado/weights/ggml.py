"""GGML's packed blocks -> float32, in torch. Bit-identical to the reference in the `gguf` package.

A block is a fixed number of neighbouring values of one row, packed as small integers with their scales:

    Q4_1, 32 values in 20 bytes: | d: f16 | m: f16 | 16 bytes: q of i in the low, of i + 16 in the high half |

Each format is split into whole numbers, scales and offsets of groups; decoders multiply them. They take raw blocks
uint8 `[num_blocks, block_bytes]` and fill float32 `[num_blocks, block_values]`. Formats are those of ggml's
`ggml-common.h`. Shapes in comments: N blocks, G groups of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor, Tensor | None]
"""Numbers, int8 or uint8 [N, values]; a scale and perhaps an offset of each group, float32 [N, G].
Value = scale * number + offset."""


def _halves(blocks: Tensor, start: int, count: int = 1) -> Tensor:
    """`count` float16 numbers from byte `start` of each block, as float32 [N, count]."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, out: Tensor) -> None:
    """packed [N, G, W] -> out [N, G, 2, W]: the low halves, then the high halves."""
    torch.bitwise_and(packed, 15, out=out[:, :, 0])
    torch.bitwise_right_shift(packed, 4, out=out[:, :, 1])


def _fields(packed: Tensor, bits: int) -> Tensor:
    """packed [N, G, W] -> [N, G, 8/bits, W]: fields of `bits` bits, lowest first."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(1, 1, -1, 1)
    return (packed.unsqueeze(2) >> shifts) & ((1 << bits) - 1)


def _q4(blocks: Tensor, start: int) -> Tensor:
    """32 4-bit numbers from byte `start`, uint8 [N, 32]."""
    quants = torch.empty((len(blocks), 1, 2, 16), dtype=torch.uint8)
    _nibbles(blocks[:, start : start + 16].unsqueeze(1), quants)
    return quants.view(-1, 32)


def _q5(blocks: Tensor, start: int) -> Tensor:
    """32 5-bit numbers, uint8 [N, 32]: the fifth bits are 4 bytes from `start`, the rest 16 bytes behind them."""
    high = blocks[:, start : start + 4].unsqueeze(2) >> torch.arange(8, dtype=torch.uint8)
    return _q4(blocks, start + 4) | ((high & 1) << 4).view(-1, 32)


def _split_q4_0(blocks: Tensor) -> Split:
    return _q4(blocks, 2).view(torch.int8) - 8, _halves(blocks, 0), None


def _split_q4_1(blocks: Tensor) -> Split:
    scale = _halves(blocks, 0, 2)
    return _q4(blocks, 4), scale[:, :1], scale[:, 1:]


def _split_q5_0(blocks: Tensor) -> Split:
    return _q5(blocks, 2).view(torch.int8) - 16, _halves(blocks, 0), None


def _split_q5_1(blocks: Tensor) -> Split:
    scale = _halves(blocks, 0, 2)
    return _q5(blocks, 4), scale[:, :1], scale[:, 1:]


def _split_q8_0(blocks: Tensor) -> Split:
    return blocks[:, 2:].view(torch.int8), _halves(blocks, 0), None


def _split_q2_k(blocks: Tensor) -> Split:
    # 16 bytes: scale and minimum of 16 groups in half a byte each; 64 bytes of 2-bit numbers; d; dmin.
    scale = _halves(blocks, 80, 2)
    quants = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).view(-1, 256)
    return quants, scale[:, :1] * (blocks[:, :16] & 15), (scale[:, 1:] * (blocks[:, :16] >> 4)).neg_()


def _split_q3_k(blocks: Tensor) -> Split:
    # 32 bytes: third bit, inverted; 64 bytes: two low bits; 12 bytes: 16 scales of 6 bits; d.
    low = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).view(-1, 256)
    third = _fields(blocks[:, :32].unsqueeze(1), 1).view(-1, 256)
    quants = low.view(torch.int8) - ((third ^ 1) << 2).view(torch.int8)
    scales = _fields(blocks[:, 96:104].unsqueeze(1), 4).view(-1, 16)
    scales = scales | (_fields(blocks[:, 104:108].unsqueeze(1), 2).view(-1, 16) << 4)
    return quants, _halves(blocks, 108) * (scales.view(torch.int8) - 32), None


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales, and minima below zero, of the 8 groups of a Q4_K or Q5_K block, float32 [N, 8] each.

    12 bytes hold 16 numbers of 6 bits: bytes 0-3 and 4-7 the first four of each kind with two high bits of a later
    one on top, bytes 8-11 the low halves of those later ones.
    """
    scale = _halves(blocks, 0, 2)
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 2) & 48)], dim=1)
    minima = torch.cat([second & 63, (rest >> 4) | ((second >> 2) & 48)], dim=1)
    return scale[:, :1] * scales, (scale[:, 1:] * minima).neg_()


def _split_q4_k(blocks: Tensor) -> Split:
    # d; dmin; 12 bytes of scales; 128 bytes of 4-bit numbers.
    quants = torch.empty((len(blocks), 4, 2, 32), dtype=torch.uint8)
    _nibbles(blocks[:, 16:].unflatten(1, (4, 32)), quants)
    return quants.view(-1, 256), *_k_scales(blocks)


def _split_q5_k(blocks: Tensor) -> Split:
    # d; dmin; 12 bytes of scales; 32 bytes: fifth bits; 128 bytes: low four bits.
    quants = torch.empty((len(blocks), 4, 2, 32), dtype=torch.uint8)
    _nibbles(blocks[:, 48:].unflatten(1, (4, 32)), quants)
    high = _fields(blocks[:, 16:48].unsqueeze(1), 1) << 4
    return quants.view(-1, 256) | high.view(-1, 256), *_k_scales(blocks)


def _split_q6_k(blocks: Tensor) -> Split:
    # 128 bytes: low four bits; 64 bytes: two high bits; 16 signed scales; d.
    quants = torch.empty((len(blocks), 2, 2, 64), dtype=torch.uint8)
    _nibbles(blocks[:, :128].unflatten(1, (2, 64)), quants)
    high = _fields(blocks[:, 128:192].unflatten(1, (2, 32)), 2) << 4
    signed = (quants.view(-1, 256) | high.view(-1, 256)).view(torch.int8) - 32
    return signed, _halves(blocks, 208) * blocks[:, 192:208].view(torch.int8), None


def _decoder(split: Callable[[Tensor], Split]) -> Callable[[Tensor, Tensor], None]:
    def decode(blocks: Tensor, out: Tensor) -> None:
        quants, scale, offset = split(blocks)
        groups = out.view(*scale.shape, -1)
        torch.mul(quants.view(groups.shape), scale.unsqueeze(2), out=groups)
        if offset is not None:
            groups.add_(offset.unsqueeze(2))

    return decode


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One packed format."""

    values: int
    """Numbers in a block."""
    nbytes: int
    """Bytes of a block."""
    decode: Callable[[Tensor, Tensor], None]
    """Raw blocks uint8 [N, nbytes] into float32 [N, values]."""
    split: Callable[[Tensor], Split] | None = None
    """What raw blocks are made of, for formats of whole numbers."""


def _whole_numbers(values: int, nbytes: int, split: Callable[[Tensor], Split]) -> BlockFormat:
    return BlockFormat(values, nbytes, _decoder(split), split)


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    "Q4_0": _whole_numbers(32, 18, _split_q4_0),
    "Q4_1": _whole_numbers(32, 20, _split_q4_1),
    "Q5_0": _whole_numbers(32, 22, _split_q5_0),
    "Q5_1": _whole_numbers(32, 24, _split_q5_1),
    "Q8_0": _whole_numbers(32, 34, _split_q8_0),
    "Q2_K": _whole_numbers(256, 84, _split_q2_k),
    "Q3_K": _whole_numbers(256, 110, _split_q3_k),
    "Q4_K": _whole_numbers(256, 144, _split_q4_k),
    "Q5_K": _whole_numbers(256, 176, _split_q5_k),
    "Q6_K": _whole_numbers(256, 210, _split_q6_k),
}
"""Formats decoded here; all others go through the `gguf` package."""


def _decoder_of_gguf_package(name: str) -> BlockFormat | None:
    try:
        import gguf
    except ImportError:
        return None
    quant_type = gguf.GGMLQuantizationType.__members__.get(name)
    if quant_type is None:
        return None
    values, nbytes = gguf.GGML_QUANT_SIZES[quant_type]

    def decode(blocks: Tensor, out: Tensor) -> None:
        out.copy_(torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), quant_type)))

    return BlockFormat(values, nbytes, decode)


def block_format(name: str) -> BlockFormat | None:
    """The format of GGML type `name` (`Q4_1`, `IQ2_XS`, ...), or None if nothing here can decode it."""
    return BLOCK_FORMATS.get(name) or _decoder_of_gguf_package(name)
