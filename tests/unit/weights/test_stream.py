"""Tensors that are read when they are asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.stream import TORCH_DTYPES, LazyTensor, lazy_tensors, renamed


def stored(path: Path, tensor: torch.Tensor, dtype: str, *, before: int = 3) -> TensorEntry:
    """`tensor` in a file, at an odd offset, with other bytes around it."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    path.write_bytes(b"\xaa" * before + data + b"\xbb" * 5)
    return TensorEntry("weight", dtype, tuple(tensor.shape), path, before, len(data))


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_element_type_comes_back_as_stored(name: str, tmp_path: Path) -> None:
    dtype = TORCH_DTYPES[name]
    raw = torch.arange(24 * dtype.itemsize, dtype=torch.uint8)
    tensor = (raw % 2).view(torch.bool) if dtype == torch.bool else raw.view(dtype)
    tensor = tensor.reshape(2, 3, 4)
    lazy = LazyTensor(stored(tmp_path / "f", tensor, name))

    result = lazy[...]

    assert result.dtype == lazy.dtype == dtype
    assert tuple(result.shape) == lazy.shape == (2, 3, 4)
    assert lazy.get_shape() == [2, 3, 4] and lazy.get_dtype() == name
    assert torch.equal(result.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 0, 2)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.ones(shape)
    result = LazyTensor(stored(tmp_path / "f", tensor, "F32")).read()
    assert result.shape == tensor.shape and torch.equal(result, tensor)


def test_each_read_is_a_fresh_tensor_that_may_be_changed(tmp_path: Path) -> None:
    lazy = LazyTensor(stored(tmp_path / "f", torch.arange(6.0), "F32"))
    first = lazy[...]
    first.zero_()
    assert lazy[...].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert lazy[2:4].tolist() == [2.0, 3.0]


def test_a_file_that_ends_early_is_named_with_its_tensor(tmp_path: Path) -> None:
    entry = stored(tmp_path / "short.safetensors", torch.arange(6.0), "F32")
    entry.file.write_bytes(entry.file.read_bytes()[:20])
    with pytest.raises(UnsupportedCheckpoint, match=r"short\.safetensors ends inside tensor 'weight', after 17 of 24"):
        LazyTensor(entry).read()


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    entry = stored(tmp_path / "f", torch.arange(6.0), "F32")
    entry.file.unlink()
    with pytest.raises(UnsupportedCheckpoint, match="cannot read tensor 'weight': No such file"):
        LazyTensor(entry).read()


@given(nbytes=st.integers(0, 100), shape=st.lists(st.integers(0, 8), max_size=3))
def test_a_byte_count_that_the_shape_contradicts_is_refused(nbytes: int, shape: list[int]) -> None:
    entry = TensorEntry("w", "F32", tuple(shape), Path("nowhere"), 0, nbytes)
    if nbytes == 4 * entry.numel:
        assert LazyTensor(entry).nbytes == nbytes
    else:
        with pytest.raises(UnsupportedCheckpoint, match="bytes, not"):
            LazyTensor(entry)


def test_an_unknown_element_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="F4, which cannot be read"):
        LazyTensor(TensorEntry("w", "F4", (2,), tmp_path, 0, 1))


def test_threads_read_at_once_and_progress_adds_up(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(100, 50) for i in range(20)}
    entries = {}
    for name, tensor in tensors.items():
        entries[name] = stored(tmp_path / name, tensor, "F32")
    seen: list[tuple[int, int]] = []
    lazy = lazy_tensors(entries, progress=lambda done, total: seen.append((done, total)))
    barrier = threading.Barrier(4)

    def read(names: list[str]) -> None:
        barrier.wait(timeout=30)
        for name in names:
            assert torch.equal(lazy[name][...], tensors[name])

    names = list(tensors)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [names[i::4] for i in range(4)]))

    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (20 * 100 * 50 * 4, 20 * 100 * 50 * 4)


def test_names_are_stripped_added_and_left_out() -> None:
    tensors = {"unet.a.w": 1, "unet.b.w": 2, "vae.a.w": 3}
    assert renamed(tensors, strip="unet.", add="model.") == {"model.a.w": 1, "model.b.w": 2}
    dropped = renamed(tensors, strip="unet.", rename=lambda name: None if name == "b.w" else name.upper())
    assert dropped == {"A.W": 1}
    with pytest.raises(UnsupportedCheckpoint, match="two tensors of the checkpoint are named 'x'"):
        renamed(tensors, rename=lambda name: "x")
