"""Bark, equal to the library's own `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer, BarkProcessor

import kamado
from kamado_models.library.loading import Loader
from kamado_models.library.model import whole_modules
from kamado_models.speech.bark import BarkKind

from .tiny_speech import write_bark


def said(model: Any, folder: Path, text: str, seed: int, voice: str | None = None, **kwargs: Any) -> numpy.ndarray:
    """What the library says."""
    voices = json.loads((folder / "speaker_embeddings_path.json").read_text())
    processor = BarkProcessor(AutoTokenizer.from_pretrained(folder), {**voices, "repo_or_path": str(folder)})
    inputs = processor(text, voice_preset=voice)
    torch.manual_seed(seed)
    return model.generate(**inputs, **kwargs)[0].numpy()


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_bark(tmp_path / "bark")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"text", "coarse", "fine", "codec"}
    model = runtime.load(folder)
    before = torch.get_rng_state()
    plain = model.generate("hello there", seed=3)
    voiced = model.generate("hello there", seed=3, voice="v2/en_speaker_0")
    likely = model.generate("hello there", seed=3, temperature=0, max_tokens=6)
    warm = model.generate("hello there", seed=5, temperature=0.7, top_k=5, top_p=0.9)
    assert torch.equal(before, torch.get_rng_state())
    drawn = {"semantic_do_sample": False, "coarse_do_sample": False, "fine_temperature": None}
    warmer = {f"{stage}_{key}": value for stage in ("semantic", "coarse")
              for key, value in {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "do_sample": True}.items()}  # fmt: skip
    for result, expected in (
        (plain, said(own, folder, "hello there", 3)),
        (voiced, said(own, folder, "hello there", 3, "v2/en_speaker_0")),
        (likely, said(own, folder, "hello there", 3, **drawn, semantic_max_new_tokens=6)),
        (warm, said(own, folder, "hello there", 5, **warmer)),
    ):
        assert result.sample_rate == 8000 and result.audio.shape == (1, len(expected))
        assert numpy.abs(result.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    assert plain.audio.shape != voiced.audio.shape or not numpy.array_equal(plain.audio, voiced.audio)


def test_alone_and_in_a_crowd(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_bark(tmp_path / "bark")[0])
    requests = [{"prompt": "hello again", "seed": seed, "voice": "de_speaker_1"} for seed in range(3)]
    alone = [model.generate(**request).audio for request in requests]
    crowd = model.generate_many(requests)
    for one, many in zip(alone, crowd, strict=True):
        assert one.shape == many.audio.shape and numpy.abs(one - many.audio).max() < 1e-4


def test_voices(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_bark(tmp_path / "bark")
    model = runtime.load(folder)
    file = folder / "speaker_embeddings" / "de_speaker_1.npz"
    by_name = model.generate("hello", seed=1, voice="de_speaker_1").audio
    assert numpy.array_equal(model.generate("hello", seed=1, language="de").audio, by_name)
    by_file = model.generate("hello", seed=1, voice=str(file))
    assert numpy.array_equal(by_file.audio, by_name) and by_file.recipe["unrecorded"] == ["voice"]
    numpy.savez(tmp_path / "bad.npz", semantic_prompt=numpy.asarray([{}], object))
    for options, says in (
        ({"voice": "eve"}, "has no voice 'eve'; it has de_speaker_1, v2/en_speaker_0"),
        ({"language": "fr"}, "no voice that speaks 'fr'; it has de, en"),
        ({"language": "de", "voice": "v2/en_speaker_0"}, "does not speak 'de'"),
        ({"voice": "gone.npz"}, "there is no .npz file"),
        ({"voice": tmp_path / "bad.npz"}, "cannot be read"),
        ({"speed": 2.0}, "takes no speed"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate("hello", **options)  # type: ignore[arg-type]


def test_a_long_text_notes_that_voices_change(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_bark(tmp_path / "bark")[0])
    text = ("hello there " * 12).strip() + ". " + ("again " * 20).strip() + "."
    result = model.generate(text, seed=1)
    assert result.notes == ("the text is spoken in pieces, each in a voice of its own: choose one (voice)",)
    assert model.generate(text, seed=1, language="en").notes == ()


def test_cancelling_ends_between_two_steps(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_bark(tmp_path / "bark")[0])
    job = model.submit("hello. " * 200, seed=1)
    for event in job.events():
        if isinstance(event, kamado.Media):
            job.cancel()
    with pytest.raises(kamado.Cancelled):
        job.result()
    model.unload()
    assert runtime.stats()["held_bytes"] == 0


def test_with_weights_outside_of_the_budget(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Components that are cut out of one model, where not all of it has room."""
    folder, _ = write_bark(tmp_path / "bark")
    requests = [{"prompt": "hello there", "seed": seed, "temperature": 0, "max_tokens": 6} for seed in (1, 2)]
    expected = runtime.load(folder).generate_many(requests)
    plan = runtime.plan(folder)
    with kamado.Runtime(device="cpu", memory=plan.minimum_bytes - plan.weight_bytes // 20) as small:
        planned = small.plan(folder)
        assert 0 < planned.outside_bytes < plan.weight_bytes
        model = small.load(folder)
        for one, other in zip(model.generate_many(requests), expected, strict=True):
            assert numpy.abs(one.audio - other.audio).max() < 1e-4
        held = small.stats()["held_bytes"]
        assert held <= small.budget_bytes


def test_components_of_one_model_leave_and_come_back_as_one(runtime: kamado.Runtime, tmp_path: Path) -> None:
    """What a GPU's models do while others need the room."""
    model = runtime.load(write_bark(tmp_path / "bark")[0])
    own = model.loaded._workshop.generator.modules  # type: ignore[attr-defined]
    whole = whole_modules(own)
    assert set(whole) == {"text"}
    again = BarkKind().build(model.checkpoint, Loader(model.checkpoint, model.plan, None, whole))
    assert {name: id(part) for name, part in again.modules.items()} == {name: id(part) for name, part in own.items()}
