"""Weights that are not on the device: kept in a file or in RAM, there when their module runs, and only then."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kamado
from kamado.memory.placement import place
from kamado.quant import Quant
from kamado.weights.outside.stores import DiskStore, RamStore, Store
from kamado.weights.outside.tensors import tensors_of
from kamado.weights.outside.weights import OutsideWeights, kept_single
from kamado.weights.quantized.reading import quantizing
from kamado.weights.quantized.tensor import QuantTensor, held_bytes


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.up(x).relu())
        return result


class Net(nn.Module):
    """An embedding that is the output matrix, too, and blocks between."""

    def __init__(self, width: int = 64, depth: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.head = nn.Linear(width, 100, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        result: Tensor = self.head(x)
        return result


class Read:
    """A tensor as readers of checkpoints hand it out."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def read(self) -> Tensor:
        return self.tensor.clone()


STORES: dict[str, Callable[[Path], Store]] = {
    "disk": lambda folder: DiskStore(folder, 1 << 20),
    "ram": lambda folder: RamStore(1 << 20, pinned=False),
}


def split(net: Net, store: Store, layers: set[int], quant: str | None = None) -> tuple[Net, OutsideWeights, int]:
    """A second net with the same weights, those of `layers` outside; and the bytes that it holds."""
    state = {name: tensor.detach() for name, tensor in net.state_dict().items() if name != "head.weight"}
    names = frozenset(name for name in state if any(name.startswith(f"layers.{i}.") for i in layers))
    outside = OutsideWeights(store, names, "cpu")
    readers: dict[str, Any] = {name: Read(tensor) for name, tensor in state.items()}
    if quant is not None:
        readers = quantizing(readers, Quant(scheme=quant), torch.float32)
    readers = outside.reading(readers, torch.float32)
    with torch.device("meta"):
        other = Net()
    other.load_state_dict({name: reader.read() for name, reader in readers.items()}, assign=True, strict=False)
    other.head.weight = other.embed.weight
    other.requires_grad_(False)
    return other, outside, outside.attach({"": other})


@pytest.mark.parametrize("tier", STORES)
@pytest.mark.parametrize("layers", [{0, 1, 2, 3, 4}, {1, 3}, {0, 2, 3, 4}, {2}])
def test_answers_are_the_same(tmp_path: Path, tier: str, layers: set[int]) -> None:
    net = Net().requires_grad_(False)
    other, outside, held = split(net, STORES[tier](tmp_path), layers)
    for seed in range(3):
        tokens = torch.randint(0, 100, (2, 7), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(other(tokens), net(tokens))
    block = sum(tensor.nbytes for tensor in net.layers[0].parameters())
    assert held == held_bytes(net.parameters()) - len(layers) * block + 2 * block
    outside.close()


@pytest.mark.parametrize("tier", STORES)
@pytest.mark.parametrize("scheme", ["int8", "int4", "nf4", "fp8"])
def test_quantized_ones(tmp_path: Path, tier: str, scheme: str) -> None:
    net, tokens = Net().requires_grad_(False), torch.arange(20).view(2, 10)
    whole, nothing, _ = split(net, STORES[tier](tmp_path), set(), scheme)
    other, outside, held = split(net, STORES[tier](tmp_path), {0, 1, 3, 4}, scheme)
    assert isinstance(other.layers[0].up.weight.data, QuantTensor)
    assert torch.equal(other(tokens), whole(tokens))
    assert held < held_bytes(whole.parameters())
    nothing.close()
    outside.close()


def test_a_block_that_fails_is_left_like_any_other(tmp_path: Path) -> None:
    """And other orders than the usual one give right answers."""
    net = Net().requires_grad_(False)
    other, _, _ = split(net, RamStore(0, pinned=False), {0, 1, 2, 3, 4})
    x = torch.randn(3, 64)
    with pytest.raises(RuntimeError):
        other.layers[1](torch.randn(3, 63))
    for index in (4, 0, 0, 3, 1, 4, 2):
        assert torch.equal(other.layers[index](x), net.layers[index](x))
        stays = [tensor for parameter in other.layers[index].parameters() for tensor in tensors_of(parameter)]
        assert sum(each.nbytes for each in stays) == sum(each.nbytes for each in net.layers[index].parameters())


def test_blocks_that_run_in_turn_are_read_ahead(tmp_path: Path) -> None:
    asked: list[str] = []

    class Told(DiskStore):
        def expect(self, tensors: Any) -> None:
            asked.append(f"expect {sorted(tensor.data_ptr() for tensor in tensors)[0] if tensors else 0}")

        def forget(self, tensors: Any) -> None:
            asked.append("forget")

    net = Net().requires_grad_(False)
    other, outside, _ = split(net, Told(tmp_path, 0), {0, 2, 4})
    asked.clear()
    other(torch.arange(4))
    assert [each.split()[0] for each in asked] == ["expect", "forget"] * 3
    outside.close()


def test_a_file_has_no_name_and_leaves_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 100)
    kept = store.keep(torch.arange(1000.0))
    assert list(tmp_path.iterdir()) == []
    store.close()
    assert torch.equal(kept, torch.arange(1000.0)), "what somebody still has stays readable"


def test_many_sizes_and_types(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 0)
    tensors = [
        torch.randn(3, 5),
        torch.randn(7).bfloat16(),
        torch.arange(11, dtype=torch.int8),
        torch.zeros(0, 4),
        torch.tensor(2.5),
        torch.randn(1 << 20).half(),
        torch.randn(40, 30).t(),
    ]
    for tensor, kept in zip(tensors, [store.keep(tensor) for tensor in tensors], strict=True):
        assert kept.dtype == tensor.dtype and kept.is_contiguous() and torch.equal(kept, tensor)


def test_a_disk_without_room_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(kamado.DoesNotFit, match=r"4\.00 KiB of weights would have to lie in .*KAMADO_HOME") as caught:
        DiskStore(tmp_path, 4096)
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (4096, 1000)


def test_what_a_class_keeps_in_float32() -> None:
    class Kind:
        _keep_in_fp32_modules = ["wo"]  # noqa: RUF012 - as libraries write it

    single = kept_single(Kind)
    assert single("encoder.block.0.wo.weight") and not single("encoder.block.0.wi.weight")


class Nested(nn.Module):
    """Few large members, with lists of their own: those are the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleDict({"parts": nn.ModuleList(nn.Linear(64, 64) for _ in range(6))}) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for level in self.levels:
            for part in level["parts"]:
                x = part(x).tanh()
        return x


def test_the_loader_cuts_as_the_plan_does(tmp_path: Path) -> None:
    net = Nested().requires_grad_(False)
    sizes = {name: tensor.nbytes for name, tensor in net.state_dict().items()}
    placed = place([sizes], 0)
    outside = OutsideWeights(DiskStore(tmp_path, 0), placed.outside, "cpu")
    readers = outside.reading({name: Read(tensor) for name, tensor in net.state_dict().items()}, torch.float32)
    with torch.device("meta"):
        other = Nested()
    other.load_state_dict({name: reader.read() for name, reader in readers.items()}, assign=True)
    held = outside.attach({"": other.requires_grad_(False)})
    planned = sum(sizes.values()) - placed.outside_bytes + placed.window_bytes
    assert planned <= held <= planned + 2 * 256 * 2
    x = torch.randn(3, 64)
    assert torch.equal(other(x), net(x))
    outside.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(kamado.KamadoError, match=r"cannot be put into .*KAMADO_HOME"):
        DiskStore(tmp_path / "file" / "below", 10)


def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = DiskStore(tmp_path, 10)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(kamado.DoesNotFit, match="make room there") as caught:
        store.keep(torch.ones(4))
    assert caught.value.place == "disk"
