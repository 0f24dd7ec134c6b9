"""Conversions of tensors that are not read yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.deferred import converted
from kamado.weights.stream import LazyTensor, lazy_tensors


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    tensors = {
        "qkv": torch.randn(12, 5, generator=generator),
        "kernel": torch.randn(4, 3, 1, 1, generator=generator),
        "half": torch.randn(6, 6, generator=generator).to(torch.float16),
        "count": torch.tensor(7),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    return tensors


@pytest.fixture
def lazy(stored: Any, tmp_path: Path) -> dict[str, LazyTensor]:
    return lazy_tensors(read_safetensors_header(tmp_path / "x.safetensors").tensors)


Tensors = dict[str, torch.Tensor]


def _cut(tensors: Tensors) -> Mapping[str, torch.Tensor]:
    q, k, v = tensors.pop("qkv").chunk(3, dim=0)
    first, rest = torch.split(tensors["half"], (2, 4))
    return {"q": torch.cat([q]), "kv": torch.cat([k, v]), "v": v, "swapped": torch.cat([rest, first]), "first": first}


def _turned(tensors: Tensors) -> Mapping[str, torch.Tensor]:
    kernel = tensors["kernel"]
    assert kernel.ndim == 4 and len(kernel.shape) == 4 and kernel.dtype == torch.float32
    return {
        "linear": kernel[:, :, 0, 0],
        "transposed": tensors["half"].T.contiguous(),
        "copy": tensors["qkv"][4:8, :].clone().detach(),
        "same": tensors["qkv"],
        "made": torch.eye(3),
        "mixed": tensors["qkv"][:5, :5] + torch.eye(5),
        "shaped": tensors["qkv"].reshape(3, 4, 5).permute(0, 2, 1).flatten(),
        "count": tensors["count"],
    }


@pytest.mark.parametrize("conversion", [_cut, _turned])
def test_results_are_those_of_the_conversion_itself(
    conversion: Callable[[Tensors], Mapping[str, torch.Tensor]], stored: Tensors, lazy: dict[str, LazyTensor]
) -> None:
    wanted = conversion(dict(stored))
    made = converted(lazy, conversion)
    assert made.keys() == wanted.keys()
    for name, tensor in made.items():
        assert tensor.name == name
        assert (tuple(tensor.shape), tensor.dtype) == (tuple(wanted[name].shape), wanted[name].dtype)
        read = tensor.read()
        assert type(read) is torch.Tensor and torch.equal(read, wanted[name])
        assert read.untyped_storage().nbytes() == tensor.nbytes == read.numel() * read.element_size()
        assert torch.equal(tensor[...], wanted[name])
        if read.ndim:
            assert torch.equal(tensor[0], wanted[name][0])


def test_it_works_in_any_grad_mode(lazy: dict[str, LazyTensor], stored: Tensors) -> None:
    with torch.inference_mode():
        made = converted(lazy, _cut)
        assert torch.equal(made["v"].read(), stored["qkv"][8:])


def test_nothing_is_read_before_it_is_wanted(
    lazy: dict[str, LazyTensor], stored: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = LazyTensor.read

    def counted(self: LazyTensor) -> torch.Tensor:
        reads.append(self.name)
        return read(self)

    monkeypatch.setattr(LazyTensor, "read", counted)
    made = converted(lazy, _cut)
    assert reads == []
    for name in ("q", "kv", "v"):
        made[name].read()
    assert reads == ["qkv"], "pieces of one tensor, one after the other, read it once"
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedCheckpoint, match="ends inside tensor 'half'"):
        made["first"].read()


def test_what_a_conversion_raises_comes_out(lazy: dict[str, LazyTensor]) -> None:
    with pytest.raises(KeyError, match="missing"):
        converted(lazy, lambda tensors: {"x": tensors["missing"]})
    with pytest.raises(RuntimeError, match="split"):
        converted(lazy, lambda tensors: {"x": torch.split(tensors["qkv"], (5, 5))[0]})
