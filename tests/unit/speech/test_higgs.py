"""HiggsAudio v2, equal to the library's own calls."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import kamado
from kamado_models.speech.higgs import HiggsSpeaker
from kamado_models.speech.higgs_codec import HiggsCodec
from kamado_models.speech.higgs_codec import resampled as own_resampled

from .tiny_higgs import RATE, resampled, write_higgs

VOICE = (0.4 * numpy.sin(numpy.arange(3000) / 9)).astype(numpy.float32)


def part(role: str, kind: str, value: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": kind, kind: value}]}


def said(model: Any, processor: Any, seed: int | None, *turns: dict[str, Any], scene: str = "", **kwargs: Any) -> Any:
    """What the library says."""
    system = "Generate audio following instruction."
    if scene:
        system += f"\n\n<|scene_desc_start|>\n{scene}\n<|scene_desc_end|>"
    inputs = processor.apply_chat_template(
        [part("system", "text", system), *turns], tokenize=True, return_dict=True, return_tensors="pt",
        sampling_rate=RATE,
    )  # fmt: skip
    if seed is not None:
        torch.manual_seed(seed)
    return processor.batch_decode(model.generate(**inputs, **kwargs))[0].numpy()


def test_it_says_what_the_library_says(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_higgs(tmp_path / "higgs")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"backbone", "codec"}
    model = runtime.load(folder)
    before = torch.get_rng_state()
    plain = model.generate("hello there", seed=1)
    drawn = model.generate("hello there", seed=2, temperature=0.9, top_k=9, top_p=0.95, max_tokens=20)
    placed = model.generate("hello", seed=1, scene="a cave")
    cloned = model.generate("hello", seed=3, temperature=0.8, voice=(VOICE, RATE), voice_text="so it goes")
    assert torch.equal(before, torch.get_rng_state())
    hello, there = part("user", "text", "hello"), part("user", "text", "hello there")
    voice = (part("user", "text", "so it goes"), part("assistant", "audio", VOICE))
    warm = {"do_sample": True, "temperature": 0.9, "top_k": 9, "top_p": 0.95, "max_new_tokens": 20}
    for result, expected in (
        (plain, said(own, processor, 1, there)),
        (drawn, said(own, processor, 2, there, **warm)),
        (placed, said(own, processor, 1, hello, scene="a cave")),
        (cloned, said(own, processor, 3, *voice, hello, do_sample=True, temperature=0.8)),
    ):
        assert result.sample_rate == RATE and result.audio.shape == (1, len(expected))
        assert numpy.abs(result.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    assert set(cloned.recipe["inputs"]) == {"voice"} and cloned.recipe["options"]["voice_text"] == "so it goes"
    for options, says in (
        ({"voice": (VOICE, RATE)}, "give both, or none"),
        ({"voice": (numpy.zeros(500_000, numpy.float32), RATE), "voice_text": "a"}, "hears 20.48 s at most"),
        ({"scene": "<|AUDIO_OUT|>"}, "scene has <|AUDIO_OUT|> in it".replace("|", r"\|")),
        ({"scene": "a" * 1200}, "the model reads 1024"),
        ({"voice": "eve", "voice_text": "a"}, "eve"),
        ({"speed": 2.0}, "takes no speed"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate("hello", **options)  # type: ignore[arg-type]
    with pytest.raises(kamado.GenerationFailed, match="made no sound"):
        model.generate("hello", max_tokens=3)


def test_the_codec_is_the_librarys(tmp_path: Path) -> None:
    _, _, processor = write_higgs(tmp_path / "higgs")
    library = processor.audio_tokenizer
    own = HiggsCodec(library.config).eval()
    own.load_state_dict(library.state_dict())
    sound = torch.from_numpy(VOICE)[None, None]
    codes = library.encode(sound).audio_codes
    assert codes.unique().numel() > 3 and torch.equal(own.encode(sound).audio_codes, codes)
    assert torch.equal(own.decode(codes).audio_values, library.decode(codes).audio_values)
    for rate, new_rate in ((24_000, 16_000), (16_000, 24_000), (11_025, 8000)):
        assert (own_resampled(sound[0], rate, new_rate) - resampled(sound[0], rate, new_rate)).abs().max() < 1e-6
    assert torch.equal(own_resampled(sound[0], RATE, RATE), sound[0])


def test_pieces_go_on_in_one_voice_and_others_beside_it_change_nothing(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, processor = write_higgs(tmp_path / "higgs")
    model = runtime.load(folder)
    one, two = "hello there " * 10 + "you.", "Indeed " * 45 + "me."
    events = list(model.stream(f"{one} {two}", seed=4, pause=0.0))
    parts = [event.data.samples[0] for event in events if isinstance(event, kamado.Media) and event.is_part]
    assert len(parts) == 2
    first = said(own, processor, 4, part("user", "text", one))
    assert numpy.abs(parts[0] - first.clip(-1, 1)).max() < 1e-4
    again = (part("user", "text", one), part("assistant", "audio", parts[0]), part("user", "text", two))
    assert numpy.abs(parts[1] - said(own, processor, None, *again).clip(-1, 1)).max() < 1e-4
    requests: list[dict[str, Any]] = [{"prompt": "hello", "seed": seed, "temperature": 1.0} for seed in range(3)]
    requests.append({"prompt": "you", "voice": (VOICE, RATE), "voice_text": "so", "seed": 1})
    alone = [model.generate(**request).audio for request in requests]
    for single, many in zip(alone, model.generate_many(requests), strict=True):
        assert single.shape == many.audio.shape and numpy.abs(single - many.audio).max() < 1e-4
    assert len({each.tobytes() for each in alone}) > 2


def test_the_longest_voice() -> None:
    codec = SimpleNamespace(config=SimpleNamespace(frame_rate=25))
    for positions, seconds in ((1024, 20.48), (131_072, 60.0)):
        model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
        assert HiggsSpeaker(model, codec, None, RATE).longest_voice_s == seconds


def test_a_codec_that_does_not_fit(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _, _ = write_higgs(tmp_path / "higgs")
    path = folder / "audio_tokenizer" / "config.json"
    written = path.read_text()
    for rate, says in (
        (0, "its sample rate is 0"),
        (-5, "is -5"),
        (10**9, "is 1000000000"),
        (23_999, "no usable ratio"),
    ):
        path.write_text(json.dumps(json.loads(written) | {"semantic_sample_rate": rate}))
        with pytest.raises(kamado.UnsupportedCheckpoint, match=says):
            runtime.load(folder)
    path.write_text(written.replace("0.31", "0.21"))
    with pytest.raises(kamado.UnsupportedCheckpoint, match="do not fit HiggsCodec"):
        runtime.load(folder)
    (folder / "audio_tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(kamado.InvalidRequest, match="like audio_tokenizer=bosonai/higgs-audio-v2-tokenizer"):
        runtime.load(folder)


def test_what_published_files_have_beside_the_model_is_left_there(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _, _ = write_higgs(tmp_path / "higgs")
    before = runtime.load(folder).generate("hello", seed=1).audio
    for path, name in (
        (folder / "model.safetensors", "audio_decoder_proj.audio_lm_head.weight"),
        (folder / "audio_tokenizer" / "model.safetensors", "semantic_model.masked_spec_embed"),
    ):
        save_file({**load_file(path), name: torch.ones(8)}, path, {"format": "pt"})
    with kamado.Runtime(device="cpu", memory="1GiB") as other:
        assert numpy.array_equal(other.load(folder).generate("hello", seed=1).audio, before)
