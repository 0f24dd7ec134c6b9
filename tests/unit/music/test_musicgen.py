"""MusicGen, equal to the library's own `generate`."""

from __future__ import annotations

import importlib.util
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
import transformers
from transformers import AutoTokenizer
from transformers.audio_utils import chroma_filter_bank

import kamado
from kamado.media.notes import save_score
from kamado.media.synth import sound_of
from kamado.outputs import Note, Score
from kamado_models.music.chroma import Chroma

from .tiny_music import RATE, write_musicgen


def made(model: Any, folder: Path, prompt: str, seed: int, **kwargs: Any) -> numpy.ndarray:
    """What the library makes."""
    torch.manual_seed(seed)
    if not prompt:
        inputs = dict(model.get_unconditional_inputs(1))
    else:
        inputs = dict(AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
    return model.generate(**{**inputs, **kwargs})[0].numpy()


def tone(seconds: float, hz: float = 110.0, rate: int = RATE) -> numpy.ndarray:
    return (0.3 * numpy.sin(2 * numpy.pi * hz * numpy.arange(round(seconds * rate)) / rate)).astype(numpy.float32)


@pytest.mark.parametrize("channels", [1, 2])
def test_it_makes_what_the_library_makes(runtime: kamado.Runtime, tmp_path: Path, channels: int) -> None:
    folder, own = write_musicgen(tmp_path / "music", channels=channels)
    plan = runtime.plan(folder)
    assert {lane.lane for lane in plan.lanes} == {"text_encoder", "decoder", "codec"}
    model = runtime.load(folder)
    assert (model.tasks, model.capabilities) == (("text-to-audio",), ("audio",))
    before = torch.get_rng_state()
    plain = model.generate("a slow tune", seconds=0.2, seed=3)
    tuned = model.generate("a fast tune", seconds=0.1, seed=4, guidance=1.5, temperature=0.8, top_k=7)
    free = model.generate(seconds=0.1, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    for result, expected in (
        (plain, made(own, folder, "a slow tune", 3, max_new_tokens=23)),
        (tuned, made(own, folder, "a fast tune", 4, max_new_tokens=13, guidance_scale=1.5, temperature=0.8, top_k=7)),
        (free, made(own, folder, "", 5, max_new_tokens=13)),
    ):
        assert result.sample_rate == RATE and result.audio.shape == expected.shape
        assert numpy.abs(result.audio - expected.clip(-1, 1)).max() < 1e-4
    assert plain.audio.shape == (channels, 320) and tuned.audio.shape == (channels, 160)


def test_it_goes_on_from_audio(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_musicgen(tmp_path / "music")
    model = runtime.load(folder)
    given = tone(0.1)
    result = model.generate("a tune", audio=(given, RATE), seconds=0.1, seed=1)
    values = torch.from_numpy(given)[None, None]
    expected = made(own, folder, "a tune", 1, input_values=values, max_new_tokens=13)
    assert result.audio.shape == (1, 320) == expected.shape
    assert numpy.abs(result.audio - expected.clip(-1, 1)).max() < 1e-4
    assert set(result.recipe["inputs"]["audio"]) == {"sha256"}
    soundfile.write(tmp_path / "given.wav", numpy.stack([given, given], axis=1), RATE, subtype="FLOAT")
    again = model.generate("a tune", audio=tmp_path / "given.wav", seconds=0.1, seed=1)
    assert numpy.abs(again.audio - result.audio).max() < 1e-4


def test_melody(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_musicgen(tmp_path / "music", melody=True)
    model = runtime.load(folder)
    expected = made(own, folder, "a tune", 2, max_new_tokens=13)
    assert numpy.abs(model.generate("a tune", seconds=0.1, seed=2).audio - expected.clip(-1, 1)).max() < 1e-4
    sung = tone(1.5, 440.0, 32_000)
    features = Chroma().features(torch.from_numpy(sung)[None])
    expected = made(own, folder, "a tune", 2, max_new_tokens=13, input_features=features)
    result = model.generate("a tune", melody=(sung, 32_000), seconds=0.1, seed=2)
    assert numpy.abs(result.audio - expected.clip(-1, 1)).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match="takes no audio"):
        model.generate("a tune", audio=(sung, 32_000))


def test_chroma_is_that_of_the_library(tmp_path: Path) -> None:
    """Its extractor, with a spectrogram in place of torchaudio's."""
    folder = Path(transformers.__file__).parent / "models" / "musicgen_melody"
    name = "transformers.models.musicgen_melody.extractor"  # transformers hides it where torchaudio is missing
    spec = importlib.util.spec_from_file_location(name, folder / "feature_extraction_musicgen_melody.py")
    assert spec is not None and spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    chroma = Chroma(rate=8000, window=1024, hop=256, seconds=2)
    extractor = object.__new__(library.MusicgenMelodyFeatureExtractor)
    bank = chroma_filter_bank(sampling_rate=8000, num_frequency_bins=1024, tuning=0, num_chroma=12)
    extractor.n_fft, extractor.chroma_filters = 1024, torch.from_numpy(bank).float()
    window = torch.hann_window(1024)
    extractor.spectrogram = lambda wave: torch.stft(wave, 1024, 256, window=window, return_complex=True).abs() ** 2
    notes = numpy.concatenate([tone(0.3, hz, 8000) for hz in (261.63, 440.0, 329.63)])
    found = chroma.features(torch.from_numpy(notes)[None])
    assert torch.equal(found, extractor._torch_extract_fbank_features(torch.from_numpy(notes)[None]))
    heard = found[0].argmax(-1).tolist()
    assert [heard[3], heard[14], heard[-4]] == [0, 9, 4]  # C, A, E


def test_bad_requests(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_musicgen(tmp_path / "music")
    model = runtime.load(folder)
    for options, says in (
        ({"seconds": 5.0}, "makes at most 1 seconds at once, not 5"),
        ({"guidance": 2.0}, "guidance is towards a prompt"),
        ({"prompt": "a", "audio": (numpy.zeros(0, numpy.float32), RATE)}, "sample"),
        ({"prompt": "a", "audio": (tone(0.1), 0)}, "Hz|rate"),
        ({"prompt": "a", "voice": "bob"}, "takes no voice"),
        ({"prompt": "a", "audio": [(tone(0.1), RATE)] * 2}, "must be one sound"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(**options)  # type: ignore[arg-type]
    with pytest.raises(kamado.ContextOverflow, match="more than the 1 s"):
        model.generate("a", audio=(tone(0.5), RATE), seconds=0.9)


def test_in_a_crowd_cancelled_and_gone(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_musicgen(tmp_path / "music")[0])
    requests = [{"prompt": "a fast tune", "seed": seed, "seconds": 0.1} for seed in range(3)]
    alone = [model.generate(**request).audio for request in requests]
    crowd = model.generate_many(requests)
    for one, many in zip(alone, crowd, strict=True):
        assert numpy.abs(one - many.audio).max() < 1e-4
    job = model.submit("a", seconds=1.0, seed=1)
    steps = []
    for event in job.events():
        if isinstance(event, kamado.Progress):
            steps.append((event.step, event.total))
            job.cancel()
    assert steps[0] == (1, 103)
    with pytest.raises(kamado.Cancelled):
        job.result()
    model.unload()
    assert runtime.stats()["held_bytes"] == 0


TUNE = Score(notes=tuple(Note(start_s=each / 20, duration_s=0.05, pitch=45 + each) for each in (0, 2)))


@pytest.mark.parametrize("channels", [1, 2])
def test_it_goes_on_from_notes(runtime: kamado.Runtime, tmp_path: Path, channels: int) -> None:
    folder, own = write_musicgen(tmp_path / "music", channels=channels)
    save_score(TUNE, tmp_path / "tune.mid", None)
    sound = sound_of(TUNE, RATE, longest_s=1.0).samples
    assert sound.shape == (1, round(0.15 * RATE))
    values = torch.from_numpy(numpy.repeat(sound, channels, axis=0))[None]
    expected = made(own, folder, "a tune", 1, input_values=values, max_new_tokens=13).clip(-1, 1)
    model = runtime.load(folder)
    request = {"prompt": "a tune", "notes": tmp_path / "tune.mid", "seconds": 0.1, "seed": 1}
    alone, *crowd = [
        model.generate(**request),
        *model.generate_many([request, {**request, "notes": TUNE}, {"seed": 3}]),
    ]
    for result in (alone, *crowd[:2]):
        assert result.audio.shape == (channels, 400) and numpy.abs(result.audio - expected[:, :400]).max() < 1e-4
    assert set(alone.recipe["inputs"]["notes"]) == {"sha256"} and "notes" not in alone.recipe["options"]
    if channels == 1:  # the random codec of two hears no difference
        other = Score(notes=tuple(replace(note, pitch=note.pitch + 15) for note in TUNE.notes))
        assert numpy.abs(model.generate(**{**request, "notes": other}).audio - alone.audio).max() > 1e-3
    with pytest.raises(kamado.InvalidRequest, match="give notes or audio, not both"):
        model.generate(**request, audio=(tone(0.1), RATE))
    with pytest.raises(kamado.ContextOverflow, match=r"0\.1 s after 8\.64e\+04 s of audio are more than the 1 s"):
        model.generate(**{**request, "notes": Score(notes=(Note(start_s=0, duration_s=86_400, pitch=60),))})


def test_a_melody_of_notes(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_musicgen(tmp_path / "music", melody=True)
    drum = Note(start_s=0.5, duration_s=0.2, pitch=38, is_drum=True)
    notes = tuple(Note(start_s=each, duration_s=1.0, pitch=pitch) for each, pitch in enumerate((60, 69, 64)))
    sound = sound_of(Score(notes=notes), 32_000, longest_s=30.0).samples
    features = Chroma().features(torch.from_numpy(sound))
    heard = features[0].argmax(-1).tolist()
    assert [heard[4], heard[12], heard[20]] == [0, 9, 4]  # C, A, E
    expected = made(own, folder, "a tune", 2, max_new_tokens=13, input_features=features)
    model = runtime.load(folder)
    result = model.generate("a tune", notes=Score(notes=(*notes, drum)), seconds=0.1, seed=2)
    assert numpy.abs(result.audio - expected.clip(-1, 1)).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match="drums have no melody"):
        model.generate("a tune", notes=Score(notes=(drum,)))
    with pytest.raises(kamado.InvalidRequest, match="a melody is set to music as a prompt says"):
        model.generate(notes=Score(notes=notes))
    with pytest.raises(kamado.InvalidRequest, match="give notes or melody, not both"):
        model.generate("a tune", notes=Score(notes=notes), melody=(tone(0.1), RATE))


def test_the_library_has_nothing_to_say(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_musicgen(tmp_path / "music")
    melody, _ = write_musicgen(tmp_path / "melody", melody=True)
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(listener)
    try:
        runtime.load(folder).generate("a tune", seconds=0.1)
        runtime.load(melody).generate("a tune", seconds=0.1)
    finally:
        logger.removeHandler(listener)
    assert said == []
    with pytest.raises(kamado.InvalidRequest, match="a melody is set to music as a prompt says; give one"):
        runtime.load(melody).generate(seconds=0.1)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_codec_of_another_number_of_codebooks(runtime: kamado.Runtime, tmp_path: Path, channels: int) -> None:
    """transformers fails of shapes, when all is computed. What does not need the codec's other half works there."""
    few, _ = write_musicgen(tmp_path / "few", books=8, channels=channels)
    with pytest.raises(kamado.UnsupportedCheckpoint, match="decoder writes 8 codebooks, and its codec has 4"):
        runtime.plan(few)
    many, own = write_musicgen(tmp_path / "many", books=2, channels=channels)
    sound = (numpy.tile(tone(0.5), (channels, 1)), RATE)
    with pytest.raises(kamado.InvalidRequest, match="hears it as 4 codebooks, and its decoder reads 2"):
        runtime.load(many, request={"prompt": "a drum", "audio": sound})
    heard = runtime.load(many).generate("a drum", seconds=0.2, seed=3, guidance=1.0).audio
    assert heard.shape[0] == channels and numpy.isfinite(heard).all()
    with pytest.raises(RuntimeError, match="shape"):
        made(own, many, "a drum", 3, input_values=torch.from_numpy(sound[0])[None], max_new_tokens=8)


@pytest.mark.parametrize("width", ["NaN", "Infinity", "-1", "0", '"a"', str(10**400)])
def test_bandwidths_that_are_none(runtime: kamado.Runtime, tmp_path: Path, width: str) -> None:
    folder, _ = write_musicgen(tmp_path / "music")
    config = folder / "config.json"
    config.write_text(re.sub(r'("target_bandwidths": \[)[^]]*', rf"\g<1>1.6, {width}", config.read_text()))
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"target_bandwidths of|config\.json"):
        runtime.plan(folder)
