"""VITS and MMS, equal to the library's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import VitsTokenizer

import kamado

from .tiny_speech import write_vits


def said(model: Any, folder: Path, texts: list[str], seed: int, **kwargs: Any) -> list[numpy.ndarray]:
    """What the library says, one text after the other."""
    tokenizer = VitsTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt"), **kwargs).waveform[0].numpy() for text in texts]


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_vits(tmp_path / "vits")
    model = runtime.load(folder)
    assert (model.tasks, model.capabilities) == (("text-to-speech",), ("audio",))
    before = torch.get_rng_state()
    result = model.generate("Hello there", seed=3)
    assert torch.equal(before, torch.get_rng_state())
    (expected,) = said(own, folder, ["Hello there"], 3)
    assert result.sample_rate == 8000 and result.audio.shape == (1, len(expected))
    assert numpy.abs(result.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    slow = model.generate("Hello there", seed=3, speaking_rate=0.5)
    assert slow.audio.shape[1] > 1.2 * result.audio.shape[1]


def test_sentences_come_one_by_one_with_pauses(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_vits(tmp_path / "vits")
    model = runtime.load(folder)
    events = list(model.stream("Hello there. How are you?", seed=1, pause=0.1))
    media = [event for event in events if isinstance(event, kamado.Media)]
    assert [event.is_part for event in media] == [True, True, False]
    whole = media[-1].data.samples
    assert numpy.array_equal(numpy.concatenate([part.data.samples for part in media[:2]], axis=1), whole)
    first, second = said(own, folder, ["Hello there.", "How are you?"], 1)
    expected = numpy.concatenate([first, numpy.zeros(800, numpy.float32), second]).clip(-1, 1)
    assert whole.shape == (1, len(expected)) and numpy.abs(whole[0] - expected).max() < 1e-4


def test_alone_and_in_a_crowd(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_vits(tmp_path / "vits", speakers=3)[0])
    requests = [{"prompt": "good day. again", "seed": seed, "voice": str(seed % 3)} for seed in range(4)]
    alone = [model.generate(**request).audio for request in requests]
    crowd = model.generate_many(requests)
    for one, many in zip(alone, crowd, strict=True):
        assert numpy.abs(one - many.audio).max() < 1e-4
    assert not numpy.array_equal(alone[0][:, :200], alone[1][:, :200])


def test_voices_are_speakers(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_vits(tmp_path / "vits", speakers=3)
    model = runtime.load(folder)
    (expected,) = said(own, folder, ["hi"], 2, speaker_id=1)
    assert numpy.abs(model.generate("hi", seed=2, voice="1").audio[0] - expected).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match=r"has no voice 'bob'; it has 0, 1, 2"):
        model.generate("hi", voice="bob")
    other = runtime.load(write_vits(tmp_path / "single")[0])
    with pytest.raises(kamado.InvalidRequest, match="takes no voice"):
        other.generate("hi", voice="1")


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "says"),
    [
        ({"phonemize": True}, "hi", "needs the package phonemizer and the program espeak-ng"),
        ({"is_uroman": True}, "привет", "pip install uroman"),
        ({}, "привет", "knows no letter of"),
    ],
)
def test_what_is_missing_is_named(
    runtime: kamado.Runtime, tmp_path: Path, tokenizer: dict[str, bool], prompt: str, says: str
) -> None:
    model = runtime.load(write_vits(tmp_path / "vits", **tokenizer)[0])
    with pytest.raises(kamado.InvalidRequest, match=says):
        model.generate(prompt)


def test_plan_and_ledger(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_vits(tmp_path / "vits")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"encoder", "decoder"}
    assert plan.weight_bytes == sum(tensor.numel() * 4 for tensor in own.state_dict().values())
    model = runtime.load(folder)
    model.generate("hi", seed=1)
    model.unload()
    assert runtime.stats()["held_bytes"] == 0
