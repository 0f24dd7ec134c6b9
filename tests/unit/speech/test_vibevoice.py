"""VibeVoice, equal to the library's own calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import kamado
from kamado_models.library.configuring import class_of
from kamado_models.speech.vibevoice import _pieces, _turns

from .tiny_vibevoice import RATE, write_vibevoice

ANN = (0.4 * numpy.sin(numpy.arange(150) / 9)).astype(numpy.float32)
BOB = (0.2 * numpy.sin(numpy.arange(90) / 2)).astype(numpy.float32)


def said(model: Any, processor: Any, seed: int, turns: list[tuple[str, str]], voices: Any = None, **kwargs: Any) -> Any:
    """What the library says."""
    messages, left = [], dict(voices or {})
    for role, text in turns:
        content = [{"type": "text", "text": text}]
        if left.pop(role, None) is not None:
            content.insert(0, {"type": "audio"})
        messages.append({"role": role, "content": content})
    audio = {"audio": list(voices.values()), "sampling_rate": RATE} if voices else {}
    inputs = processor(text=[processor.apply_chat_template(messages)], **audio, return_tensors="pt")
    torch.manual_seed(seed)
    return model.generate(**inputs, **kwargs)[0].numpy().reshape(-1).clip(-1, 1)


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_vibevoice(tmp_path / "vibe")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"backbone", "head", "codec", "semantic"}
    model = runtime.load(folder)
    before = torch.get_rng_state()
    plain = model.generate("hello there", seed=1)
    other = model.generate("hello there", seed=2, steps=5, guidance=2.0, max_tokens=4)
    cloned = model.generate("hello", seed=3, voice=(ANN, RATE))
    talk = model.generate("Speaker 1: hello.\nSpeaker 2: you", seed=4, voice=[(ANN, RATE), (BOB, RATE)])
    ten = model.generate("Speaker 10: hello.\nSpeaker 2: you", seed=4, voice=[(BOB, RATE), (ANN, RATE)])
    assert torch.equal(before, torch.get_rng_state())
    hello = [("0", "hello there")]
    both = [("1", "hello."), ("2", "you")]
    for result, expected in (
        (plain, said(own, processor, 1, hello)),
        (other, said(own, processor, 2, hello, num_diffusion_steps=5, guidance_scale=2.0, max_new_tokens=4)),
        (cloned, said(own, processor, 3, [("0", "hello")], {"0": ANN})),
        (talk, said(own, processor, 4, both, {"1": ANN, "2": BOB})),
        (ten, said(own, processor, 4, [("10", "hello."), ("2", "you")], {"10": ANN, "2": BOB})),
    ):
        assert result.sample_rate == RATE and result.audio.shape == (1, len(expected)) and expected.std() > 1e-3
        assert numpy.abs(result.audio[0] - expected).max() < 1e-4
    assert plain.audio.shape[1] > other.audio.shape[1] and len(talk.recipe["inputs"]["voice"]) == 2
    for options, says in (
        ({"voice": [(ANN, RATE)] * 2}, "voice has 2 recordings, and the prompt 1 speakers"),
        ({"voice": [(ANN, RATE)] * 5}, "must be 1 to 4 recordings, not 5"),
        ({"voice": (ANN[:0], RATE)}, "sample"),
        ({"prompt": "\n".join(f"Speaker {number}: a" for number in range(5))}, "has 5 speakers; 4 are the most"),
        ({"prompt": "Speaker 1:"}, "the prompt has no words"),
        ({"prompt": "Speaker 10: a\nSpeaker 2: b", "voice": (ANN, RATE)}, r"2 speakers \(2, 10\): give one of each"),
        ({"prompt": "a <|vision_pad|>"}, "in it, which stands for sound"),
        ({"temperature": 1.0}, "takes no temperature"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(**{"prompt": "hello", **options})  # type: ignore[arg-type]


def test_long_texts_and_crowds(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_vibevoice(tmp_path / "vibe")
    model = runtime.load(folder)
    one, two = ("hello there " * 75).strip() + ".", "Indeed " * 20 + "me."
    events = list(model.stream(f"{one} {two}", seed=4, pause=0.0))
    parts = [event.data.samples[0] for event in events if isinstance(event, kamado.Media) and event.is_part]
    assert len(parts) == 2 and numpy.abs(parts[0] - said(own, processor, 4, [("0", one)])).max() < 1e-4
    talk = model.generate(f"Speaker 1: {one}\nSpeaker 2: {two}", seed=4, max_tokens=2)
    assert talk.notes == ("the text is spoken in pieces, each in voices of its own: give a recording of each (voice)",)
    requests: list[dict[str, Any]] = [{"prompt": "hello there", "seed": seed} for seed in range(3)]
    requests.append({"prompt": "you", "voice": (ANN, RATE), "seed": 1, "steps": 2})
    alone = [model.generate(**request).audio for request in requests]
    for single, many in zip(alone, model.generate_many(requests), strict=True):
        assert single.shape == many.audio.shape and numpy.abs(single - many.audio).max() < 1e-4
    assert len({each.tobytes() for each in alone}) == 4


def test_turns() -> None:
    text = "Once.\nSpeaker 1: A. B!\n Speaker 02 : C\nand D.\nSpeaker 1:\n"
    assert _turns(text) == [("0", "Once."), ("1", "A. B!"), ("2", "C\nand D.")]
    assert _turns("Speaker 1:") == []
    assert _turns("no Speaker 1: here") == [("0", "no Speaker 1: here")]
    pieces = _pieces([("1", "A b c. " * 100), ("2", "Yes. " * 100)])
    assert [[role for role, _ in turns] for turns in pieces] == [["1", "2"], ["2"]]
    assert " ".join(said for turns in pieces for _, said in turns) == ("A b c. " * 100 + "Yes. " * 100).strip()


def test_checkpoints_of_other_forms(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _, _ = write_vibevoice(tmp_path / "vibe")
    settings = folder / "generation_config.json"
    written = settings.read_text()
    for changed, says in (
        ({"noise_scheduler_class": "DiffusionPipeline"}, "its noise scheduler is 'DiffusionPipeline'"),
        ({"noise_scheduler_config": {"beta_schedule": "x"}}, "its noise scheduler cannot be made"),
        ({"noise_scheduler_config": {"num_train_timesteps": 10**11}}, "is from 1 to 100000"),
        ({"noise_scheduler_config": {"num_train_timesteps": -1}}, "is from 1 to 100000"),
        ({"noise_scheduler_config": {"num_train_timesteps": 1.5}}, "is from 1 to 100000"),
        ({"noise_scheduler_config": [1]}, "must be an object"),
        ({"noise_scheduler_config": {"trained_betas": [[1], [2, 3]]}}, "its noise scheduler cannot be made"),
    ):
        settings.write_text(json.dumps(json.loads(written) | changed))
        with pytest.raises(kamado.UnsupportedCheckpoint, match=says):
            runtime.load(folder)
    file = folder / "model.safetensors"
    stored = {name.replace("audio_tower", "acoustic_tokenizer"): each for name, each in load_file(file).items()}
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(kamado.UnsupportedCheckpoint, match="layout of VibeVoice's own program"):
        runtime.plan(folder)


def test_a_class_that_transformers_does_not_have(runtime: kamado.Runtime, tmp_path: Path) -> None:
    checkpoint = runtime.load(write_vibevoice(tmp_path / "vibe")[0]).loaded.checkpoint
    assert class_of(checkpoint, "VibeVoiceConfig").model_type == "vibevoice"
    with pytest.raises(kamado.UnsupportedCheckpoint, match="needs a newer transformers than"):
        class_of(checkpoint, "VibeVoice9Config")
