"""A decoder that overflows in half precision costs nobody the picture, and a picture that is none is an error."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado.errors import GenerationFailed

LOUD = 1e4
"""Times as large, values of the decoder leave float16, which ends at 65504; normalization makes up for it later."""


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    return folders["sd15"]


def _make_loud(vae: Any) -> None:
    with torch.no_grad():
        for value in vae.decoder.conv_in.parameters():
            value.mul_(LOUD)


def _loaded(runtime: kamado.Runtime, folder: Path, *, half: bool = True) -> tuple[Any, dict[str, Any]]:
    """The model, in float16 if asked for: a CPU is too slow at it for Kamado to load one so."""
    model = runtime.load(folder)
    models = model.loaded._workshop.factory.models  # type: ignore[attr-defined]
    if half:
        for part in models.values():
            part.half()
    return model, models


def test_it_is_decoded_again_in_float32(folder: Path, runtime: kamado.Runtime) -> None:
    model, models = _loaded(runtime, folder)
    _make_loud(models["vae"])
    held = runtime.stats()["ledger"]["cpu"][model.owner]["weights"]
    request = tiny.arguments("sd15")
    jobs = [model.submit(**request, seed=seed) for seed in (3, 4)]
    results = [job.result() for job in jobs]

    pipeline = tiny.load(folder).to(dtype=torch.float16)
    _make_loud(pipeline.vae)
    for seed, result in zip((3, 4), results, strict=True):
        assert result.notes == ("the vae overflowed in half precision: the picture was decoded in float32",)
        generator = torch.Generator().manual_seed(seed)
        latents = pipeline(**request, output_type="latent", generator=generator).images
        pipeline.vae.to(torch.float32)
        with torch.no_grad():
            decoded = pipeline.vae.decode(latents.float() / pipeline.vae.config.scaling_factor).sample
        pipeline.vae.to(torch.float16)
        wanted = (decoded[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1).numpy()
        assert numpy.abs(result.pixels[0] - wanted).max() < 0.02, "beyond what float16 in the denoiser amounts to"
    decoder = sum(
        value.numel()
        for name in ("decoder", "post_quant_conv")
        for value in models["vae"].get_submodule(name).parameters()
    )
    assert runtime.stats()["ledger"]["cpu"][model.owner]["weights"] == held + 4 * decoder, "one copy, in the ledger"
    assert {value.dtype for value in models["vae"].parameters()} == {torch.float16}
    model.unload()
    assert model.owner not in runtime.stats()["ledger"].get("cpu", {})


def test_a_copy_that_nobody_uses_is_let_go_of(folder: Path, runtime: kamado.Runtime) -> None:
    model, models = _loaded(runtime, folder)
    _make_loud(models["vae"])
    before = runtime.ledger.held(owner=model.owner)
    first = model.generate(**tiny.arguments("sd15"), seed=3)
    decoders = model.loaded._workshop.decoders  # type: ignore[attr-defined]
    outputs = model.loaded._workshop.outputs  # type: ignore[attr-defined]
    session: Any = vars(runtime)["_session"]
    assert session.call(outputs.trim) > 0  # of the text encoder
    copies = weakref.ref(decoders._copies["vae"]["decoder"])
    size = runtime.ledger.held(owner=model.owner) - before
    with decoders.used("vae"):
        assert session.call(model.loaded.trim) == 0
    assert model.loaded.idle_bytes() == session.call(model.loaded.trim) == size > 0
    gc.collect()
    assert copies() is None and model.loaded.idle_bytes() == 0
    assert runtime.ledger.held(owner=model.owner) == before
    again = model.generate(**tiny.arguments("sd15"), seed=3)
    assert numpy.array_equal(again.pixels[0], first.pixels[0]) and again.notes == first.notes
    session.call(outputs.trim)
    assert runtime.ledger.held(owner=model.owner) == before + size


def test_a_sound_decoder_is_left_alone(folder: Path, runtime: kamado.Runtime) -> None:
    model, _ = _loaded(runtime, folder)
    held = runtime.stats()["ledger"]["cpu"][model.owner]["weights"]
    assert model.generate(**tiny.arguments("sd15"), seed=3).notes == ()
    assert runtime.stats()["ledger"]["cpu"][model.owner]["weights"] == held


def test_no_memory_for_the_copy_is_said(folder: Path, runtime: kamado.Runtime) -> None:
    model, models = _loaded(runtime, folder)
    _make_loud(models["vae"])
    runtime.ledger.enter("cpu", "somebody", "weights", runtime.ledger.free("cpu") - 1000)
    with pytest.raises(GenerationFailed, match=r"the vae overflowed in float16.*float32"):
        model.generate(**tiny.arguments("sd15"), seed=3)


@pytest.mark.parametrize(("half", "advice"), [(True, "try float32"), (False, "try another seed, scheduler")])
def test_a_denoiser_that_makes_nan_is_an_error(half: bool, advice: str, folder: Path, runtime: kamado.Runtime) -> None:
    model, models = _loaded(runtime, folder, half=half)
    with torch.no_grad():
        models["unet"].conv_out.bias.fill_(float("nan"))
    held = runtime.stats()["ledger"]["cpu"][model.owner]["weights"]
    with pytest.raises(GenerationFailed, match=rf"NaN or infinity.*{advice}"):
        model.generate(**tiny.arguments("sd15"), seed=3)
    assert runtime.stats()["ledger"]["cpu"][model.owner]["weights"] == held, "no copy was made in vain"


def test_a_black_picture_is_an_error(folder: Path, runtime: kamado.Runtime) -> None:
    model, models = _loaded(runtime, folder)
    with torch.no_grad():
        models["vae"].decoder.conv_out.bias.fill_(-100.0)
    with pytest.raises(GenerationFailed, match="all black"):
        model.generate(**tiny.arguments("sd15"), seed=3)
