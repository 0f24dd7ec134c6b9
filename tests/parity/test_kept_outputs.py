"""Encoders read a prompt once, whoever asks for it again; the pictures are the pipeline's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from torch import nn

import kamado
import tiny_pipelines as tiny
from adapter_files import Files, halted

KINDS = ["sd15", "sdxl", "flux", "sd3", "pixart-sigma", "qwen-image", "sana"]
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "image_encoder")


@contextmanager
def forwards(model: kamado.Model) -> Iterator[Counter[str]]:
    """How often each component runs, decoders' `decode` and `encode` by their names too."""
    loaded: Any = model.loaded
    counts: Counter[str] = Counter()
    parts: dict[str, nn.Module] = loaded._workshop.factory.models

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return method(*args, **kwargs)

        return call

    handles = []
    changed: list[tuple[nn.Module, str]] = []
    for name, part in parts.items():
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: counts.update([name])))  # type: ignore[misc]
        for method in ("encode", "decode"):
            if hasattr(type(part), method):
                part.__dict__[method] = counted(f"{name}.{method}", getattr(part, method))
                changed.append((part, method))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
        for part, method in changed:
            del part.__dict__[method]


def encoded(counts: Counter[str]) -> int:
    return sum(counts[name] for name in ENCODERS)


@pytest.mark.parametrize("name", KINDS)
def test_many_seeds_of_one_prompt_read_it_once(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = tiny.arguments(name)
    wanted = [tiny.oracle(folders[name], seed=seed, **request)[0] for seed in (3, 4)]
    model = runtime.load(folders[name])
    with forwards(model) as counts:
        alone = model.generate(**request, seed=3)
        once = encoded(counts)
        assert once > 0
        result = model.generate(**request, seed=3, n=2)
        model.generate(**request, seed=9)
        assert encoded(counts) == once
    assert not any(alone.batched)
    for found, right in ((alone.pixels[0], wanted[0]), *zip(result.pixels, wanted, strict=True)):
        assert numpy.abs(found - right).max() < 1e-4
    figures = runtime.stats()["models"][model.owner]["outputs"]
    assert figures["made"] == once and figures["again"] == 3 * once
    assert runtime.ledger.held("cpu", model.owner, "outputs") == figures["bytes"] > 0


@pytest.mark.parametrize("name", KINDS)
def test_equal_prompts_at_once_are_read_once(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = tiny.arguments(name)
    model = runtime.load(folders[name])
    with forwards(model) as counts:
        model.generate(**request, seed=3)
        once = encoded(counts)
        runtime._session.call(model.loaded.trim)
        counts.clear()
        model.generate(**request, seed=3, n=5)
        assert encoded(counts) == once


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3", "pixart-sigma", "hunyuan-dit"])
def test_other_prompts_at_once_are_read_and_decoded_together(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    """Every component runs as often for three pictures as for one: encoders and decoder too."""
    requests = [{**tiny.arguments(name, prompt=index), "seed": index} for index in range(3)]
    model = runtime.load(folders[name])
    session: Any = vars(runtime)["_session"]

    def at_once() -> list[kamado.Result]:
        session.call(model.loaded.trim)
        with halted(runtime):
            jobs = [model.submit(**request) for request in requests]
        return [job.result() for job in jobs]

    at_once()  # models that are not known are compared the first time
    with forwards(model) as counts:
        wanted = []
        for request in requests:
            session.call(model.loaded.trim)
            wanted.append(model.generate(**request).pixels[0])
        each = {component: count // 3 for component, count in counts.items()}
        counts.clear()
        results = at_once()
        assert counts == each
    for result, right in zip(results, wanted, strict=True):
        assert all(result.batched) and numpy.abs(result.pixels[0] - right).max() < 1e-4


@pytest.mark.parametrize("name", ["sd15", "flux", "qwen-image"])
def test_deterministic_pictures_are_equal_to_the_last_bit(name: str, folders: dict[str, Path]) -> None:
    request = tiny.arguments(name)
    with kamado.Runtime(device="cpu", memory="2GiB", deterministic=True) as runtime:
        model = runtime.load(folders[name])
        first = model.generate(**request, seed=3).pixels[0]
        jobs = [model.submit(**{**tiny.arguments(name, prompt=index % 2), "seed": 3}) for index in range(4)]
        again = [job.result().pixels[0] for job in jobs]
        assert runtime.stats()["models"][model.owner]["outputs"]["again"] > 0
    assert (again[0] == first).all() and (again[2] == first).all() and (again[3] == again[1]).all()
    assert (again[1] != first).any()


def test_an_input_picture_is_encoded_once(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15", "img2img"), "seed": 3}
    wanted = tiny.oracle(
        folders["sd15"], pipeline_class="StableDiffusionImg2ImgPipeline", **{**request, "seed": [3, 4]}
    )
    model = runtime.load(folders["sd15"])
    with forwards(model) as counts:
        results = [model.generate(**request), model.generate(**{**request, "seed": 4})]
    assert counts["vae.encode"] == 1 and counts["vae.decode"] == 2
    for result, right in zip(results, wanted, strict=True):
        assert numpy.abs(result.pixels[0] - right).max() < 1e-4
    assert (results[0].pixels[0] != results[1].pixels[0]).any()


def test_adapters_count(folders: dict[str, Path], runtime: kamado.Runtime, files: Files) -> None:
    """A LoRA of the text encoder by its content and strength, words of an embedding by their vectors."""
    request = {**tiny.arguments("sd15"), "seed": 3}
    lora = str(files["lora-sd15"])
    asked: list[list[str]] = [[], [lora], [f"{lora}:0.5"], [str(files["embedding-sd15"])]]
    wanted = []
    for adapters in asked:
        model = runtime.load(folders["sd15"])
        wanted.append(model.generate(**request, adapters=adapters).pixels[0])
        model.unload()
    model = runtime.load(folders["sd15"])
    with forwards(model) as counts:
        for _ in range(2):
            for adapters, right in zip(asked, wanted, strict=True):
                assert (model.generate(**request, adapters=adapters).pixels[0] == right).all()
    assert len({right.tobytes() for right in wanted}) >= 3
    assert counts["text_encoder"] <= 8


def test_it_goes_first_where_memory_is_short_and_with_its_model(
    folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders["sd15"])
    model.generate(**tiny.arguments("sd15"), seed=3)
    held = runtime.ledger.held("cpu", model.owner, "outputs")
    assert held > 0 and model.loaded.idle_bytes() == held
    keeper: Any = vars(runtime)["_keeper"]
    assert runtime._session.call(keeper.reclaim)
    assert runtime.ledger.held("cpu", model.owner, "outputs") == 0 and model.usage()["outputs"]["kept"] == 0
    model.generate(**tiny.arguments("sd15"), seed=3)
    model.unload()
    assert runtime.ledger.held("cpu") == 0
