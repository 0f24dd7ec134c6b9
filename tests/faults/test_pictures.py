"""Memory that runs out at any operation of a picture: of text encoder, denoiser, scheduler, decoder."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from adapter_files import Files
from failing_device import ERRORS, FailingDevice, failing_runtime, tensor_bytes, together

LARGEST_DIFFERENCE = 1e-4
"""Of pictures in batches of other sizes."""


@pytest.fixture(scope="module")
def device() -> FailingDevice:
    return FailingDevice()


@pytest.fixture(scope="module")
def model(device: FailingDevice, folders: dict[str, Path]) -> Iterator[kamado.Model]:
    with failing_runtime(device, memory="4GiB") as runtime:
        yield runtime.load(folders["sd15"], pinned=True)


def _requests(model: kamado.Model, **options: Any) -> list[tuple[kamado.Model, dict[str, Any]]]:
    requests = [{**tiny.arguments("sd15", prompt=index), "seed": index} for index in range(2)]
    made = [(model, {**request, "num_inference_steps": 1 + index}) for index, request in enumerate(requests)]
    made[1][1].update(options)
    return made


def _differs(found: kamado.Result, wanted: kamado.Result) -> float:
    return float(numpy.abs(found.pixels[0] - wanted.pixels[0]).max())


def _cases(total: int, num_single: int, num_bursts: int) -> list[range]:
    """Operations that fail: one, or some in a row."""
    rng = random.Random(0)
    cases = [range(n, n + 1) for n in rng.sample(range(1, total + 1), num_single)]
    for _ in range(num_bursts):
        start = rng.randrange(1, total)
        cases.append(range(start, start + rng.choice((2, 3, 8, 60))))
    return cases


def _anew(model: kamado.Model, requests: Any) -> list[Any]:
    """`together`, with every text read again; nothing of it is kept."""
    session: Any = vars(model.runtime)["_session"]
    outputs = model.loaded._workshop.outputs  # type: ignore[attr-defined]
    found = together(requests)
    session.call(outputs.trim)
    return found


def _check(model: kamado.Model, device: FailingDevice, requests: Any, num_single: int, num_bursts: int) -> int:
    """Whatever fails, what does not is right and nothing is left behind. How many requests failed."""
    _anew(model, requests)  # joined calls are compared once
    before, joins = model.runtime.ledger.snapshot(), model.usage()["compared"]
    device.rest()
    wanted = _anew(model, requests)
    held = made = failures = 0
    for number, case in enumerate(_cases(device.count, num_single, num_bursts)):
        device.rest()
        device.fails, device.error = case, ERRORS[number % len(ERRORS)]
        found = _anew(model, requests)
        device.rest()
        assert model.runtime.ledger.snapshot() == before
        for outcome, right in zip(found, wanted, strict=True):
            if isinstance(outcome, kamado.Result):
                tiled = any("in tiles" in note for note in outcome.notes)
                assert _differs(outcome, right) < LARGEST_DIFFERENCE or tiled, f"a wrong picture after {case}"
                made += 1
            else:
                assert isinstance(outcome, kamado.GenerationFailed)
                assert "out of memory on cpu" in str(outcome)
                failures += 1
        held = held or tensor_bytes()
    assert made > failures
    assert model.usage()["compared"] == joins
    assert tensor_bytes() <= held + 4096
    assert all(_differs(*pair) < LARGEST_DIFFERENCE for pair in zip(_anew(model, requests), wanted, strict=True))
    return failures


def test_any_operation_may_fail(model: kamado.Model, device: FailingDevice) -> None:
    assert _check(model, device, _requests(model), 30, 20)


def test_any_operation_with_adapters_may_fail(model: kamado.Model, device: FailingDevice, files: Files) -> None:
    adapters = [str(files["lora-sd15"]), str(files["embedding-sd15"])]
    assert _check(model, device, _requests(model, adapters=adapters), 14, 8)


def test_any_operation_of_a_pipeline_that_runs_as_a_whole_may_fail(
    model: kamado.Model, device: FailingDevice, folders: dict[str, Path], tmp_path: Path
) -> None:
    """It puts other attention into the shared UNet, and takes it out again only where it comes to its end."""
    folder = shutil.copytree(folders["sd15"], tmp_path / "pag")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"}))
    whole = model.runtime.load(folder, pinned=True)
    unet: Any = whole.loaded._workshop.factory.models["unet"]  # type: ignore[attr-defined]
    before = dict(unet.attn_processors)
    session: Any = vars(model.runtime)["_session"]
    session.call(model.loaded.trim)  # idle adapters would leave with the first shortage
    _check(whole, device, _requests(whole, pag_scale=2.0), 8, 4)
    assert dict(unet.attn_processors) == before
    whole.unload()


def test_a_picture_that_is_too_large_to_decode_at_once_is_decoded_in_tiles(
    model: kamado.Model, device: FailingDevice
) -> None:
    request = {**tiny.arguments("sd15"), "height": 128, "width": 192, "seed": 3, "num_inference_steps": 1}
    small = {**request, "height": 64, "width": 64, "seed": 4}
    device.rest()
    together([(model, {**request, "tiling": True})])
    most = device.peak_bytes
    device.rest()
    whole, tiled, other = together([(model, request), (model, {**request, "tiling": True}), (model, small)])
    assert device.peak_bytes > 1.5 * most
    device.rest()
    device.largest_bytes = most
    found, beside = together([(model, request), (model, small)])
    assert device.failed
    device.rest()
    assert found.notes == ("memory ran out in the vae: it went on to decode in tiles",)
    assert _differs(found, tiled) < LARGEST_DIFFERENCE < _differs(found, whole)
    assert beside.notes == ()
    assert _differs(beside, other) < LARGEST_DIFFERENCE
    again = model.generate(**request)
    assert again.notes == ()
    assert _differs(again, whole) < LARGEST_DIFFERENCE
