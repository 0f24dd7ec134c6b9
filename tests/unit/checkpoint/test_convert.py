"""Converting pickles: only on demand, only in a process of its own, and a hostile one does nothing."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kamado.checkpoint.convert import convert_pickles
from kamado.checkpoint.inspect import inspect
from kamado.errors import InvalidRequest, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint

WEIGHT = torch.arange(12, dtype=torch.float32).reshape(3, 4)
STATE = {"w": WEIGHT, "tied": WEIGHT, "view": WEIGHT[1:], "turned": WEIGHT.T, "b": WEIGHT.to(torch.bfloat16), "step": 3}


class Hostile:
    """Unpickled without care, it leaves a mark."""

    def __init__(self, mark: Path, call: Callable[..., object] = os.system) -> None:
        self.mark = mark
        self.call = call

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return self.call, (f"touch {self.mark}" if self.call is os.system else str(self.mark),)


def assert_converted(file: Path) -> None:
    found = load_file(file)
    assert set(found) == {"w", "tied", "view", "turned", "b"}
    for name, tensor in found.items():
        assert torch.equal(tensor, STATE[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("zipped", [True, False])
def test_one_file(zipped: bool, tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    (done,) = convert_pickles(tmp_path / "net.pth", tmp_path / "out")
    assert (done.num_tensors, done.dropped, done.target) == (5, ("step",), tmp_path / "out" / "net.safetensors")
    assert_converted(done.target)


def test_tensors_beside_the_dictionary_are_kept(tmp_path: Path) -> None:
    torch.save({"g_ema": {"a": WEIGHT}, "g": {"a": 0 * WEIGHT}, "mean": WEIGHT, "step": 3}, tmp_path / "net.pt")
    (done,) = convert_pickles(tmp_path / "net.pt", tmp_path / "out")
    found = load_file(done.target)
    assert set(found) == {"a", "mean"} and all(torch.equal(tensor, WEIGHT) for tensor in found.values())


def test_settings_of_a_training_program_are_left_out(tmp_path: Path) -> None:
    """As programs that read their command line with argparse save them."""
    settings = argparse.Namespace(size=64, lr=0.002)
    torch.save({"g_ema": {"a": torch.ones(2)}, "args": settings}, tmp_path / "net.pt")
    (done,) = convert_pickles(tmp_path / "net.pt", tmp_path / "out")
    assert list(load_file(done.target)) == ["a"]


def test_a_folder_becomes_one_that_loads(tmp_path: Path) -> None:
    source = tmp_path / "m"
    source.mkdir()
    torch.save({"a": WEIGHT}, source / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": WEIGHT}, source / "pytorch_model-00002-of-00002.bin")
    parts = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    (source / "config.json").write_text("{}")
    (source / "code.py").write_text("raise SystemExit")
    with pytest.raises(UnsafeCheckpoint):
        inspect(source)
    convert_pickles(source, tmp_path / "out")
    checkpoint = inspect(tmp_path / "out")
    assert sorted(checkpoint.tensors) == ["a", "b"]
    assert not (tmp_path / "out" / "code.py").exists()


@pytest.mark.parametrize("call", [os.system, os.unlink], ids=["program", "delete"])
def test_a_hostile_pickle_does_nothing(call: Callable[..., object], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    if call is os.unlink:
        mark.write_text("")
    torch.save({"w": WEIGHT, "x": Hostile(mark, call)}, tmp_path / "evil.bin")
    with pytest.raises(UnsafeCheckpoint, match="more than tensors"):
        convert_pickles(tmp_path / "evil.bin", tmp_path / "out")
    assert mark.exists() == (call is os.unlink)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_plain_hostile_pickle_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Hostile(tmp_path / "mark"), protocol=2))
    with pytest.raises(KamadoError):
        convert_pickles(tmp_path / "evil.pkl", tmp_path / "out")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x02.", b"PK\x03\x04" + bytes(50)], ids=repr)
def test_damaged_pickles(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises((UnsupportedCheckpoint, UnsafeCheckpoint)):
        convert_pickles(tmp_path / "x.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [1 << 26, 1 << 60])
def test_shapes_that_one_number_fills(length: int, tmp_path: Path) -> None:
    torch.save({"w": WEIGHT, "wide": torch.zeros(1).expand(length)}, tmp_path / "x.bin")
    with pytest.raises(UnsupportedCheckpoint, match=r"its tensors would take \d+ bytes, and the file has far fewer"):
        convert_pickles(tmp_path / "x.bin", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize("content", [b"", b"eleven plain words\n", b"\x89PNG\r\n\x1a\n", b"{}"], ids=repr)
def test_what_is_no_pickle_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m" / "pytorch_model.bin"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(UnsupportedCheckpoint, match="is no pickle of weights"):
        convert_pickles(file, tmp_path / "out")
    with pytest.raises(UnsupportedCheckpoint, match=r"no pickles to convert: pytorch_model\.bin"):
        convert_pickles(file.parent, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_fails_is_not_blamed_on_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": WEIGHT}, tmp_path / "x.bin")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(KamadoError, match="out cannot be written: No space left on device"):
        convert_pickles(tmp_path / "x.bin", tmp_path / "out")


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "m"
    source.mkdir()
    torch.save({"w": WEIGHT}, source / "pytorch_model.bin")
    (source / "config.json").write_text("{}")

    def fail(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(KamadoError, match=r"m/config\.json cannot be read: Permission denied"):
        convert_pickles(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_cut_pickle_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x80\x02e.")
    with pytest.raises(UnsupportedCheckpoint, match=r"damaged, or not one that torch\.save wrote"):
        convert_pickles(tmp_path / "x.bin", tmp_path / "out")


def test_a_pickle_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.ckpt")
    with pytest.raises(UnsupportedCheckpoint, match="no dictionary of tensors"):
        convert_pickles(tmp_path / "x.ckpt", tmp_path / "out")


def test_it_gives_up_in_time(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.bin")
    with pytest.raises(UnsupportedCheckpoint, match="given up"):
        convert_pickles(tmp_path / "x.bin", tmp_path / "out", timeout_s=0.05)
    assert not (tmp_path / "out").exists()


def test_wrong_use(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.bin")
    with pytest.raises(ModelNotFound):
        convert_pickles(tmp_path / "y.bin", tmp_path / "out")
    with pytest.raises(InvalidRequest, match="already"):
        convert_pickles(tmp_path / "x.bin", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedCheckpoint, match="no pickles"):
        convert_pickles(tmp_path / "empty", tmp_path / "out")


def test_the_child_is_never_imported() -> None:
    assert not [name for name in sys.modules if "convert_child" in name]
