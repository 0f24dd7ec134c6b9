"""Dia, CSM and FastSpeech2, equal to the library's own calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import CsmProcessor, DiaFeatureExtractor, DiaProcessor, DiaTokenizer

import kamado

from .tiny_codec_models import write_csm, write_dia, write_fastspeech2

CODES = {"eos_token_id": 16, "pad_token_id": 17, "bos_token_id": 18, "delay_pattern": [0, 1, 2]}


def dia_says(folder: Path, model: Any, codec: Any, text: str, seed: int, audio: Any = None, **kwargs: Any) -> Any:
    """What the library says."""
    extractor = DiaFeatureExtractor.from_pretrained(folder)
    processor = DiaProcessor(extractor, DiaTokenizer.from_pretrained(folder), codec)
    given = {} if audio is None else {"audio": audio}
    inputs = processor(text=[text], **given, sampling_rate=1600, **CODES)
    torch.manual_seed(seed)
    codes = model.generate(**inputs, **kwargs)
    prompt = {}
    if audio is not None:
        prompt["audio_prompt_len"] = processor.get_audio_prompt_len(inputs["decoder_attention_mask"], **CODES)
    return processor.batch_decode(codes, **prompt, **CODES)[0].numpy().reshape(-1)


def test_dia(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, codec = write_dia(tmp_path / "dia")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"encoder", "decoder", "codec"}
    model = runtime.load(folder)
    before = torch.get_rng_state()
    plain = model.generate("hello there", seed=1)
    likely = model.generate("[S2] hello", seed=1, temperature=0, max_tokens=12, guidance=2.0)
    assert torch.equal(before, torch.get_rng_state())
    for result, expected in (
        (plain, dia_says(folder, own, codec, "[S1] hello there", 1)),
        (
            likely,
            dia_says(folder, own, codec, "[S2] hello", 1, do_sample=False, max_new_tokens=12, guidance_scale=2.0),
        ),
    ):
        assert result.sample_rate == 1600 and result.audio.shape == (1, len(expected))
        assert numpy.abs(result.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    voice = (0.2 * numpy.sin(numpy.arange(80) / 3)).astype(numpy.float32)
    cloned = model.generate("hello", seed=2, voice=(voice, 1600), voice_text="so it goes")
    expected = dia_says(folder, own, codec, "[S1] so it goes [S1] hello", 2, voice)
    assert numpy.abs(cloned.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    for options, says in (
        ({"voice": (voice, 1600)}, "give both, or none"),
        ({"temperature": 0.5}, "temperature must be 0, or 1 at least"),
        ({"voice": (voice[:0], 1600), "voice_text": "a"}, "sample"),
        ({"voice": (numpy.zeros(900, numpy.float32), 1600), "voice_text": "a"}, "hears 0.16 s at most"),
        ({"voice": (voice, 1600), "voice_text": "a" * 1200}, "the model reads 1024"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate("hello", **options)  # type: ignore[arg-type]


def test_dia_goes_on_in_the_voice_of_its_first_piece(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own, codec = write_dia(tmp_path / "dia")
    one, two = "hello there " * 25 + "you.", "Again " * 30 + "me."
    events = list(runtime.load(folder).stream(f"{one} {two}", seed=4, pause=0.0))
    parts = [event.data.samples[0] for event in events if isinstance(event, kamado.Media) and event.is_part]
    whole = next(event.data for event in events if isinstance(event, kamado.Media) and not event.is_part)
    first = dia_says(folder, own, codec, f"[S1] {one}", 4).clip(-1, 1)
    assert len(parts) >= 2 and numpy.abs(parts[0] - first).max() < 1e-4
    assert whole.samples.shape[1] == sum(map(len, parts))


def test_csm(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_csm(tmp_path / "csm")
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"backbone", "depth", "codec"}
    processor = CsmProcessor.from_pretrained(folder)
    settings = folder / "processor_config.json"
    elsewhere = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(tmp_path / "elsewhere")}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"audio_tokenizer": elsewhere}))
    model = runtime.load(folder)  # nothing that the processor's settings name is loaded

    def said(text: str, seed: int, audio: Any = None, **kwargs: Any) -> Any:
        inputs = processor(text=text, audio=audio, add_special_tokens=False, return_tensors="pt")
        torch.manual_seed(seed)
        return own.generate(**inputs, output_audio=True, **kwargs)[0].numpy()

    before = torch.get_rng_state()
    plain = model.generate("hello", seed=1)
    other = model.generate("hello", seed=2, speaker=3, temperature=0, max_tokens=2)
    voice = (0.2 * numpy.sin(numpy.arange(4000) / 9)).astype(numpy.float32)
    cloned = model.generate("hello", seed=3, voice=(voice, 24_000), voice_text="so")
    assert torch.equal(before, torch.get_rng_state())
    greedy = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 2}
    for result, expected in (
        (plain, said("<s>[0]hello</s>", 1)),
        (cloned, said("<s>[0]so</s><|AUDIO|><|audio_eos|><s>[0]hello</s>", 3, [voice])),
        (other, said("<s>[3]hello</s>", 2, **greedy)),
    ):
        assert result.sample_rate == 24_000 and result.audio.shape == (1, len(expected))
        assert numpy.abs(result.audio[0] - expected.clip(-1, 1)).max() < 1e-4
    assert plain.recipe["options"]["prompt"] == "hello" and set(cloned.recipe["inputs"]) == {"voice"}


def test_csm_in_a_crowd(runtime: kamado.Runtime, tmp_path: Path) -> None:
    """What one request asks for is not left behind for others: the library keeps settings on the model."""
    model = runtime.load(write_csm(tmp_path / "csm")[0])
    requests: list[dict[str, Any]] = [{"prompt": "hello", "seed": seed} for seed in range(2)]
    requests.append({"prompt": "you", "seed": 1, "temperature": 0})
    alone = [model.generate(**request).audio for request in requests]
    crowd = model.generate_many([*requests, requests[0]])
    for one, many in zip([*alone, alone[0]], crowd, strict=True):
        assert one.shape == many.audio.shape and numpy.abs(one - many.audio).max() < 1e-4


@pytest.mark.parametrize("whole", [True, False])
def test_fastspeech2(runtime: kamado.Runtime, tmp_path: Path, whole: bool) -> None:
    folder, own = write_fastspeech2(tmp_path / "fast", whole=whole)
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"acoustic", "vocoder"}
    model = runtime.load(folder)
    tokens = torch.tensor([[2, 3, 4, 5, 10]])
    expected = own(tokens).waveform.detach().numpy()
    result = model.generate(phonemes="HH AH0 L OW1", seed=1)
    assert result.audio.shape == expected.shape and numpy.abs(result.audio - expected).max() < 1e-4
    slow = model.generate(phonemes="HH AH0 L OW1", seed=1, speed=0.5)
    assert slow.audio.shape[1] > 1.5 * result.audio.shape[1]
    assert numpy.array_equal(model.generate(phonemes="HH AH0 L OW1", seed=1).audio, result.audio)
    for options, says in (
        ({"prompt": "hello"}, "needs the package g2p-en"),
        ({"prompt": "a", "phonemes": "L"}, "not both"),
        ({"phonemes": "HH XX"}, "no phoneme 'XX'"),
        ({}, "give a FastSpeech2 speech model prompt or phonemes"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(**options)


def test_a_codec_that_is_missing(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _, _ = write_dia(tmp_path / "dia")
    (folder / "audio_tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(kamado.InvalidRequest, match="needs a component audio_tokenizer"):
        runtime.load(folder)
    model = runtime.load(folder, components={"audio_tokenizer": tmp_path / "elsewhere"})
    assert model.generate("hello", seed=1).audio.shape[0] == 1
