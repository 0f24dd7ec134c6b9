"""What all models share that a library's own code runs: options, tasks, batching, seeds, recipes, plan and ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch

import kamado
import kamado.api

from .toy_kind import FAMILY, write_checkpoint


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[kamado.Runtime]:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(kamado.api, "find", lambda checkpoint: FAMILY)
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


@pytest.fixture
def model(runtime: kamado.Runtime, tmp_path: Path) -> kamado.Model:
    return runtime.load(write_checkpoint(tmp_path / "hum"))


def test_an_answer_is_an_output_with_its_seed_notes_and_recipe(model: kamado.Model) -> None:
    result = model.generate("la la", seed=5, steps=2)
    assert (model.tasks, model.capabilities) == (("text-to-audio",), ("audio",))
    assert result.audio.shape == (1, 8) and result.audio.dtype == numpy.float32 and result.sample_rate == 8000
    assert result.seeds == (5,) and result.notes == ("5 letters",)
    assert result.recipe["options"] == {"prompt": "la la", "steps": 2, "n": 1, "seed": 5}
    assert (result.images, result.text, result.video, result.mesh, result.embedding) == ((), "", None, None, None)


def test_the_same_seed_gives_the_same_alone_and_in_a_crowd(model: kamado.Model) -> None:
    alone = [model.generate("la", seed=seed, steps=4).audio for seed in range(6)]
    crowd = model.generate_many([{"prompt": "la", "seed": seed, "steps": 4} for seed in range(6)])
    assert all(numpy.allclose(one, many.audio, atol=1e-6) for one, many in zip(alone, crowd, strict=True))
    assert any(any(result.batched) for result in crowd)
    several = model.generate("la", seed=2, steps=4, n=3)
    assert several.seeds == (2, 3, 4)
    assert numpy.allclose(several.outputs[1].samples, alone[3], atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("prompt", ["noise", "dice"])  # in a forward, and between two
def test_what_library_code_draws_comes_from_the_seed_and_not_from_the_program(model: kamado.Model, prompt: str) -> None:
    before = torch.get_rng_state()
    found = [model.generate(prompt, seed=seed).audio for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert numpy.array_equal(found[0], found[1]) and not numpy.array_equal(found[0], found[2])
    expected = torch.rand(1, 8, generator=torch.Generator().manual_seed(1)).numpy()
    assert numpy.array_equal(found[0], expected)


def test_a_request_of_several_inputs_has_an_answer_of_each(model: kamado.Model) -> None:
    result = model.generate("la+lala", seed=5, steps=2)
    assert len(result.outputs) == 2 and result.seeds == (5, 6)
    assert result.notes == ("2 letters", "4 letters")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a model that hums prompt"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": 3}, "prompt must be text"),
        ({"prompt": "a", "steps": 0}, "steps must be a whole number from 1 to 1000"),
        ({"prompt": "a", "steps": 2, "num_steps": 3}, "given twice"),
        ({"prompt": "a", "seconds": float("nan")}, "finite"),
        ({"prompt": "a", "voice": "bob"}, "takes no voice; it takes deadline_s, n, prompt"),
        ({"prompt": "a", "n": 0}, "n must be"),
    ],
)
def test_bad_options_are_named(model: kamado.Model, options: dict[str, object], says: str) -> None:
    with pytest.raises(kamado.InvalidRequest, match=says):
        model.generate(**options)  # type: ignore[arg-type]


def test_a_request_is_checked_before_weights_are_read(runtime: kamado.Runtime, tmp_path: Path) -> None:
    with pytest.raises(kamado.InvalidRequest, match="forbidden"):
        runtime.load(write_checkpoint(tmp_path / "hum"), request={"prompt": "forbidden"})
    assert runtime.stats()["held_bytes"] == 0


def test_plan_ledger_and_unloading(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hum")
    plan = runtime.plan(folder)
    assert plan.weight_bytes == (64 + 8) * 4 and plan.lanes[0].lane == "network"
    model = runtime.load(folder)
    assert runtime.stats()["held_bytes"] == plan.total_bytes
    model.generate("la", steps=2)
    model.unload()
    assert runtime.stats()["held_bytes"] == 0
    with pytest.raises(kamado.DoesNotFit):
        kamado.Runtime(device="cpu", memory=100).load(folder)


def test_cancelling_ends_between_two_forwards(model: kamado.Model) -> None:
    started = threading.Event()
    job = model.submit("la", steps=1000)
    for event in job.events():
        if isinstance(event, kamado.Progress):
            started.set()
            job.cancel()
    assert started.is_set()
    with pytest.raises(kamado.Cancelled):
        job.result()


def test_tensors_that_do_not_fit_are_named(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hum", size=8)
    (folder / "config.json").write_text('{"model_type": "hum", "size": 9, "num_layers": 0}')
    with pytest.raises(kamado.UnsupportedCheckpoint, match="has another shape of mix"):
        runtime.load(folder)


def test_a_model_larger_than_the_budget_runs_with_weights_outside(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hum", size=64, num_layers=12)
    whole = runtime.load(folder).generate("la", seed=1, steps=3).audio
    budget = runtime.plan(folder).weight_bytes * 2 // 3
    with kamado.Runtime(device="cpu", memory=budget) as small:
        plan = small.plan(folder)
        assert plan.outside_bytes > 0 and plan.minimum_bytes <= budget
        with pytest.raises(kamado.DoesNotFit):
            small.load(folder, offload="never")
        model = small.load(folder)
        assert small.stats()["held_bytes"] <= budget
        assert numpy.allclose(model.generate("la", seed=1, steps=3).audio, whole, atol=1e-6)
        model.unload()
        assert small.stats()["held_bytes"] == 0


def test_weights_can_be_quantized(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hum", size=64, num_layers=4)
    plain, rounded = runtime.load(folder), runtime.load(folder, quant="int8")
    assert runtime.plan(folder, quant="int8").weight_bytes < runtime.plan(folder).weight_bytes // 3
    exact, close = (model.generate("la", seed=1, steps=1).audio for model in (plain, rounded))
    assert numpy.allclose(exact, close, atol=0.05) and not numpy.array_equal(exact, close)
    small = write_checkpoint(tmp_path / "small")
    for ask in (runtime.plan, runtime.load):  # it would change nothing
        with pytest.raises(kamado.InvalidRequest, match=r"none of its weights can be held in that form.*\(--quant\)"):
            ask(small, quant="int8")
