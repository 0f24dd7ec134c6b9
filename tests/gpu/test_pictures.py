"""Pictures on a CUDA device: those of the CPU, alone and in a batch, and every byte given back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest

import kamado

MODEL = "emoji-diffusion:64"
PROMPTS = ("a red heart", "a panda", "a green apple", "a rocket")
OTHER_SUMS = 0.02
"""Largest difference of a pixel from the CPU's, on [0, 1]: 25 steps of other orders of summation."""


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cuda", memory="2GiB") as made:
        yield made


def _requests() -> list[dict[str, object]]:
    return [{"prompt": prompt, "seed": seed, "steps": 25 - seed} for seed, prompt in enumerate(PROMPTS)]


def test_pictures_are_those_of_the_cpu(runtime: kamado.Runtime) -> None:
    with kamado.Runtime(device="cpu", memory="2GiB") as other:
        wanted = other.load(MODEL).generate_many(_requests())
    for result, want in zip(runtime.load(MODEL, dtype="float32").generate_many(_requests()), wanted, strict=True):
        assert numpy.abs(result.pixels[0] - want.pixels[0]).max() < OTHER_SUMS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(runtime: kamado.Runtime, dtype: str) -> None:
    single = runtime.load(MODEL, dtype="float32").generate(**_requests()[0])  # type: ignore[arg-type]
    half = runtime.load(MODEL, dtype=dtype).generate(**_requests()[0])  # type: ignore[arg-type]
    assert numpy.abs(half.pixels[0] - single.pixels[0]).mean() < 0.05


def test_projections_are_one_product(runtime: kamado.Runtime) -> None:
    apart, joined = (runtime.load(MODEL, dtype="bfloat16", compile=how) for how in ("off", "auto"))
    assert runtime.ledger.held(owner=apart.owner) == runtime.ledger.held(owner=joined.owner)
    places = []
    for model in (apart, joined):
        unet = model.loaded.direct_pipeline().unet  # type: ignore[attr-defined]
        layers = [(each.to_k, each.to_v) for each in unet.modules() if hasattr(each, "to_k")]
        places.append([[layer.weight.untyped_storage().data_ptr() for layer in pair] for pair in layers])
    assert all(key != value for key, value in places[0]) and all(key == value for key, value in places[1])
    for request in _requests():
        one, other = (model.generate(**request).pixels[0] for model in (apart, joined))  # type: ignore[arg-type]
        assert numpy.abs(one - other).mean() < 0.05


def test_steps_are_shared_and_a_request_is_the_same_alone(runtime: kamado.Runtime) -> None:
    model = runtime.load(MODEL, dtype="float32")
    together = [job.result() for job in [model.submit(**request) for request in _requests()]]  # type: ignore[arg-type]
    lanes = {lane.rpartition("/")[2]: stats for lane, stats in runtime.stats()["lanes"].items()}
    assert lanes["unet"]["steps"] < 0.6 * lanes["unet"]["rows"]
    for request, result in zip(_requests(), together, strict=True):
        alone = model.generate(**request)  # type: ignore[arg-type]
        assert numpy.abs(alone.pixels[0] - result.pixels[0]).max() < OTHER_SUMS


def test_memory_is_given_back(runtime: kamado.Runtime) -> None:
    import torch

    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = runtime.load(MODEL)
    model.generate(**_requests()[0])  # type: ignore[arg-type]
    assert torch.cuda.memory_allocated() > before
    model.unload()
    # cuBLAS and cuDNN keep workspaces of their own.
    assert torch.cuda.memory_allocated() - before <= 64 * 1024**2
    assert runtime.stats()["held_bytes"] == 0
