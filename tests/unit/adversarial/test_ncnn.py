"""Real-ESRGAN's networks in ncnn's form: equal to spandrel's own call, and nothing else is taken for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

import kamado
import ncnn_files
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.ncnn_header import NcnnLayer
from kamado_models.adversarial.family import FAMILY

from .restorers import oracle, photo, shaken


def rrdbnet(blocks: int = 2) -> dict[str, Tensor]:
    """By Real-ESRGAN's names, with fewer features than published networks have."""
    generator = torch.Generator().manual_seed(2)
    sizes = {"conv_first": (3, 6), "conv_body": (6, 6), "conv_up1": (6, 6), "conv_up2": (6, 6), "conv_hr": (6, 6)}
    for each in range(blocks * 3):
        dense = [(6 + 32 * number, 32 if number < 4 else 6) for number in range(5)]
        sizes |= {f"body.{each // 3}.rdb{each % 3 + 1}.conv{k + 1}": size for k, size in enumerate(dense)}
    state = {}
    for name, (before, after) in {**sizes, "conv_last": (6, 3)}.items():
        state[f"{name}.weight"] = torch.randn((after, before, 3, 3), generator=generator) / (9 * before) ** 0.5
        state[f"{name}.bias"] = torch.randn(after, generator=generator) / 10
    return state


def srvgg(scale: int) -> dict[str, Tensor]:
    from spandrel.architectures.Compact import Compact

    state = shaken(Compact(num_feat=5, num_conv=3, upscale=scale))
    return {name: value + 0.1 if value.ndim == 1 else value for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["rrdbnet", "srvgg"])
def test_the_networks_equal_spandrels_own_call(
    runtime: kamado.Runtime, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    state, scale = (rrdbnet(), 4) if kind == "rrdbnet" else (srvgg(3), 3)
    written = ncnn_files.rrdbnet(state, dtype) if kind == "rrdbnet" else ncnn_files.srvgg(state, 3, dtype)
    stored = {name: value.to(dtype).float() if value.ndim > 1 else value for name, value in state.items()}
    model = runtime.load(ncnn_files.saved(written, tmp_path))
    pictures = [photo(14, 9), photo(8, 8), photo(8, 8, seed=4)]
    expected = [oracle(stored, each) for each in pictures]
    alone = [model.generate(image=each).pixels[0] for each in pictures]
    crowd = [each.pixels[0] for each in model.generate_many([{"image": each} for each in pictures])]
    assert alone[0].shape == (9 * scale, 14 * scale, 3)
    for one, two, wanted in zip(alone, crowd, expected, strict=True):
        assert max(numpy.abs(one - wanted).max(), numpy.abs(two - wanted).max()) < 1e-4
        assert wanted.std() > 0.01
    assert model.info["architecture"] == ("ESRGAN" if kind == "rrdbnet" else "Compact (SRVGG)")


def _written(kind: str) -> ncnn_files.Writer:
    return ncnn_files.rrdbnet(rrdbnet()) if kind == "rrdbnet" else ncnn_files.srvgg(srvgg(3), 3)


OTHERS = {
    "another slope": ("rrdbnet", "1,2.000000e-01", "1,1.000000e-01"),
    "another weight of the residue": ("rrdbnet", "2,2.000000e-01,1", "2,1.000000e-01,1"),
    "another interpolation": ("rrdbnet", "0=1 1=2", "0=2 1=2"),
    "another stride": ("rrdbnet", "1=3 4=1", "1=3 3=2 4=1"),
    "another padding": ("srvgg", "4=1", "4=0"),
    "a product instead of a sum": ("srvgg", "Interp_11 BinaryOp_12", "Interp_11 BinaryOp_12 0=2"),
    "a factor that its channels do not have": ("srvgg", "Shuffle_10 0=3", "Shuffle_10 0=2"),
    "inputs that changed places": ("rrdbnet", "Convolution_1_6 Convolution_2_3", "Convolution_2_3 Convolution_1_6"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_refused(tmp_path: Path, name: str) -> None:
    kind, before, after = OTHERS[name]
    path = ncnn_files.saved(_written(kind), tmp_path)
    text = path.read_text()
    while "  " in text:
        text = text.replace("  ", " ")
    assert before in text
    path.write_text(text.replace(before, after))
    checkpoint = inspect(path)
    assert FAMILY.claims(checkpoint)
    with pytest.raises(kamado.UnsupportedCheckpoint, match="neither an RRDBNet"):
        FAMILY.tasks(checkpoint)


@pytest.mark.parametrize("kind", ["rrdbnet", "srvgg"])
def test_shorter_and_longer_networks_are_refused(tmp_path: Path, kind: str) -> None:
    whole = inspect(ncnn_files.saved(_written(kind), tmp_path))
    layers = whole.metadata["layers"]
    extra = NcnnLayer(type="Interp", name="more", inputs=layers[-1].outputs, outputs=("end",), settings={0: 3.0})
    assert FAMILY.tasks(whole) == ("image-to-image",)
    for graph in (*(layers[:count] for count in range(len(layers))), (*layers, extra)):
        with pytest.raises(kamado.UnsupportedCheckpoint, match="neither an RRDBNet"):
            FAMILY.tasks(replace(whole, metadata={"layers": graph}))
