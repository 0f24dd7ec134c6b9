"""Pocket TTS and Phonon, equal to the library's own calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

import kamado
from kamado_models.speech.pocket import PocketKind

from .tiny_pocket import RATE, write_codec, write_pocket

VOICE = (0.4 * numpy.sin(numpy.arange(1500) / 9)).astype(numpy.float32)


def said(model: Any, processor: Any, text: str, seed: int, voice: Any = None, **kwargs: Any) -> Any:
    """What the library says. `voice`: a recording, or latents."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    given: dict[str, Any] = {}
    if voice is not None:
        content.insert(0, {"type": "audio"})
        is_latents = isinstance(voice, torch.Tensor)
        given = {"audio_prompt_latents": [voice]} if is_latents else {"audio": [voice], "sampling_rate": RATE}
    written = processor.apply_chat_template([{"role": "user", "content": content}])
    inputs = processor(text=[written], **given, add_special_tokens=False, return_tensors="pt")
    torch.manual_seed(seed)
    made = model.generate(**inputs, **kwargs)
    return processor.decode(made.audio_latents, made.audio_latents_mask)[0].numpy().clip(-1, 1)


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_pocket(tmp_path / "pocket")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"backbone", "flow", "codec"}
    model = runtime.load(folder)
    before = torch.get_rng_state()
    plain = model.generate("Hello there.", seed=1)
    bob = model.generate("hello there you.", seed=2, preset="bob", temperature=0.3, steps=3)
    likely = model.generate("hello", seed=2, preset=str(folder / "voices" / "ann.safetensors"), temperature=0)
    cloned = model.generate("hello", seed=3, voice=(VOICE, RATE), max_tokens=5)
    assert torch.equal(before, torch.get_rng_state())
    voices = {name: load_file(folder / "voices" / f"{name}.safetensors")["latents"] for name in ("ann", "bob")}
    for result, expected in (
        (plain, said(own, processor, "Hello there.", 1, voices["ann"])),
        (bob, said(own, processor, "hello there you.", 2, voices["bob"][0], temperature=0.3, num_flow_steps=3)),
        (likely, said(own, processor, "hello", 2, voices["ann"], do_sample=False)),
        (cloned, said(own, processor, "hello", 3, VOICE, max_new_tokens=5)),
    ):
        assert (
            result.sample_rate == RATE and result.audio.shape == (1, len(expected)) and 0.01 < abs(expected).max() < 1
        )
        assert numpy.abs(result.audio[0] - expected).max() < 1e-4
    assert cloned.audio.shape[1] == 5 * 32 and bob.recipe["options"]["preset"] == "bob"
    assert set(cloned.recipe["inputs"]) == {"voice"} and likely.recipe["unrecorded"] == ["preset"]
    again = model.generate("hello there you.", seed=2, preset="bob", temperature=0.3, steps=3)
    assert numpy.array_equal(again.audio, bob.audio)
    assert PocketKind().facts(model.loaded.checkpoint) == {"voices": ["ann", "bob", "eve"]}
    for options, says in (
        ({"preset": "zoe"}, "has no voice 'zoe'; it has ann, bob, eve"),
        ({"preset": "eve"}, r"holds \[2, 3\], and latents are finite numbers \[frames, 4\]"),
        ({"preset": "gone.npy"}, "there is no file gone.npy"),
        ({"preset": "bob", "voice": (VOICE, RATE)}, "leave out one of them"),
        ({"voice": "bob"}, "preset=bob"),
        ({"voice": (VOICE[:0], RATE)}, "sample"),
        ({"voice": (numpy.zeros(RATE * 61, numpy.float32), RATE)}, "hears 60 s at most: cut it"),
        ({"top_k": 5}, "takes no top_k"),
        ({"prompt": "a <voice>"}, "prompt has <voice> in it"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(**{"prompt": "hello", **options})  # type: ignore[arg-type]


def test_long_texts_and_crowds(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_pocket(tmp_path / "pocket", flow_type="drifting")
    for file in (folder / "voices").iterdir():
        file.unlink()
    model = runtime.load(folder)
    one, two = "hello there " * 14 + "you.", "Indeed " * 20 + "me."
    events = list(model.stream(f"{one} {two}", seed=4, pause=0.0))
    parts = [event.data.samples[0] for event in events if isinstance(event, kamado.Media) and event.is_part]
    assert len(parts) == 2 and numpy.abs(parts[0] - said(own, processor, one, 4)).max() < 1e-4
    requests: list[dict[str, Any]] = [{"prompt": "hello there", "seed": seed} for seed in range(3)]
    requests.append({"prompt": "you", "voice": (VOICE, RATE), "seed": 1, "temperature": 0.2})
    alone = [model.generate(**request).audio for request in requests]
    for single, many in zip(alone, model.generate_many(requests), strict=True):
        assert single.shape == many.audio.shape and numpy.abs(single - many.audio).max() < 1e-4
    assert len({each.tobytes() for each in alone}) == 4
    with pytest.raises(kamado.InvalidRequest, match="takes no steps"):
        model.generate("hello", steps=2)


def test_phonon(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_pocket(tmp_path / "phonon", phonon=True)
    model = runtime.load(folder)
    ann = load_file(folder / "voices" / "ann.safetensors")["latents"]
    expected = said(own, processor, "hello there", 1, ann)
    assert numpy.abs(model.generate("hello there", seed=1).audio[0] - expected).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match="takes no voice"):
        model.generate("hello", voice=(VOICE, RATE))


def test_checkpoints_that_lack_something(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _, _ = write_pocket(tmp_path / "pocket")
    codec = folder / "audio_tokenizer"
    (codec / "model.safetensors").unlink()
    write_codec(codec, encoder_config=None)
    with pytest.raises(kamado.InvalidRequest, match="the codec has no encoder; choose a preset"):
        runtime.load(folder).generate("hello", voice=(VOICE, RATE))
    settings = folder / "processor_config.json"
    told = settings.read_text()
    for name, value in (
        ("fade_in_duration", 10**400),
        ("fade_in_duration", "long"),
        ("frames_after_eos", 10**12),
        ("frames_after_eos_short_text", -1),
        ("short_text_max_words", 1.5),
    ):
        settings.write_text(json.dumps(json.loads(told) | {name: value}))
        with kamado.Runtime(device="cpu") as other, pytest.raises(kamado.UnsupportedCheckpoint, match=f"used: {name}"):
            other.load(folder)
    settings.write_text(told)
    template = folder / "chat_template.jinja"
    written = template.read_text()
    for text, says in (
        ("{{ 1 }}", "its chat template has 0 places for voices where 1 are given"),
        ("{% if %}", "not valid"),
    ):
        template.write_text(text)
        with kamado.Runtime(device="cpu") as other, pytest.raises(kamado.UnsupportedCheckpoint, match=says):
            other.load(folder).generate("hello")
    template.unlink()
    with kamado.Runtime(device="cpu") as other, pytest.raises(kamado.UnsupportedCheckpoint, match="has no chat_temp"):
        other.load(folder)
    template.write_text(written)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens.pop("extra_special_tokens", None)
    tokens = {name: value for name, value in tokens.items() if not name.startswith("audio_")}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    with kamado.Runtime(device="cpu") as other, pytest.raises(kamado.UnsupportedCheckpoint, match="its processor"):
        other.load(folder)
