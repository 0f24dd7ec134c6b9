"""Every architecture that restores pictures is run, alone and beside others: equal to spandrel's own call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import kamado
from kamado_models.adversarial import restore_answers
from kamado_models.adversarial.restore_layouts import ARCHITECTURES

from . import weights
from .restorers import (
    SETTINGS,
    as_array,
    as_tensor,
    authors_call,
    face_restorer,
    library,
    oracle,
    photo,
    restorer,
    shaken,
)

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
WHOLE = (*SETTINGS, "GFPGAN", "LaMa")  # LaMa: test_restoration


class Beside:
    """A generator of faces that works while others do."""

    def __init__(self, runtime: kamado.Runtime, folder: Path) -> None:
        self._model = runtime.load(weights.saved(weights.stylegan2(), folder / "faces.safetensors"))
        self._request = {"seed": 1, "interpolate": [1, 2], "frames": 6}
        self._alone = self._model.generate(**self._request).video

    def run(self, model: Any, requests: list[dict[str, Any]]) -> list[Any]:
        """Pixels of the answers to requests that are there together, while faces are made."""
        job = self._model.submit(**self._request)
        results = model.generate_many(requests)
        assert numpy.abs(job.result(timeout=60).video.astype(int) - self._alone).max() <= 1
        return [result.pixels[0] for result in results]


@pytest.fixture(scope="module")
def beside(runtime: kamado.Runtime, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    return Beside(runtime, tmp_path_factory.mktemp("beside"))


def test_all_architectures_are_run() -> None:
    spelled = {"Compact": "Compact (SRVGG)"}
    assert {spelled.get(name, name) for name in (each.partition(",")[0] for each in WHOLE)} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "AuraSR"])
def test_every_network_equals_the_librarys_own_call(
    runtime: kamado.Runtime, beside: Beside, tmp_path: Path, name: str
) -> None:
    state = restorer(name)
    theirs = library.MAIN_REGISTRY.load(dict(state))
    mode = MODES[theirs.input_channels]
    images = [photo(20, 16, mode, seed) for seed in range(3)] + [photo(7, 19, mode)]
    expected = [as_array(theirs(as_tensor(image))) for image in images]
    inside = (expected[0] > 0) & (expected[0] < 1)
    assert inside.mean() > 0.1 and numpy.abs(expected[0] - expected[1]).max() > 1e-2
    model = runtime.load(weights.saved(state, tmp_path / "x.safetensors"))
    assert model.plan.architecture.partition(" ")[0] == name.partition(",")[0]
    alone = [model.generate(image=image).pixels[0] for image in images]
    # The lane compares the first forward that requests share; later ones are shared where that was the same.
    crowds = [beside.run(model, [{"image": image} for image in images]) for _ in range(2)]
    for made in (alone, *crowds):
        for one, two in zip(made, expected, strict=True):
            assert one.shape == two.shape and numpy.abs(one - two).max() < 1e-4
    model.unload()


def test_aura_draws_by_the_seed(runtime: kamado.Runtime, beside: Beside, tmp_path: Path) -> None:
    state = restorer("AuraSR")
    model = runtime.load(weights.saved(state, tmp_path / "aura.safetensors"))
    before = torch.get_rng_state()
    alone = [model.generate(image=photo(20, 16), seed=seed).pixels[0] for seed in (1, 2)]
    crowd = beside.run(model, [{"image": photo(20, 16), "seed": seed} for seed in (1, 2)])
    assert torch.equal(before, torch.get_rng_state())
    theirs = library.MAIN_REGISTRY.load(dict(state))
    with torch.random.fork_rng(devices=[]):
        for seed, one, two in zip((1, 2), alone, crowd, strict=True):
            torch.manual_seed(seed)
            expected = as_array(theirs(as_tensor(photo(20, 16))))
            assert numpy.abs(one - expected).max() < 1e-4 and numpy.abs(two - expected).max() < 1e-4
    assert numpy.abs(alone[0] - alone[1]).max() > 1e-3
    model.unload()


def test_faces(runtime: kamado.Runtime, beside: Beside, tmp_path: Path, narrow: dict[str, Tensor]) -> None:
    model = runtime.load(weights.saved(narrow, tmp_path / "face.safetensors"))
    requests = [{"image": photo(512, 512, seed=seed), "seed": seed} for seed in (1, 2, 3)]
    before = torch.get_rng_state()
    alone = [model.generate(**request).pixels[0] for request in requests]
    crowd = beside.run(model, requests)
    assert torch.equal(before, torch.get_rng_state())
    for request, one, two in zip(requests, alone, crowd, strict=True):
        expected = authors_call(narrow, **request)
        assert ((expected > 0) & (expected < 1)).mean() > 0.1
        assert numpy.abs(one - expected).max() < 1e-4 and numpy.abs(two - expected).max() < 1e-4
    twice = model.generate(image=photo(512, 512, seed=1), seed=1, n=2).pixels
    assert numpy.array_equal(twice[0], alone[0]) and numpy.abs(twice[1] - alone[0]).max() > 1e-2
    with pytest.raises(kamado.InvalidRequest, match=r"a face that fills 512 x 512 .* image is 512 x 300; cut the face"):
        model.generate(image=photo(512, 300))
    with pytest.raises(kamado.InvalidRequest, match=r"restores faces \(GFPGAN\) takes no tile"):
        model.generate(image=photo(512, 512), tile=256)
    model.unload()


def test_faces_at_the_published_size(runtime: kamado.Runtime, beside: Beside, tmp_path: Path) -> None:
    state = face_restorer()
    assert sum(tensor.numel() for tensor in state.values()) == 87_143_276
    model = runtime.load(weights.saved({f"params_ema.{k}": v for k, v in state.items()}, tmp_path / "f.safetensors"))
    request = {"image": photo(512, 512), "seed": 5}
    (found,) = beside.run(model, [request])
    assert numpy.abs(found - authors_call(state, **request)).max() < 1e-4
    model.unload()
    (tmp_path / "f.safetensors").unlink()


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are cut where they have more than 32 x 32 pixels."""
    monkeypatch.setattr(restore_answers, "TILE", 32)


@pytest.mark.usefixtures("small_tiles")
def test_faces_are_not_cut_into_tiles(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = restorer("RestoreFormer")
    model = runtime.load(weights.saved(state, tmp_path / "face.safetensors"))
    found = model.generate(image=photo(96, 64))
    assert not found.notes and numpy.abs(found.pixels[0] - oracle(state, photo(96, 64))).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match=r"restores faces \(RestoreFormer\) takes no tile"):
        model.generate(image=photo(64, 64), tile=32)
    with pytest.raises(kamado.DoesNotFit, match=r"beside the weights, .* Cut it, or make it smaller"):
        model.generate(image=Image.new("RGB", (8000, 8000)))
    model.unload()


@pytest.mark.usefixtures("small_tiles")
def test_tiles_where_the_whole_is_better(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = restorer("SwinIR")
    model = runtime.load(weights.saved(state, tmp_path / "up.safetensors"))
    whole = model.generate(image=photo(40, 36))
    assert not any("tiles" in note for note in whole.notes)
    assert numpy.abs(whole.pixels[0] - oracle(state, photo(40, 36))).max() < 1e-4
    tiled = model.generate(image=photo(40, 36), tile=24)
    assert any("tiles of 24 x 24" in note for note in tiled.notes)
    assert tiled.pixels[0].shape == whole.pixels[0].shape
    assert any("tiles of 32 x 32" in note for note in model.generate(image=photo(40, 36), overlap=8).notes)
    model.unload()


@pytest.mark.parametrize("name", ["ATD", "AuraSR", "DRCT", "FFTformer", "Swin2SR", "SwinIR"])
def test_networks_that_do_not_run_in_halves(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(kamado.UnsupportedCheckpoint, match=f"{name} networks cannot run in {dtype}; use --dtype"):
            restore_answers.network(restorer(name), dtype)


def test_the_names_that_real_esrgan_has(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state, renamed = restorer("ESRGAN"), {}
    ends = {"0": "first", "1.sub.1": "body", "3": "up1", "6": "up2", "8": "hr", "10": "last"}
    for name, tensor in state.items():
        place, _, kind = name.removeprefix("model.").rpartition(".")
        block = f"body.0.{place.removeprefix('1.sub.0.').removesuffix('.0').lower()}"
        renamed[f"{'conv_' + ends[place] if place in ends else block}.{kind}"] = tensor
    assert {"conv_first.weight", "body.0.rdb1.conv1.weight", "conv_last.bias"} <= renamed.keys()
    model = runtime.load(weights.saved({f"params_ema.{k}": v for k, v in renamed.items()}, tmp_path / "x.safetensors"))
    assert numpy.abs(model.generate(image=photo(20, 16)).pixels[0] - oracle(state, photo(20, 16))).max() < 1e-4
    model.unload()


def test_grey_networks_keep_transparency(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state, image = restorer("ESRGAN, grey"), photo(20, 16, "RGBA")
    model = runtime.load(weights.saved(state, tmp_path / "grey.safetensors"))
    found = model.generate(image=image)
    expected = oracle(state, image.convert("RGB").convert("L"))
    assert found.images[0].mode == "RGBA" and found.images[0].size == (40, 32)
    assert numpy.abs(found.pixels[0][..., :3] - expected).max() < 1e-4
    model.unload()


def test_networks_for_what_is_no_picture(runtime: kamado.Runtime, tmp_path: Path) -> None:
    from spandrel.architectures.ESRGAN import ESRGAN

    state = shaken(ESRGAN(in_nc=3, out_nc=2, num_filters=4, num_blocks=1))
    with pytest.raises(kamado.UnsupportedCheckpoint, match="ESRGAN network is for 2 channels, which no picture"):
        runtime.load(weights.saved(state, tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("CodeFormer", ("position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight")),
        ("MAT", ("model.synthesis.first_stage.conv_first.conv.resample_filter",)),
        ("Restormer", ("patch_embed.proj.weight", "encoder_level1.0.attn.qkv_dwconv.weight", "down1_2.body.0.weight")),
    ],
)
def test_networks_that_are_not_free(
    runtime: kamado.Runtime, tmp_path: Path, name: str, tensors: tuple[str, ...]
) -> None:
    path = weights.saved({f"params_ema.{each}": torch.zeros(1) for each in tensors}, tmp_path / "x.safetensors")
    with pytest.raises(kamado.UnsupportedCheckpoint, match=f"x.safetensors: {name} networks are not run: .* non-comm"):
        runtime.load(path)
