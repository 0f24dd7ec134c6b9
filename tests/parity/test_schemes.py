"""Every form of weights, in models of both families: close to the original, of the planned size, and the same alone as
in a batch."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny
import tiny_pipelines
from kamado.checkpoint.inspect import inspect
from kamado.errors import InvalidRequest
from kamado.kernels.native import native
from kamado.quant import SCHEMES, parse_quant
from kamado.weights.quantized.tensor import is_quantized
from kamado.weights.quantized.tiled import TiledIntegers, can_tile
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model

PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8], [5] * 11)
DIVERGENCE = {
    "int8": 5e-3,
    "int8-weight-only": 3e-3,
    "int8-dynamic": 8e-3,
    "bnb-int8": 8e-3,
    "fp8": 0.04,
    "nf4": 0.4,
    "fp4": 0.65,
    "int4": 0.4,
}
"""The largest mean KL divergence from the original, in nats a token: half as much again as was seen."""
LEAST_PSNR = {"int4": 34, "nf4": 36, "fp4": 36, "fp8": 40}
"""Of pictures, in dB; of all others 42."""
ROUNDED = {"int8": 2e-3, "int8-dynamic": 2e-3, "bnb-int8": 2e-3}
"""Largest difference of a pixel alone and in a batch, where activations are rounded: the last bit of a sum may take one
to the next step. 1e-5 elsewhere."""
RUNNABLE = sorted({"int8", *SCHEMES} - {"fp8-dynamic"})
UNLIKE = sorted(set(RUNNABLE) - {"int8-dynamic"})
"""On a CPU int8 is that."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With matrices large enough to be quantized."""
    return tiny.build("llama", tmp_path_factory.mktemp("llama"), hidden_size=128, intermediate_size=256)


def log_probabilities(folder: Path, scheme: str | None) -> torch.Tensor:
    """Of transformers' own model, with such weights: (tokens, vocabulary)."""
    form = parse_quant(scheme)
    if form is not None and scheme == "int8":  # int8-dynamic is also to be had with a scale a row
        form = form.on("cpu")
    model, _ = read_model(configured(inspect(folder)), dtype="float32", device="cpu", quant=form)
    tokens = torch.randint(0, 200, (2, 48), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.as_tensor(model(tokens).logits.double().log_softmax(-1).flatten(0, 1))


@pytest.mark.parametrize("scheme", RUNNABLE)
def test_token_probabilities_are_close(llama: Path, scheme: str) -> None:
    wanted, found = log_probabilities(llama, None), log_probabilities(llama, scheme)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
    assert 0 < divergence < DIVERGENCE[scheme]


@pytest.mark.parametrize("scheme", RUNNABLE)
def test_text_is_the_same_alone_and_in_a_batch_and_of_the_planned_size(llama: Path, scheme: str) -> None:
    requests = [{"prompt_tokens": prompt, "max_tokens": 10, "temperature": 0, "ignore_eos": True} for prompt in PROMPTS]
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        planned = runtime.plan(llama, quant=scheme, dtype="float32")
        model = runtime.load(llama, quant=scheme, dtype="float32")
        alone = [model.generate(**request).tokens for request in requests]
        assert [result.tokens for result in model.generate_many(requests)] == alone
        held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
    assert planned.weight_bytes == pytest.approx(held, rel=0.01)
    assert held < 0.3 * 4 * 511_000


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_every_architecture(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library does with weights while it loads and runs: plans and loads agree, batches change nothing."""
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 64)
    scheme = UNLIKE[sum(architecture.encode()) % len(UNLIKE)]
    folder = tiny.build(architecture, tmp_path / architecture)
    requests = [{"prompt_tokens": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True} for prompt in PROMPTS]
    bytes_of: dict[str, tuple[int, int]] = {}
    for name in ("none", scheme):
        with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
            planned = runtime.plan(folder, quant=name, dtype="float32", kv_tokens=512).weight_bytes
            model = runtime.load(folder, quant=name, dtype="float32", kv_tokens=512)
            bytes_of[name] = planned, runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
            if name == scheme:
                alone = [model.generate(**request).tokens for request in requests]
                assert [result.tokens for result in model.generate_many(requests)] == alone
    (planned, held), (planned_less, held_less) = bytes_of["none"], bytes_of[scheme]
    assert held_less < held
    assert planned - planned_less == pytest.approx(held - held_less, abs=0.01 * held)


@cache
def pictures(folder: Path, name: str, scheme: str | None) -> tuple[list[Any], list[Any], int, int]:
    """Made alone, made together, bytes of weights as planned, and as held."""
    requests: list[Any] = [{**tiny_pipelines.arguments(name, None, prompt=index), "seed": index} for index in range(2)]
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder, quant=scheme, dtype="float32")
        alone = [model.generate(**request).pixels[0] for request in requests]
        together = [result.pixels[0] for result in model.generate_many(requests)]
        held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
        return alone, together, model.plan.weight_bytes, held


@pytest.mark.parametrize("scheme", RUNNABLE)
@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_pictures_are_close_and_the_same_alone_and_in_a_batch(folders: dict[str, Path], name: str, scheme: str) -> None:
    wanted = pictures(folders[name], name, None)
    alone, together, planned, held = pictures(folders[name], name, scheme)
    for one, other, original in zip(alone, together, wanted[0], strict=True):
        assert numpy.isfinite(one).all()
        assert numpy.abs(one - other).max() < ROUNDED.get(scheme, 1e-5)
        psnr = -10 * numpy.log10(((one - original) ** 2).mean())
        assert LEAST_PSNR.get(scheme, 42) < psnr < 80
    assert planned == pytest.approx(held, rel=0.01)
    assert held < wanted[3]


@pytest.mark.parametrize("scheme", ["int8", "int8-weight-only", "int4"])
@pytest.mark.parametrize("name", ["sd15", "flux", "qwen-image"])
def test_pictures_are_multiplied_by_the_kernels(
    folders: dict[str, Path], name: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers of denoisers and text encoders; the picture is that of the same weights without kernels."""
    if native() is None:
        pytest.skip("there are no kernels for this CPU")
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 512)  # tiny layers too
    request = {**tiny_pipelines.arguments(name), "seed": 1}
    found = {}
    for kernels in (True, False):
        with pytest.MonkeyPatch.context() as patch, kamado.Runtime(device="cpu", memory="2GiB") as runtime:
            if not kernels:
                patch.setattr("kamado.weights.quantized.tiled.native", lambda: None)
            model = runtime.load(folders[name], quant=scheme, dtype="float32")
            tiled: Counter[str] = Counter()
            for component, part in model.loaded._workshop.factory.models.items():  # type: ignore[attr-defined]
                for layer in part.modules():
                    if isinstance(layer, torch.nn.Linear) and is_quantized(weight := layer.weight):
                        tiled[component] += isinstance(weight.packed, TiledIntegers)
                        assert not kernels or not can_tile(weight.packed)
            used = {component for component, count in tiled.items() if count}
            assert used >= ({"text_encoder"} | {"unet", "transformer"} & part_names(model) if kernels else set())
            assert kernels or not used
            found[kernels] = model.generate(**request).pixels[0]
    psnr = -10 * numpy.log10(((found[True] - found[False]) ** 2).mean())
    assert psnr > {"int8": 45, "int8-weight-only": 70, "int4": 35}[scheme]


def part_names(model: kamado.Model) -> set[str]:
    return set(model.loaded._workshop.factory.models)  # type: ignore[attr-defined]


@pytest.mark.parametrize("quant", ["fp8-dynamic", {"scheme": "int8", "overrides": {"*.q_proj.*": "fp8-dynamic"}}])
def test_what_the_device_cannot_do_is_refused_by_the_plan(llama: Path, quant: Any) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for call in (runtime.plan, runtime.load):
            with pytest.raises(InvalidRequest, match=r"fp8-dynamic needs a GPU .* which cpu does not; take fp8"):
                call(llama, quant=quant)
