"""GGML's blocks as integers with scales, against their decoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import STORED, Quant, parse_quant
from kamado.weights.ggml import BLOCK_FORMATS
from kamado.weights.ggml_tensor import GgmlTensor
from kamado.weights.quantized.stored.ggml import KEPT, kept
from kamado.weights.quantized.stored.reading import stored_tensors
from kamado.weights.quantized.tensor import QuantTensor

HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
}
"""Where a block has float16 numbers; the others have one at 0."""


def written(name: str, path: Path, rows: int = 6) -> TensorEntry:
    """A matrix of two or four blocks a row, of random bytes but for scales of a usual size."""
    values, nbytes = BLOCK_FORMATS[name].values, BLOCK_FORMATS[name].nbytes
    blocks = 512 // values
    generator = torch.Generator().manual_seed(sum(name.encode()))
    data = torch.randint(0, 256, (rows * blocks, nbytes), dtype=torch.uint8, generator=generator)
    for place in HALVES.get(name, (0,)):
        scales = (torch.rand((rows * blocks, 1), generator=generator) * 0.1 - 0.05).half()
        data[:, place : place + 2] = scales.view(torch.uint8)
    path.write_bytes(b"before" + data.numpy().tobytes())
    return TensorEntry("x.weight", name, (rows, 512), path, 6, data.numel())


def test_sizes_are_those_of_the_decoders() -> None:
    assert set(KEPT) == set(BLOCK_FORMATS)
    for name, how in KEPT.items():
        assert (how.values, how.nbytes) == (BLOCK_FORMATS[name].values, BLOCK_FORMATS[name].nbytes)


@pytest.mark.parametrize("name", KEPT)
def test_the_same_numbers(name: str, tmp_path: Path) -> None:
    entry = written(name, tmp_path / "file")
    weight = kept(entry)
    assert weight is not None
    read = stored_tensors({"x": weight}, torch.float32)["x"].read()
    assert isinstance(read, QuantTensor)
    assert read.packed.nbytes == weight.packed_bytes
    expected = GgmlTensor(entry).read()
    # A scale times a number and an offset is rounded once more than a scale times a larger number.
    assert (read.dequantize() - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_file_that_ends_too_early(tmp_path: Path) -> None:
    weight = kept(written("Q4_K", tmp_path / "file"))
    assert weight is not None
    (tmp_path / "file").write_bytes(bytes(100))
    with pytest.raises(UnsupportedCheckpoint, match="ends inside"):
        stored_tensors({"x": weight}, torch.float32)["x"].read()


def test_bytes_that_the_shape_contradicts(tmp_path: Path) -> None:
    entry = written("Q8_0", tmp_path / "file")
    weight = kept(TensorEntry(entry.name, entry.dtype, (7, 512), entry.file, entry.offset, entry.nbytes))
    assert weight is not None
    with pytest.raises(UnsupportedCheckpoint, match="must have"):
        stored_tensors({"x": weight}, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("IQ2_XS", (4, 256)), ("F16", (4, 256)), ("Q4_0", (4, 48)), ("Q4_0", (64,))]
)
def test_what_is_decoded(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    assert kept(TensorEntry("x", dtype, shape, tmp_path, 0, 0)) is None


def test_the_name() -> None:
    quant = parse_quant("stored")
    assert quant == Quant(scheme=STORED, embeddings=None, convolutions=None)
    assert quant.as_json() == "stored"
    assert quant.scheme_for("model.layers.0.mlp.up_proj.weight", (4096, 4096)) is None
    mixed = parse_quant({"scheme": "stored", "overrides": {"*.up_proj.*": "int4"}})
    assert mixed is not None
    assert parse_quant(mixed.as_json()) == mixed
    chosen = mixed.scheme_for("model.layers.0.mlp.up_proj.weight", (4096, 4096))
    assert chosen is not None
    assert chosen.name == "int4"
