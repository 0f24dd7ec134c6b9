"""LoRAs do what diffusers and peft make of the same files: alone, several at once, and beside other requests."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import diffusers
import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from adapter_files import LARGEST_DIFFERENCE, Files, Loras, asked, clear, difference, drawn, halted, with_loras
from kamado.errors import DoesNotFit
from kamado.events import Progress
from kamado_models.diffusion.adapters_lora import layers_of
from tiny_pipelines.adapters import lora

DENOISERS = {"unet", "transformer"}
WITH_LORAS = sorted(
    name
    for name, spec in tiny.PIPELINES.items()
    if name != "wan" and hasattr(getattr(diffusers, spec.class_name), "lora_state_dict")
)


@pytest.mark.parametrize("name", WITH_LORAS)
def test_a_lora_for_each_kind_of_pipeline(name: str, files: Files, runtime: kamado.Runtime) -> None:
    pipeline = tiny.load(files[name])
    scheduler = pipeline.scheduler
    models = {key: part for key, part in pipeline.components.items() if key in DENOISERS and part is not None}
    path = files.save(f"own/{name}.safetensors", drawn(lora, models, 1))
    request = {**tiny.arguments(name), "seed": 5}
    without = tiny.call(pipeline, **request)
    with_loras(pipeline, [(path, 0.8)])
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    wanted = tiny.call(pipeline, **request)
    model = runtime.load(files[name])
    assert difference(model.generate(**request, adapters=[f"{path}:0.8"]), wanted) < LARGEST_DIFFERENCE
    assert difference(model.generate(**request), without) < LARGEST_DIFFERENCE
    assert clear(wanted, without)


@pytest.mark.parametrize("extra", ["lora-sd15", "lora-sd15-kohya", "lora-sdxl", "lora-sdxl-kohya", "lora-flux"])
def test_text_encoders_and_names_of_other_programs(extra: str, files: Files, runtime: kamado.Runtime) -> None:
    name = extra.split("-")[1]
    request = {**tiny.arguments(name), "seed": 3}
    wanted = tiny.oracle(files[name], prepare=lambda pipeline: with_loras(pipeline, [(files[extra], 0.7)]), **request)
    model = runtime.load(files[name])
    result = model.generate(**request, adapters=asked([(files[extra], 0.7)]))
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    (adapter,) = result.recipe["adapters"]
    assert (adapter["reference"], adapter["weight"], len(adapter["sha256"])) == (f"./{files[extra].name}", 0.7, 64)


def test_a_mixed_batch(files: Files, runtime: kamado.Runtime) -> None:
    one, other = files["lora-sd15"], files["lora-sd15-kohya"]
    cases: list[Loras] = [
        [],
        [(one, 1.0)],
        [(one, 1.0)],
        [(one, 0.6), (other, -0.9)],
        [(other, -0.9), (one, 0.6)],
        [(one, 0.5)],
        [(one, 0.0)],
    ]
    requests = [
        {**tiny.arguments("sd15", prompt=index % 3), "num_inference_steps": 6, "seed": index}
        for index in range(len(cases))
    ]
    model = runtime.load(files["sd15"])
    with halted(runtime):
        jobs = [model.submit(**request, adapters=asked(case)) for request, case in zip(requests, cases, strict=True)]
    pictures = [job.result() for job in jobs]
    lane = runtime.stats()["lanes"][f"{model.owner}/unet"]
    # Without any (and with weight 0), the first one, both in either order, the first one at half weight.
    # Some may begin a step later than others, and end so.
    calls = lane["rows"] // len(cases)
    assert 4 * calls <= lane["steps"] < 5 * calls
    assert runtime.stats()["lanes"][f"{model.owner}/vae"]["rows"] == len(cases)
    for request, case, result in zip(requests, cases, pictures, strict=True):
        wanted = tiny.oracle(files["sd15"], prepare=lambda pipeline, case=case: with_loras(pipeline, case), **request)
        assert difference(result, wanted) < LARGEST_DIFFERENCE


def test_without_adapters_nothing_changes(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    before = model.generate(**request).pixels[0]
    adapted = model.generate(**request, adapters=[str(files["lora-sd15"])]).pixels[0]
    assert clear(before, adapted)
    assert numpy.array_equal(before, model.generate(**request).pixels[0])
    assert numpy.array_equal(before, tiny.oracle(files["sd15"], **request)[0])
    model.generate(**request, adapters=[str(files["lora-sd15"])])
    direct = model.loaded.direct_pipeline()
    assert numpy.array_equal(before, tiny.call(direct, **request)[0])


def test_pipelines_that_run_as_a_whole(files: Files, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    adapters = [f"{files['lora-sd15']}:0.5", str(files["embedding-sd15"])]
    wanted = [model.generate(**request), model.generate(**request, adapters=adapters)]
    monkeypatch.setattr("kamado_models.diffusion.task.runs_alone", lambda name: True)
    whole = [model.generate(**request), model.generate(**request, adapters=adapters), model.generate(**request)]
    for ours, theirs in zip(whole, [*wanted, wanted[0]], strict=True):
        assert numpy.array_equal(ours.pixels[0], theirs.pixels[0])


def test_unloading_gives_everything_back(files: Files, runtime: kamado.Runtime) -> None:
    model = runtime.load(files["sd15"])
    model.generate(**tiny.arguments("sd15"), adapters=[str(files["lora-sd15"]), str(files["embedding-sd15"])])
    assert runtime.ledger.snapshot()["cpu"][model.owner]["adapters"] > 0
    assert runtime.stats()["models"][model.owner]["adapters"] == {"in_place": 2, "in_use": 0}
    unet = weakref.ref(model.loaded._workshop.factory.components["unet"])
    model.unload()
    assert model.owner not in runtime.ledger.snapshot()["cpu"]
    gc.collect()
    assert unet() is None


def test_the_one_that_was_not_used_for_longest_goes_first(files: Files, runtime: kamado.Runtime) -> None:
    one, other = str(files["lora-sd15"]), str(files["lora-sd15-kohya"])
    request = {**tiny.arguments("sd15"), "seed": 1}
    wanted = {}
    with kamado.Runtime(device="cpu", memory="2GiB") as roomy:
        model = roomy.load(files["sd15"])
        wanted = {each: model.generate(**request, adapters=[each]).pixels[0] for each in (one, other)}
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    assert numpy.array_equal(model.generate(**request, adapters=[one]).pixels[0], wanted[one])
    held = runtime.ledger.snapshot()["cpu"][model.owner]["adapters"]
    outputs: Any = model.loaded._workshop.outputs  # type: ignore[attr-defined]
    assert runtime._session.call(outputs.trim) > 0  # they would go before any adapter
    runtime.ledger.enter("cpu", "somebody else", "all", runtime.ledger.free("cpu"))
    for each in (other, one, other):
        assert numpy.array_equal(model.generate(**request, adapters=[each]).pixels[0], wanted[each])
        assert runtime.ledger.snapshot()["cpu"][model.owner]["adapters"] == held
        assert runtime.stats()["models"][model.owner]["adapters"] == {"in_place": 1, "in_use": 0}
    with pytest.raises(DoesNotFit, match="adapters need"):
        model.generate(**request, adapters=[one, other])
    assert numpy.array_equal(model.generate(**request).pixels[0], plain)
    runtime.ledger.drop("somebody else")


def test_another_model_gets_the_room_of_idle_adapters(files: Files, runtime: kamado.Runtime) -> None:
    one, other = str(files["lora-sd15"]), str(files["lora-sd15-kohya"])
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    wanted = {each: model.generate(**request, adapters=[each]).pixels[0] for each in (one, other)}
    held = runtime.ledger.snapshot()["cpu"][model.owner]
    assert model.loaded.idle_bytes() == held["adapters"] + held["outputs"] > held["adapters"] > 0
    small = runtime.load(files["sd15"])
    needed = runtime.ledger.held(owner=small.owner)
    small.unload()
    runtime.ledger.enter("cpu", "somebody else", "all", runtime.ledger.free("cpu") - needed + held["adapters"] // 2)
    running = model.submit(**request | {"num_inference_steps": 900}, adapters=[other])
    next(event for event in running.events() if isinstance(event, Progress))  # it has read its prompt
    small = runtime.load(files["sd15"])
    assert model.in_memory and not running.done()
    assert runtime.stats()["models"][model.owner]["adapters"] == {"in_place": 1, "in_use": 1}
    assert model.loaded.idle_bytes() == 0 < runtime.ledger.snapshot()["cpu"][model.owner]["adapters"] < held["adapters"]
    running.cancel()
    small.unload()
    for each, pixels in wanted.items():
        assert numpy.array_equal(model.generate(**request, adapters=[each]).pixels[0], pixels)
    runtime.ledger.drop("somebody else")


def test_a_file_that_was_replaced_is_read_anew(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    models = {"unet": tiny.load(files["sd15"]).unet}
    model = runtime.load(files["sd15"])
    results = []
    for seed in (1, 2):
        path = files.save("changing.safetensors", drawn(lora, models, seed))
        results.append(model.generate(**request, adapters=[str(path)]))
    assert clear(*(result.pixels[0] for result in results))
    first, second = (result.recipe["adapters"][0]["sha256"] for result in results)
    assert first != second


def test_layers_that_a_lora_can_add_to() -> None:
    """Not those whose weights are used without a call."""
    model = torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(2, 3),
            "conv": torch.nn.Conv2d(2, 4, 3),
            "grouped": torch.nn.Conv2d(2, 4, 3, groups=2),
            "attention": torch.nn.MultiheadAttention(4, 2),
            "norm": torch.nn.LayerNorm(4),
        }
    )
    assert sorted(layers_of({"unet": model})["unet"]) == ["conv", "linear"]
