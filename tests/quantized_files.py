"""Checkpoints as quantizing tools write them: each format in numpy, value by value, from its published description.

A writer takes a matrix (out, in) and returns its tensors by the end of their names, and the matrix that they stand for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Matrix = NDArray[Any]
Written = tuple[dict[str, torch.Tensor], Matrix]
Writer = Callable[[Matrix, np.random.Generator], Written]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = (0, 0.0052083333, 0.6666667, 1, 0.3333333, 0.5, 0.1666667, 0.25)
"""The other eight are these, negative."""


def words(values: Matrix, bits: int) -> torch.Tensor:
    """(A, B) -> int32 (A, B * bits / 32): neighbours of a row together, the lowest bits first."""
    each = 32 // bits
    padded = np.pad(values.astype(np.uint64), ((0, 0), (0, -values.shape[1] % each)))
    packed = np.zeros((padded.shape[0], padded.shape[1] // each), np.uint64)
    for column in range(padded.shape[1]):
        packed[:, column // each] |= padded[:, column] << np.uint64(bits * (column % each))
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32))


def rounded(matrix: Matrix, groups: Matrix, bits: int, *, symmetric: bool) -> tuple[Matrix, Matrix, Matrix]:
    """(values, scales (out, groups) that float16 holds, zeros): unsigned. `groups`: of each column."""
    count, top = int(groups.max()) + 1, (1 << bits) - 1
    scales = np.zeros((len(matrix), count), np.float32)
    zeros = np.full((len(matrix), count), 1 << bits - 1, np.int64)
    values = np.zeros(matrix.shape, np.int64)
    for group in range(count):
        part = matrix[:, groups == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        span = 2 * np.abs(part).max(1) if symmetric else high - low
        scales[:, group] = (span / top + 1e-4).astype(np.float16)
        if not symmetric:
            zeros[:, group] = np.clip(np.round(-low / scales[:, group]), 0, top)
        values[:, groups == group] = np.clip(np.round(part / scales[:, group, None]) + zeros[:, group, None], 0, top)
    return values, scales, zeros


def restored(values: Matrix, scales: Matrix, zeros: Matrix, groups: Matrix) -> Matrix:
    result = (values - zeros[:, groups]) * scales[:, groups].astype(np.float64)
    return result.astype(np.float32)


def in_groups(
    matrix: Matrix, random: np.random.Generator, bits: int, group: int, *, act_order: bool, symmetric: bool
) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """(values, scales, zeros, groups) as `rounded` has them. `group`: columns of one, -1 for all."""
    groups = np.arange(matrix.shape[1]) // (matrix.shape[1] if group == -1 else group)
    if act_order:
        random.shuffle(groups)
    return *rounded(matrix, groups, bits, symmetric=symmetric), groups


def half(values: Matrix) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.float16)


def gptq(
    bits: int = 4, group: int = 32, *, act_order: bool = False, symmetric: bool = True, second: bool = False
) -> Writer:
    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        values, scales, zeros, groups = in_groups(matrix, random, bits, group, act_order=act_order, symmetric=symmetric)
        packed = words(zeros.T, bits)
        if not second:  # whole words are lowered, so that a zero of 0 takes from its neighbour
            ones = sum(1 << shift for shift in range(0, 32, bits))
            packed = (packed.long() - ones).to(torch.int32)
        return {
            ".qweight": words(values, bits).t().contiguous(),
            ".qzeros": packed,
            ".scales": half(scales.T),
            ".g_idx": torch.from_numpy(groups.astype(np.int32)),
        }, restored(values, scales, zeros, groups)

    return write


def awq(group: int = 32) -> Writer:
    def interleaved(values: Matrix) -> torch.Tensor:
        return words(values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(values.shape), 4)

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        groups = np.arange(matrix.shape[1]) // group
        values, scales, zeros = rounded(matrix, groups, 4, symmetric=False)
        return {
            ".qweight": interleaved(values.T),
            ".qzeros": interleaved(zeros.T),
            ".scales": half(scales.T),
        }, restored(values, scales, zeros, groups)

    return write


def packed(bits: int = 4, group: int = 32, *, symmetric: bool = True, act_order: bool = False) -> Writer:
    """compressed-tensors' pack-quantized."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        values, scales, zeros, groups = in_groups(matrix, random, bits, group, act_order=act_order, symmetric=symmetric)
        tensors = {
            ".weight_packed": words(values, bits),
            ".weight_shape": torch.tensor(matrix.shape),
            ".weight_scale": half(scales),
        }
        if not symmetric:
            tensors[".weight_zero_point"] = words(zeros.T, bits).t().contiguous()
        if act_order:
            tensors[".weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
        return tensors, restored(values, scales, zeros, groups)

    return write


def integers(strategy: str = "channel", *, symmetric: bool = True) -> Writer:
    """compressed-tensors' int-quantized, 8 bits."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        groups = np.arange(matrix.shape[1]) // (32 if strategy == "group" else matrix.shape[1])
        values, scales, zeros = rounded(matrix, groups, 8, symmetric=symmetric)
        if strategy == "tensor":
            scales = np.full_like(scales, scales.max())
            values = np.clip(np.round(matrix / scales), -128, 127).astype(np.int64) + 128
        tensors = {
            ".weight": torch.from_numpy((values - 128).astype(np.int8)),
            ".weight_scale": half(scales[:1, 0] if strategy == "tensor" else scales),
            ".input_scale": torch.ones(1),
        }
        if not symmetric:
            tensors[".weight_zero_point"] = torch.from_numpy((zeros - 128).astype(np.int8))
        return tensors, restored(values, scales, zeros, groups)

    return write


def float8(block: tuple[int, int] | str, name: str = "weight_scale_inv", *, column: bool = True) -> Writer:
    """`block`: rows and columns with one scale; "row" or "tensor"."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        rows, columns = {"row": (1, matrix.shape[1]), "tensor": matrix.shape}.get(str(block), block)
        grid = (-(-matrix.shape[0] // int(rows)), -(-matrix.shape[1] // int(columns)))
        scales = np.zeros(grid, np.float32)
        stretched = np.zeros_like(matrix)
        for r in range(grid[0]):
            for c in range(grid[1]):
                place = np.s_[r * int(rows) : (r + 1) * int(rows), c * int(columns) : (c + 1) * int(columns)]
                scales[r, c] = np.abs(matrix[place]).max() / 448
                stretched[place] = scales[r, c]
        values = torch.from_numpy(matrix / stretched).to(torch.float8_e4m3fn)
        stored = torch.from_numpy(scales)
        tensors = {".weight": values, f".{name}": stored[0, 0] if block == "tensor" else stored}
        return tensors, values.float().numpy() * stretched

    return write


def bnb8(matrix: Matrix, random: np.random.Generator) -> Written:
    most = np.abs(matrix).max(1).astype(np.float32)
    values = np.round(matrix * (127 / most[:, None])).astype(np.int8)
    tensors = {
        ".weight": torch.from_numpy(values),
        ".SCB": torch.from_numpy(most),
        ".weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, values.astype(np.float32) * most[:, None] / 127


def bnb4(kind: str = "nf4", block: int = 32, *, nested: bool = False, storage: torch.dtype = torch.uint8) -> Writer:
    table = np.array(NF4 if kind == "nf4" else [*FP4, *(-value for value in FP4)], np.float32)

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        flat = matrix.reshape(-1)
        blocks = -(-flat.size // block)
        most = np.array([np.abs(flat[i * block : (i + 1) * block]).max() for i in range(blocks)], np.float32)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "float32",
            "shape": list(matrix.shape),
        }
        tensors: dict[str, torch.Tensor] = {}
        if nested:
            offset, inner = float(most.mean()), 256
            levels = np.linspace(-1, 1, 256).astype(np.float32)
            starts = range(0, blocks, inner)
            tops = np.array([np.abs(most[i : i + inner] - offset).max() for i in starts], np.float32)
            scaled = (most - offset) / tops[np.arange(blocks) // inner]
            codes = np.abs(scaled[:, None] - levels).argmin(1).astype(np.uint8)
            most = levels[codes] * tops[np.arange(blocks) // inner] + np.float32(offset)
            state |= {"nested_blocksize": inner, "nested_dtype": "float32", "nested_offset": offset}
            tensors[".weight.absmax"] = torch.from_numpy(codes)
            tensors[".weight.nested_absmax"] = torch.from_numpy(tops)
            tensors[".weight.nested_quant_map"] = torch.from_numpy(levels)
        else:
            tensors[".weight.absmax"] = torch.from_numpy(most)
        scale = most[np.arange(flat.size) // block]
        codes = np.abs((flat / scale)[:, None] - table).argmin(1).astype(np.uint8)
        tensors[".weight"] = torch.from_numpy((codes[0::2] << 4) | codes[1::2]).view(storage).unsqueeze(1)
        tensors[".weight.quant_map"] = torch.tensor(table)
        tensors[f".weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        )
        return tensors, (table[codes] * scale).reshape(matrix.shape)

    return write


def mxfp4(matrix: Matrix, random: np.random.Generator) -> Written:
    """Matrices (experts, out, in), or one. What they stand for is (experts, in, out)."""
    stack = matrix if matrix.ndim == 3 else matrix[None]
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    grouped = stack.reshape(*stack.shape[:2], -1, 32)
    powers = np.ceil(np.log2(np.abs(grouped).max(-1) / 6))
    codes = np.abs((grouped / 2.0 ** powers[..., None])[..., None] - table).argmin(-1).astype(np.uint8)
    meant = (table[codes] * 2.0 ** powers[..., None]).reshape(stack.shape)
    return {
        "_blocks": torch.from_numpy(codes[..., 0::2] | (codes[..., 1::2] << 4)),
        "_scales": torch.from_numpy((powers + 127).astype(np.uint8)),
    }, meant.transpose(0, 2, 1)


def torchao_integers(bits: int = 8, group: int = -1, *, symmetric: bool = True) -> Writer:
    """Int8Tensor, and IntxUnpackedToInt8Tensor of 8 or 4 bits."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        values, scales, zeros, groups = in_groups(matrix, random, bits, group, act_order=False, symmetric=symmetric)
        middle = 1 << bits - 1
        return {
            "._weight_qdata": torch.from_numpy((values - middle).astype(np.int8)),
            "._weight_scale": torch.from_numpy(scales),
            "._weight_zero_point": torch.from_numpy((zeros - middle).astype(np.int8)),
        }, restored(values, scales, zeros, groups)

    return write


def torchao_int4(group: int = 32) -> Writer:
    """Int4Tensor: signed halves of bytes, and for each group what is added, in bfloat16."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        grouped = matrix.reshape(len(matrix), -1, group)
        low, high = grouped.min(-1), grouped.max(-1)
        scale = torch.from_numpy((high - low) / 15).to(torch.bfloat16)
        added = torch.from_numpy(low + (high - low) / 15 * 8).to(torch.bfloat16)
        wide, up = scale.float().numpy()[..., None], added.float().numpy()[..., None]
        values = np.clip(np.round((grouped - up) / wide), -8, 7).astype(np.int8)
        codes = values.reshape(matrix.shape).view(np.uint8) & 15
        return {
            "._weight_qdata": torch.from_numpy((codes[:, 0::2] | (codes[:, 1::2] << 4)).view(np.int8)),
            "._weight_scale": scale.t().contiguous(),
            "._weight_zero_point": added.t().contiguous(),
        }, (values * wide + up).reshape(matrix.shape)

    return write


def torchao_float8(block: tuple[int, int] | str) -> Writer:
    """Float8Tensor."""

    def write(matrix: Matrix, random: np.random.Generator) -> Written:
        tensors, meant = float8(block, "weight_scale")(matrix, random)
        return {"._weight_qdata": tensors[".weight"], "._weight_scale": tensors[".weight_scale"]}, meant

    return write


def torchao_config(kind: str, **settings: Any) -> dict[str, Any]:
    """`quantization_config` as transformers' TorchAoConfig writes it."""
    default = {"_type": kind, "_version": 2, "_data": {"set_inductor_config": True, **settings}}
    return {"quant_method": "torchao", "quant_type": {"default": default}, "modules_to_not_convert": None}


def quantize_folder(
    folder: Path, write: Writer, config: Mapping[str, Any], *, of: str = ".layers."
) -> dict[str, torch.Tensor]:
    """Quantize the matrices of a checkpoint whose names have `of` in them. Returns all weights as they are meant."""
    (file,) = folder.glob("*.safetensors")
    stored: dict[str, torch.Tensor] = {}
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(file).items():
        if of in name and tensor.ndim == 2 and name.endswith(".weight"):
            random = np.random.default_rng(zlib.crc32(name.encode()))
            tensors, matrix = write(tensor.float().numpy(), random)
            stem = name.removesuffix(".weight")
            stored |= {stem + suffix: each for suffix, each in tensors.items()}
            meant[name] = torch.from_numpy(np.ascontiguousarray(matrix))
        else:
            stored[name] = meant[name] = tensor
    save_file(stored, file, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": dict(config)}))
    return meant
