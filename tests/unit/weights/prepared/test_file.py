"""Tensors written with their descriptions, mapped again, and what becomes of damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from kamado.quant import SCHEMES, parse_quant
from kamado.weights.prepared.file import Contents, Layout, Unusable, check_sum
from kamado.weights.prepared.forms import Describing, NotKept
from kamado.weights.prepared.modules import Described, fill
from kamado.weights.quantized.forms import quantize
from kamado.weights.quantized.integers import Integers
from kamado.weights.quantized.tensor import QuantTensor, as_parameter, held_bytes, is_quantized, stack_of
from kamado.weights.quantized.tiled import tile

KEY = {"what": "test", "number": 1, "path": Path("x")}
RUNNABLE = sorted(set(SCHEMES) - {"stored"})


class Model(nn.Module):
    """A quantized matrix that two modules share, a stack, a plain one that lies otherwise, buffers."""

    def __init__(self, scheme: str, *, empty: bool = False) -> None:
        super().__init__()
        device = "meta" if empty else "cpu"
        self.one, self.other = nn.Linear(64, 48, device=device), nn.Linear(64, 48, bias=False, device=device)
        self.stack = nn.Parameter(torch.empty((2, 48, 64), device=device), requires_grad=False)
        self.image = nn.Parameter(torch.empty((8, 4, 3, 3), device=device), requires_grad=False)
        self.register_buffer("angles", torch.arange(7.0, device=device), persistent=False)
        self.register_buffer("count", torch.tensor(3, device=device))
        self.register_buffer("nothing", torch.empty((0, 4), device=device))
        self.requires_grad_(False)
        if not empty:
            self._fill(scheme)

    def _fill(self, scheme: str) -> None:
        generator = torch.Generator().manual_seed(3)
        form = parse_quant(scheme)
        assert form is not None
        how = form.scheme_for("one.weight", (4096, 4096))
        assert how is not None

        def drawn() -> Any:
            return quantize(torch.randn((48, 64), generator=generator), how)

        self.one.weight = as_parameter(QuantTensor(drawn(), torch.float32))
        self.other.weight = self.one.weight
        self.stack = as_parameter(stack_of([drawn(), drawn()], torch.float32))
        values = torch.randn((8, 4, 3, 3), generator=generator).to(memory_format=torch.channels_last)
        self.image = nn.Parameter(values, requires_grad=False)


def written(path: Path, model: nn.Module, **told: Any) -> Path:
    described = Described({"": model})
    key = json.loads(json.dumps(KEY, default=str))
    with path.open("wb") as file:
        assert Layout(described.parts).write(file, {"key": key, "tensors": described.tensors, **told})
    return path


@pytest.mark.parametrize("scheme", RUNNABLE)
def test_modules_come_back_bit_for_bit(scheme: str, tmp_path: Path) -> None:
    model = Model(scheme)
    file = Contents(written(tmp_path / "a", model, facts={"x": [1, None]}), KEY)
    file.verify()
    assert file.told["facts"] == {"x": [1, None]}
    found = Model(scheme, empty=True)
    fill({"": found}, file, "cpu")
    assert found.one.weight is found.other.weight
    for name, wanted in model.named_parameters():
        got = found.get_parameter(name)
        assert isinstance(got, nn.Parameter) and not got.requires_grad
        assert (got.shape, got.dtype, is_quantized(got)) == (wanted.shape, wanted.dtype, is_quantized(wanted))
        if is_quantized(wanted):
            assert type(got.packed) is type(wanted.packed) and got.packed.settings == wanted.packed.settings  # type: ignore[attr-defined]
            parts = wanted.packed.parts  # type: ignore[attr-defined]
            assert all(torch.equal(got.packed.parts[each], parts[each]) for each in parts)  # type: ignore[attr-defined]
            assert all(got.packed.parts[each].data_ptr() % 64 == 0 for each in parts)  # type: ignore[attr-defined]
        else:
            assert torch.equal(got, wanted) and got.stride() == wanted.stride()
    buffers = dict(found.named_buffers())
    assert all(torch.equal(each, buffers[name]) for name, each in model.named_buffers())
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(5))
    assert torch.equal(found.one(x), model.one(x))
    tensors = [*model.parameters(), *model.buffers()]
    assert held_bytes([*found.parameters(), *found.buffers()]) == held_bytes(tensors)


def test_panels_come_back(tmp_path: Path) -> None:
    model = Model("int8")
    packed = model.one.weight.packed
    assert isinstance(packed, Integers)
    model.one.weight.packed = tile(packed)  # type: ignore[assignment]
    found = Model("int8", empty=True)
    fill({"": found}, Contents(written(tmp_path / "a", model), KEY), "cpu")
    assert found.one.weight.packed.form == "tiled-integers"
    assert torch.equal(found.one.weight.packed.dequantize(torch.float32), packed.dequantize(torch.float32))


def test_others_can_read_it(tmp_path: Path) -> None:
    model = Model("int8")
    path = written(tmp_path / "a.safetensors", model)
    part = Contents(path, KEY).told["tensors"]["/one.weight"]["parts"]["values"]
    assert torch.equal(load_file(path)[part], model.one.weight.packed.parts["values"])  # type: ignore[union-attr]


def test_what_is_written_to_a_tensor_stays_here(tmp_path: Path) -> None:
    path = written(tmp_path / "a", Model("int8"))
    before = path.read_bytes()
    file = Contents(path, KEY)
    part = file.part("0")
    part.fill_(7)
    assert path.read_bytes() == before
    path.unlink()
    assert bool((part == 7).all())


@pytest.mark.parametrize("at", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("how", ["cut", "changed", "zeroed"])
def test_damage_is_seen(how: str, at: float, tmp_path: Path) -> None:
    path = written(tmp_path / "a", Model("int8"))
    data = bytearray(path.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    if how == "cut":
        data = data[:place]
    elif how == "changed":
        data[place] ^= 4
    else:
        before = bytes(data)
        data[place : place + 512] = bytes(len(data[place : place + 512]))
        if data == before:
            data[place] = 1
    path.write_bytes(data)
    with pytest.raises(Unusable):
        Contents(path, KEY).verify()


def test_what_is_of_something_else_is_not_used(tmp_path: Path) -> None:
    path = written(tmp_path / "a", Model("int8"))
    with pytest.raises(Unusable):
        Contents(path, {**KEY, "number": 2})
    file = Contents(path, KEY)
    for other in (Model("int4", empty=True).one, nn.Linear(64, 48, device="meta")):
        with pytest.raises(Unusable):
            fill({"": other}, file, "cpu")
    smaller = Model("int8", empty=True)
    smaller.image = nn.Parameter(torch.empty((8, 4, 3, 2), device="meta"), requires_grad=False)
    with pytest.raises(Unusable):
        fill({"": smaller}, file, "cpu")


def test_what_cannot_be_described_is_not_kept() -> None:
    with pytest.raises(NotKept):
        Described({"": nn.Linear(4, 4)})  # in full precision
    model = Model("int8")
    model.loose = torch.zeros(3)
    with pytest.raises(NotKept):
        Described({"": model})
    del model.loose
    model.angles = torch.zeros(3, dtype=torch.complex64)
    with pytest.raises(NotKept):
        Described({"": model})
    model.angles = torch.zeros(9)[1:]
    model.count = model.angles[2:]
    with pytest.raises(NotKept):
        Described({"": model})
    with pytest.raises(NotKept):
        Describing().tensor("x", torch.empty(3, device="meta"))


def test_writing_can_be_stopped(tmp_path: Path) -> None:
    layout = Layout(Described({"": Model("int8")}).parts)
    answers = iter([True] * 3 + [False] * 100)
    with (tmp_path / "a").open("wb") as file:
        assert not layout.write(file, {}, lambda: next(answers))


@given(st.binary(min_size=1, max_size=20_000), st.data())
def test_check_sums_tell_changes(data: bytes, draw: st.DataObject) -> None:
    import numpy

    place = draw.draw(st.integers(0, len(data) - 1))
    flipped = bytearray(data)
    flipped[place] ^= draw.draw(st.integers(1, 255))
    assert check_sum(numpy.frombuffer(data, numpy.uint8)) != check_sum(numpy.frombuffer(bytes(flipped), numpy.uint8))
    pages = bytes(4096) + data.ljust(20_480, b"\1")
    swapped = pages[4096:8192] + pages[:4096] + pages[8192:]
    if swapped != pages:
        assert check_sum(numpy.frombuffer(pages, numpy.uint8)) != check_sum(numpy.frombuffer(swapped, numpy.uint8))
