"""GGML blocks, against the reference in the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights import ggml_tensor
from kamado.weights.ggml import BLOCK_FORMATS, block_format
from kamado.weights.ggml_tensor import GgmlTensor, TransformedTensor, gguf_tensor, row_slices

ALL_TYPES = sorted(
    t.name
    for t in gguf.GGMLQuantizationType
    if t in gguf.quants._type_traits and t.name not in ("F16", "BF16")  # those are read as they are
)
SCALE_BYTES = {  # where the float16 scales of a block lie
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Random bits, with scales that are numbers."""
    generator = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = generator.integers(0, 256, (count, size), dtype=np.uint8)
    for start in SCALE_BYTES.get(name, ()):
        scales = generator.standard_normal(count).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def reference(name: str, blocks: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        result: np.ndarray = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    return result


def entry_of(path: Path, name: str, blocks: np.ndarray, shape: tuple[int, ...]) -> TensorEntry:
    path.write_bytes(b"\x55" * 7 + blocks.tobytes())
    return TensorEntry("w", name, shape, path, 7, blocks.nbytes)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_decoding_is_bit_identical(name: str) -> None:
    blocks = random_blocks(name, 500)
    packed = BLOCK_FORMATS[name]
    out = torch.empty(500, packed.values)
    packed.decode(torch.from_numpy(blocks), out)
    assert (packed.values, packed.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert np.array_equal(reference(name, blocks).view(np.uint32), out.numpy().view(np.uint32))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_gguf_package_encodes(name: str) -> None:
    values = np.random.default_rng(1).standard_normal((8, 96)).astype(np.float32)
    values[3] = 0
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]).reshape(-1, BLOCK_FORMATS[name].nbytes)
    out = torch.empty(len(blocks), 32)
    BLOCK_FORMATS[name].decode(torch.from_numpy(blocks), out)
    assert np.array_equal(reference(name, blocks), out.numpy())
    assert np.abs(out.numpy().reshape(8, 96) - values).max() < 0.5


@pytest.mark.parametrize("name", ALL_TYPES)
def test_every_type_of_the_package_reads(name: str, tmp_path: Path) -> None:
    values, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random_blocks(name, 6)
    lazy = gguf_tensor(entry_of(tmp_path / "f", name, blocks, (3, 2 * values)))
    expected = torch.from_numpy(reference(name, blocks)).reshape(3, 2 * values)
    with np.errstate(all="ignore"):
        torch.testing.assert_close(lazy[...], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_make_the_whole(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml_tensor, "PIECE_VALUES", 96)
    monkeypatch.setattr(ggml_tensor, "READ_PIECES", 2)
    blocks = random_blocks("Q4_1", 5 * 7 * 2)
    lazy = GgmlTensor(entry_of(tmp_path / "f", "Q4_1", blocks, (5, 7, 64)), dtype=dtype)
    assert lazy.get_shape() == [5, 7, 64]
    expected = torch.from_numpy(reference("Q4_1", blocks)).reshape(5, 7, 64).to(dtype)
    assert lazy[...].dtype == lazy.dtype == dtype
    assert torch.equal(lazy[...], expected)


@pytest.mark.parametrize(
    ("shape", "cut", "message"),
    [
        ((3, 40), 0, "whole blocks of 32"),
        ((3, 32), 1, "must have 60 bytes"),
        ((), 0, "whole blocks"),
        ((0, 33), 0, "whole"),
    ],
)
def test_impossible_shapes_are_refused(shape: tuple[int, ...], cut: int, message: str, tmp_path: Path) -> None:
    entry = TensorEntry("w", "Q4_1", shape, tmp_path, 0, 60 - cut)
    with pytest.raises(UnsupportedCheckpoint, match=message):
        GgmlTensor(entry)


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    assert block_format("Q9_9") is None
    with pytest.raises(UnsupportedCheckpoint, match="GGML type Q9_9, which is unknown"):
        GgmlTensor(TensorEntry("w", "Q9_9", (32,), tmp_path, 0, 32))


def test_a_short_file_is_named(tmp_path: Path) -> None:
    blocks = random_blocks("Q6_K", 4)
    entry = entry_of(tmp_path / "model.gguf", "Q6_K", blocks, (2, 512))
    entry.file.write_bytes(entry.file.read_bytes()[:-1])
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.gguf ends inside tensor 'w'"):
        GgmlTensor(entry).read()


def test_experts_are_slices_of_the_stack(tmp_path: Path) -> None:
    blocks = random_blocks("Q8_0", 4 * 3 * 2)
    entry = entry_of(tmp_path / "f", "Q8_0", blocks, (4, 3, 64))
    whole = GgmlTensor(entry).read()
    parts = [GgmlTensor(part).read() for part in row_slices(entry).values()]
    assert torch.equal(torch.stack(parts), whole)
    with pytest.raises(UnsupportedCheckpoint, match="cannot be cut"):
        row_slices(TensorEntry("w", "F32", (3,), tmp_path, 0, 12))


def test_transforms_that_fail_say_which_tensor(tmp_path: Path) -> None:
    blocks = random_blocks("Q8_0", 4)
    source = GgmlTensor(entry_of(tmp_path / "f", "Q8_0", blocks, (2, 64)))
    good = TransformedTensor("t", (source, source), torch.bfloat16, lambda a, b: (a + b).t())
    assert good[...].dtype == torch.bfloat16 and good[...].is_contiguous() and good[...].shape == (64, 2)
    bad = TransformedTensor("model.q", (source,), torch.float32, lambda a: a.reshape(3, 5))
    with pytest.raises(UnsupportedCheckpoint, match=r"'model\.q' cannot be made of tensors of shape \[2, 64\]"):
        bad.read()
