"""Pipelines of which some components are quantized already, against the same ones with the weights that are meant."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

import kamado
import quantized_files as files
import tiny_pipelines
from kamado.weights.quantized.tensor import QuantTensor, held_bytes

BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}


def picture(folder: Path) -> tuple[Any, dict[str, int]]:
    """A picture, and how many matrices of each component are held in fewer bits."""
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder)
        image = model.generate("a tree on a hill", steps=2, seed=3).images[0]
        packed = {}
        for lane in model.plan.lanes:
            parameters = list(getattr(model.loaded.direct_pipeline(), lane.lane).parameters())
            packed[lane.lane] = sum(isinstance(parameter.data, QuantTensor) for parameter in parameters)
            assert held_bytes(parameters) == pytest.approx(lane.weight_bytes, rel=0.01)
        return np.asarray(image).astype(int), packed


@pytest.mark.parametrize(
    ("name", "denoiser", "encoder", "blocks"),
    [("flux", "transformer", "text_encoder_2", "transformer_blocks"), ("sd15", "unet", "text_encoder", "attentions")],
)
def test_the_same_picture(
    name: str, denoiser: str, encoder: str, blocks: str, folders: tiny_pipelines.Folders, tmp_path: Path
) -> None:
    quantized, plain = (Path(shutil.copytree(folders[name], tmp_path / kind)) for kind in ("quantized", "plain"))
    for component, write, config, of in (
        (denoiser, files.integers("group", symmetric=False), INT8, blocks),
        (encoder, files.bnb4(), BNB4, "encoder.block" if name == "flux" else "encoder.layers"),
    ):
        meant = files.quantize_folder(quantized / component, write, config, of=of)
        (file,) = (plain / component).glob("*.safetensors")
        save_file(meant, file, metadata={"format": "pt"})
    got, packed = picture(quantized)
    expected, _ = picture(plain)
    assert np.abs(got - expected).max() <= 1
    assert packed[denoiser] > 3
    assert packed[encoder] > 3


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2"])
def test_methods_that_are_not_known(component: str, folders: tiny_pipelines.Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["flux"], tmp_path / "flux"))
    files.quantize_folder(folder / component, files.integers(), {"quant_method": "sdnq"}, of="block")
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        for attempt in (runtime.plan, runtime.load):
            with pytest.raises(kamado.UnsupportedCheckpoint, match=f"its {component} is quantized with 'sdnq'"):
                attempt(folder)
