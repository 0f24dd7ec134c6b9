"""Memory that runs out, or a file that cannot be read, at any point of loading and of preparing a request."""

from __future__ import annotations

import builtins
import errno
import gc
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny
import tiny_pipelines as pipelines
from adapter_files import Files
from failing_device import ERRORS, FailingDevice, tensor_bytes
from kamado.weights import stream

NUM_CASES = 12
TEXT = {"prompt_tokens": [9, 40, 7, 12], "max_tokens": 3, "ignore_eos": True, "temperature": 0.0}


@pytest.fixture(scope="module")
def references(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    made = {name: tiny.build(name, folder / name) for name in ("llama", "mamba")}
    return {**made, "sd15": folders["sd15"]}


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="8GiB") as made:
        yield made


def _answer(model: kamado.Model) -> Any:
    if "image" in model.capabilities:
        return model.generate(**{**pipelines.arguments("sd15"), "num_inference_steps": 1}, seed=1).pixels[0]
    return model.generate(**TEXT).tokens


def _options(name: str) -> dict[str, Any]:
    return {} if name == "sd15" else {"kv_tokens": 64}


@pytest.mark.parametrize("name", ["llama", "mamba", "sd15"])
def test_any_operation_of_loading_may_fail(name: str, references: dict[str, Path], runtime: kamado.Runtime) -> None:
    device = FailingDevice()
    with device:
        model = runtime.load(references[name], **_options(name))
    total, wanted = device.count, _answer(model)
    model.unload()
    before, held, failures = runtime.ledger.snapshot(), 0, 0
    numbers = random.Random(0).sample(range(1, total + 1), min(NUM_CASES, total))
    for case, number in enumerate(numbers):
        device.rest()
        device.fails, device.error = range(number, number + 1), ERRORS[case % len(ERRORS)]
        try:
            with device:
                model = runtime.load(references[name], **_options(name))
        except kamado.DoesNotFit as error:
            failures += 1
            assert "out of memory on cpu" in str(error)
            assert str(references[name]) in str(error)
        else:
            assert not device.failed, f"operation {number} failed, and nobody said so"
            model.unload()
        assert runtime.ledger.snapshot() == before
        held = held or tensor_bytes()
    assert failures >= NUM_CASES // 2
    assert tensor_bytes() <= held + 4096
    model = runtime.load(references[name], **_options(name))
    assert numpy.array_equal(_answer(model), wanted)
    model.unload()


@pytest.mark.parametrize("name", ["llama", "sd15"])
def test_memory_that_runs_out_while_loading_is_made_by_idle_models(name: str, references: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="8GiB") as runtime:
        old = {each: runtime.load(references[each], **_options(each)) for each in ("mamba", "sd15", "llama")}
        wanted = {each: _answer(model) for each, model in old.items()}
        old["sd15"].pin()
        device = FailingDevice()
        with device:
            runtime.load(references[name], **_options(name)).unload()
        total = device.count
        for case, number in enumerate(random.Random(0).sample(range(1, total + 1), 3)):
            for each in ("mamba", "llama"):
                assert numpy.array_equal(_answer(old[each]), wanted[each])  # in this order, so mamba leaves
            device.rest()
            device.fails, device.error = range(number, number + 1), ERRORS[case]
            with device:
                model = runtime.load(references[name], **_options(name))
            assert device.failed == 1 and device.count > total
            assert [each for each, one in old.items() if not one.in_memory] == ["mamba"]
            assert numpy.array_equal(_answer(model), wanted[name])
            model.unload()
        device.rest()
        device.fails = range(total // 2, total * 10)
        with device, pytest.raises(kamado.DoesNotFit, match="out of memory on cpu"):
            runtime.load(references[name], **_options(name))
        assert [each for each, one in old.items() if one.in_memory] == ["sd15"]
        for each, one in old.items():
            assert numpy.array_equal(_answer(one), wanted[each])


@pytest.mark.parametrize("name", ["llama", "mamba", "sd15"])
def test_any_read_of_weights_may_fail(
    name: str, references: dict[str, Path], runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fails = runtime.ledger.snapshot(), 0
    reads = itertools.count(1)  # several threads read

    def opened(*args: Any, **kwargs: Any) -> Any:
        if next(reads) == fails:
            raise OSError(errno.EIO, "Input/output error")
        return builtins.open(*args, **kwargs)

    monkeypatch.setattr(stream, "open", opened, raising=False)
    model = runtime.load(references[name], **_options(name))
    total, wanted = next(reads) - 1, _answer(model)
    model.unload()
    assert total > 5
    for number in random.Random(0).sample(range(1, total + 1), min(12, total)):
        reads, fails = itertools.count(1), number
        with pytest.raises(kamado.UnsupportedCheckpoint, match="Input/output error"):
            runtime.load(references[name], **_options(name))
        assert runtime.ledger.snapshot() == before
    fails = 0
    model = runtime.load(references[name], **_options(name))
    assert numpy.array_equal(_answer(model), wanted)
    model.unload()


def test_any_operation_of_preparing_a_request_may_fail(files: Files, runtime: kamado.Runtime) -> None:
    """Adapters are read before the request begins."""
    adapters = [str(files["lora-sd15-kohya"])]
    request = {**pipelines.arguments("sd15"), "seed": 3, "adapters": adapters}
    other = runtime.load(files["sd15"])
    wanted = other.generate(**request).pixels[0]
    other.unload()
    model, device = runtime.load(files["sd15"]), FailingDevice()
    before = runtime.ledger.snapshot()
    with device:
        model.loaded.prepare("count", request, 0.0)
    total = device.count
    assert total > 10
    for number in random.Random(0).sample(range(1, total + 1), min(NUM_CASES, total)):
        device.rest()
        gc.collect()  # nobody has read the file yet
        device.fails, device.error = range(number, number + 1), ERRORS[number % len(ERRORS)]
        with device, pytest.raises(kamado.GenerationFailed, match="out of memory on cpu"):
            model.submit(**request)
        assert model.jobs() == []
        assert runtime.ledger.snapshot() == before
    assert numpy.array_equal(model.generate(**request).pixels[0], wanted)
    model.unload()


def test_an_error_of_loading_does_not_keep_what_was_loaded(
    references: dict[str, Path], runtime: kamado.Runtime
) -> None:
    device = FailingDevice()
    with device:
        runtime.load(references["llama"], kv_tokens=64).unload()
    held = tensor_bytes()
    last = device.count
    device.rest()
    device.fails = range(last, last + 1)
    with device, pytest.raises(kamado.DoesNotFit) as caught:
        runtime.load(references["llama"], kv_tokens=64)
    assert caught.value.__cause__ is not None
    assert tensor_bytes() <= held + 4096
