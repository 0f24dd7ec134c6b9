"""Projections that are one product: pictures are those of the layers by themselves, and nothing is held twice. As for a
GPU in half precision, on a CPU in single precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from adapter_files import Files, clear, difference, drawn, halted
from kamado_models.diffusion import compiling, loading
from kamado_models.diffusion.joining import JoinedLayers
from tiny_pipelines.adapters import lora

LARGEST_DIFFERENCE = 1e-5
NAMES = ("sd15", "sdxl", "flux", "sd3", "z-image", "sana", "hunyuan-dit")

Loads = list[dict[str, JoinedLayers]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """What each load since has joined."""
    found: Loads = []
    usual = loading._joined

    def noting(*arguments: Any) -> dict[str, JoinedLayers]:
        found.append(usual(*arguments))
        return found[-1]

    monkeypatch.setattr(loading, "_joined", noting)
    monkeypatch.setattr(loading, "_joins", lambda device, dtype: True)
    return found


def _requests(name: str) -> list[dict[str, Any]]:
    return [{**tiny.arguments(name, prompt=index), "seed": index} for index in range(3)]


def _forwards(model: kamado.Model) -> Iterator[Any]:
    for component in model.loaded.direct_pipeline().components.values():  # type: ignore[attr-defined]
        for module in component.modules() if hasattr(component, "modules") else ():
            yield from (value for name, value in vars(module).items() if name == "forward")


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_the_same_alone_and_in_a_batch(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime, loads: Loads
) -> None:
    apart, model = runtime.load(folders[name], compile="off"), runtime.load(folders[name])
    assert loads[0] == {} and len(loads[1]) == 1, "that can be ended"
    assert runtime.ledger.held(owner=model.owner) == runtime.ledger.held(owner=apart.owner)
    (joined,) = loads[1].values()
    count = len(joined)
    wanted = [apart.generate(**request).pixels for request in _requests(name)]
    for request, pixels in zip(_requests(name), wanted, strict=True):
        assert difference(model.generate(**request), pixels) < LARGEST_DIFFERENCE
    with halted(runtime):
        jobs = [model.submit(**request) for request in _requests(name)]
    for job, pixels in zip(jobs, wanted, strict=True):
        assert difference(job.result(), pixels) < LARGEST_DIFFERENCE
    assert len(joined) == count > 0, "diffusers' attention calls them as their names say"
    assert not any(group.is_waiting for group in joined._groups)
    assert not list(_forwards(model))
    for each in (apart, model):
        each.unload()
    assert runtime.ledger.held() == 0


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_beside_adapters(name: str, files: Files, runtime: kamado.Runtime, loads: Loads) -> None:
    pipeline = tiny.load(files[name])
    models = {key: part for key, part in pipeline.components.items() if key in ("unet", "transformer")}
    path = files.save(f"joined/{name}.safetensors", drawn(lora, models, 1))
    plain, changed = _requests(name)[0], {**_requests(name)[0], "adapters": [f"{path}:0.8"]}
    apart, model = runtime.load(files[name], compile="off"), runtime.load(files[name])
    wanted = [apart.generate(**request).pixels for request in (plain, changed)]
    assert clear(*(pixels[0] for pixels in wanted))
    with halted(runtime):
        jobs = [model.submit(**request) for request in (changed, plain, changed)]
    for job, pixels in zip(jobs, (wanted[1], wanted[0], wanted[1]), strict=True):
        assert difference(job.result(), pixels) < LARGEST_DIFFERENCE
    assert difference(model.generate(**plain), wanted[0]) < LARGEST_DIFFERENCE
    assert all(len(joined) == len(joined._groups) for joined in loads[1].values())


def test_only_plain_weights_of_models_that_may_differ_by_rounding(folders: dict[str, Path], loads: Loads) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB", deterministic=True) as exact:
        exact.load(folders["sd15"])
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        runtime.load(folders["sd15"], quant="int8")
    with kamado.Runtime(device="cpu", memory=1) as runtime:
        least = runtime.plan(folders["sd15"]).minimum_bytes
    with kamado.Runtime(device="cpu", memory=least) as runtime:
        model = runtime.load(folders["sd15"])
        assert model.plan.outside_bytes > 0
    assert loads == [{}, {}, {}]


def test_compiled_blocks_come_first(
    folders: dict[str, Path], runtime: kamado.Runtime, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_compiles", lambda device: True)
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model = runtime.load(folders["flux"], compile="full")
    assert loads == [{}]
    for _ in range(2):
        model.generate(**_requests("flux")[0])
    figures = runtime.stats()["models"][model.owner]
    assert figures["compile_s"] > 0 and "notes" not in figures["compiled"]


def test_weights_come_back_from_ram(folders: dict[str, Path], loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.api._ram_budget", lambda device: 1 << 30)
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        budget = max(roomy.plan(folders[name]).total_bytes for name in ("sd15", "flux")) + 1000
    with kamado.Runtime(device="cpu", memory=budget) as runtime:
        model = runtime.load(folders["sd15"])
        wanted, held = model.generate(**_requests("sd15")[0]).pixels, runtime.ledger.held("cpu", model.owner)
        runtime.load(folders["flux"])
        assert runtime.stats()["models"][model.owner]["place"] == "ram"
        again = model.generate(**_requests("sd15")[0])
        assert numpy.array_equal(again.pixels[0], wanted[0])
        assert runtime.ledger.held("cpu", model.owner) == held
        assert [list(found) for found in loads] == [["unet"], ["transformer"], ["unet"]]
        assert len(loads[0]["unet"]) == len(loads[2]["unet"]) == 8
