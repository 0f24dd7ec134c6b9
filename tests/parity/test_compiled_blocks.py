"""Compiled blocks: pictures are those of the blocks as they are; on a CPU, by torch's tracer alone or its compiler."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado_models.diffusion import compiling, loading

NAMES = ("flux", "sd3", "sd15")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[kamado.Runtime]:
    monkeypatch.setattr(loading, "_compiles", lambda device: True)
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        yield runtime


def _figures(runtime: kamado.Runtime, model: kamado.Model) -> dict[str, Any]:
    found: dict[str, Any] = runtime.stats()["models"][model.owner]
    return found


def _pictures(model: kamado.Model, name: str, count: int = 2, **changes: Any) -> list[Any]:
    requests = [{**tiny.arguments(name, prompt=index), "seed": index, **changes} for index in range(count)]
    return [result.pixels[0] for result in model.generate_many(requests)]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_same(name: str, folders: Any, runtime: kamado.Runtime) -> None:
    plain, compiled = runtime.load(folders[name]), runtime.load(folders[name], compile="full")
    assert "compile_s" not in _figures(runtime, plain), "that is not asked for by default"
    wanted = _pictures(plain, name)
    for _ in range(2):  # a form is compared when it first comes, and runs the second time
        for one, other in zip(_pictures(compiled, name), wanted, strict=True):
            assert float(numpy.abs(one - other).max()) < 1e-4
    figures = _figures(runtime, compiled)
    assert figures["compile_s"] > 0 and "notes" not in figures["compiled"], figures["compiled"]


def test_the_blocks_themselves_are_left_alone(folders: Any, runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["flux"], compile="full")
    _pictures(model, "flux")
    denoiser = model.loaded.direct_pipeline().transformer
    assert not any("forward" in vars(module) for module in denoiser.modules())


def test_a_block_that_somebody_changed_runs_his_code(folders: Any, runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["flux"], compile="full")
    block = model.loaded.direct_pipeline().transformer.transformer_blocks[0]
    calls: list[int] = []
    usual = type(block).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return usual(block, *args, **kwargs)

    block.forward = forward
    _pictures(model, "flux")
    assert calls and block.forward is forward


def test_what_cannot_be_compiled_runs_as_ever(
    folders: Any, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    plain, compiled = runtime.load(folders["flux"]), runtime.load(folders["flux"], compile="full")
    for one, other in zip(_pictures(compiled, "flux"), _pictures(plain, "flux"), strict=True):
        assert float(numpy.abs(one - other).max()) < 1e-4
    assert _figures(runtime, compiled)["compiled"]["notes"]


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_compiler_that_fails_breaks_no_picture(
    when: str, folders: Any, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def compiler(function: Any, **_: Any) -> Any:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = "somewhere"
        if when == "at once":
            raise RuntimeError("not for this Python\nand more")

        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 2:
                raise ValueError("it broke")
            return function(*args, **kwargs)

        return compiled

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch, "compile", compiler)
    plain, compiled = runtime.load(folders["flux"]), runtime.load(folders["flux"], compile="full")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    for one, other in zip(_pictures(compiled, "flux"), _pictures(plain, "flux"), strict=True):
        assert float(numpy.abs(one - other).max()) < 1e-4
    notes = _figures(runtime, compiled)["compiled"]["notes"]
    assert ("RuntimeError: not for this Python" if when == "at once" else "ValueError: it broke") in notes


def test_other_results_are_not_used(folders: Any, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *args: tuple(2 * each for each in graph(*args))

    monkeypatch.setattr(compiling, "BACKEND", wrong)
    plain, compiled = runtime.load(folders["flux"]), runtime.load(folders["flux"], compile="full")
    for one, other in zip(_pictures(compiled, "flux"), _pictures(plain, "flux"), strict=True):
        assert float(numpy.abs(one - other).max()) < 1e-4
    assert "other results" in _figures(runtime, compiled)["compiled"]["notes"][0]


def test_modules_over_plain_tensors() -> None:
    """Layers with weights in 8-bit floats, as the compiler sees them."""
    from kamado.weights.quantized.floats import quantize_floats
    from kamado.weights.quantized.tensor import QuantTensor

    block = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.SiLU(), torch.nn.Linear(48, 16, bias=False))
    for layer in (block[0], block[2]):
        packed = quantize_floats(layer.weight.data, group_size=0, dynamic=True)
        layer.weight = torch.nn.Parameter(QuantTensor(packed, torch.float32), requires_grad=False)
    beside = compiling._without_subclasses(block)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(beside(x), block(x))
        found = torch.compile(compiling._call, backend="aot_eager")(beside, x)
    torch.testing.assert_close(found, block(x))
    assert isinstance(block[0], torch.nn.Linear) and compiling._is_known(block)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs one for CPUs")
def test_with_the_compiler(
    folders: Any, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    plain, compiled = runtime.load(folders["flux"]), runtime.load(folders["flux"], compile="full")
    wanted = _pictures(plain, "flux", 1)
    for _ in range(2):
        assert float(numpy.abs(_pictures(compiled, "flux", 1)[0] - wanted[0]).max()) < 1e-4
    figures = _figures(runtime, compiled)
    assert figures["compile_s"] > 0 and "notes" not in figures["compiled"], figures["compiled"]
