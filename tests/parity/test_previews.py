"""Previews show the picture that comes, and change nothing of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado.events import Finished, Media, Preview
from kamado_models.diffusion import previews

SAMPLE = Path(__file__).parents[2] / "models/kamado_models/samples/emoji-diffusion-64"
CHECKED = "sd15-checked"
"""Its safety checker takes every picture away."""
NAMES = sorted(set(tiny.PIPELINES) - {"wan", CHECKED})
KINDS = {"ddpm", "dit", "flux", "flux2", "kandinsky22", "qwen-image", "sana", "sd15", "sdxl", "z-image"}
"""One of each kind of latents."""


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autoencoders count as large: a map of colours shows what they would decode."""
    monkeypatch.setattr(previews, "_SMALL", 0)


def _streamed(model: Any, **request: Any) -> tuple[list[Preview], Any]:
    events = list(model.stream(**request))
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished.error is None
    assert [type(event) for event in events if isinstance(event, (Preview, Media))][-1] is Media
    return [event for event in events if isinstance(event, Preview)], finished.output.pixels


def _closeness(preview: Any, picture: Any) -> float:
    """PSNR in dB at the size of the latents."""
    small = [numpy.asarray(image.reduce(4), dtype=numpy.float64) / 255 for image in (preview, picture)]
    return float(-10 * numpy.log10(((small[0] - small[1]) ** 2).mean()))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in KINDS else pytest.mark.slow) for n in NAMES])
def test_every_pipeline_has_previews_of_the_right_size_and_keeps_its_picture(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime, large: None
) -> None:
    model = runtime.load(folders[name])
    request = {**tiny.arguments(name), "seed": 3}
    plain = model.generate(**request)
    shown, picture = _streamed(model, **request, preview_every=1)
    assert numpy.array_equal(plain.pixels[0], picture)
    assert shown
    assert {preview.image.size for preview in shown} == {plain.images[0].size}
    assert [preview.step for preview in shown] == list(range(1, len(shown) + 1))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sana", "kandinsky22"])
def test_small_autoencoders_decode_previews(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one shows the finished latents."""
    model = runtime.load(folders[name])
    request = {**tiny.arguments(name), "seed": 3}
    plain = model.generate(**request).pixels[0]
    shown, picture = _streamed(model, **request, preview_every=1)
    assert numpy.array_equal(plain, picture)
    last = numpy.asarray(shown[-1].image, dtype=numpy.float32) / 255
    assert last.shape == picture.shape
    if name != "kandinsky22":  # whose pipeline does not quantize what it decodes
        assert numpy.abs(last - picture).max() < 0.02


def test_a_small_autoencoder_shows_the_colours(runtime: kamado.Runtime) -> None:
    model = runtime.load(str(SAMPLE))
    shown, picture = _streamed(model, prompt="a red heart", steps=8, seed=1, preview_every=4)
    for preview, tolerance in zip(shown, (0.1, 0.01), strict=True):
        seen = numpy.asarray(preview.image, dtype=numpy.float64) / 255
        assert numpy.abs(seen.mean((0, 1)) - picture.mean((0, 1))).max() < tolerance


@pytest.mark.parametrize("scheduler", [None, "euler", "dpm++", "lcm"])
def test_a_trained_model_shows_early_what_it_draws(scheduler: str | None, runtime: kamado.Runtime, large: None) -> None:
    model = runtime.load(str(SAMPLE))
    request = {"prompt": "a panda", "steps": 8, "guidance": 1.5, "seed": 3, "scheduler": scheduler}
    shown, _ = _streamed(model, **request, preview_every=3)
    picture, other = model.generate(**request).images[0], model.generate(**{**request, "prompt": "a fox"}).images[0]
    assert [preview.step for preview in shown] == [3, 6]
    for preview in shown:
        assert _closeness(preview.image, picture) > max(15.0, _closeness(preview.image, other) + 5)


def test_sizes_that_are_no_squares(folders: dict[str, Path], runtime: kamado.Runtime, large: None) -> None:
    model = runtime.load(folders["flux"])
    request = {**tiny.arguments("flux"), "width": 96, "height": 32, "seed": 3}
    shown, _ = _streamed(model, **request, preview_every=2)
    assert {preview.image.size for preview in shown} == {(96, 32)}


def test_each_of_several_pictures_has_its_own(runtime: kamado.Runtime) -> None:
    model = runtime.load(str(SAMPLE))
    events = list(model.stream("a fox", steps=4, guidance=1.5, seed=3, n=2, preview_every=2))
    steps = [(event.index, event.step) for event in events if isinstance(event, Preview)]
    assert sorted(steps) == [(0, 2), (0, 4), (1, 2), (1, 4)]


def test_a_tiny_decoder_is_used_where_there_is_one(
    folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    from diffusers import AutoencoderTiny

    folder = shutil.copytree(folders["sd15"], tmp_path / "sd15")
    torch.manual_seed(5)
    decoder = AutoencoderTiny(decoder_block_out_channels=(8,) * 4, encoder_block_out_channels=(8,) * 4)
    decoder.save_pretrained(folder / "preview_vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["preview_vae"] = ["diffusers", "AutoencoderTiny"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = runtime.load(folder)
    request = tiny.arguments("sd15")
    streamed, _ = _streamed(model, **request, seed=3, preview_every=4)
    generator = torch.Generator().manual_seed(3)
    pipeline = tiny.load(folders["sd15"])
    latents = pipeline(**request, output_type="latent", generator=generator).images
    wanted = (decoder.decode(latents).sample[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1).detach().numpy()
    shown = numpy.asarray(streamed[-1].image, dtype=numpy.float32) / 255
    assert streamed[-1].image.size == (64, 64)
    assert numpy.abs(shown - wanted).max() < 0.01


def test_that_there_are_none_is_told(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    request = {**tiny.arguments("sd15"), "seed": 3}
    assert model.generate(**request, preview_every=100).notes == ()
    made = model.loaded._workshop.previews  # type: ignore[attr-defined]
    made._maps["vae"] = None  # as for an autoencoder without colours
    assert model.generate(**request, preview_every=1).notes == ("there are no previews of what this model makes",)


def test_what_a_safety_checker_may_take_away_is_not_shown(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders[CHECKED])
    events = list(model.stream(**tiny.arguments(CHECKED), seed=3, preview_every=1))
    assert not [event for event in events if isinstance(event, Preview)]
