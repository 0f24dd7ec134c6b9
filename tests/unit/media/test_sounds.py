"""Sound files, opened again by soundfile, PyAV and the standard library."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.recipes import read_recipe
from kamado.media.sounds import MAX_CHANNELS, open_sound, save_sound
from kamado.media.videos import save_video
from kamado.media.waves import WavStream, quantized
from kamado.outputs import Audio
from media_outputs import clip, tone
from media_recipes import RECIPE, RECIPES

ALL = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("channels", [1, 2])
def test_another_program_reads_the_same_sound(tmp_path: Path, suffix: str, channels: int) -> None:
    audio, path = tone(1.0, 24000, channels), tmp_path / f"x{suffix}"
    save_sound(audio, path, RECIPE)
    samples, rate = soundfile.read(path, always_2d=True, dtype="float32")
    assert (rate, samples.shape[1]) == (24000, channels)
    assert abs(len(samples) - 24000) < 3000  # MP3 pads
    if suffix in (".wav", ".flac"):
        assert np.abs(samples.T - audio.samples).max() <= 0.5 / 32768
    elif suffix == ".ogg":
        assert np.abs(samples.T - audio.samples).mean() < 0.01
    spectrum = np.abs(np.fft.rfft(samples[:, 0]))
    assert abs(spectrum.argmax() * rate / len(samples) - 440) < 2
    assert read_recipe(path) == RECIPE
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.channels == channels
        assert sum(frame.samples for frame in container.decode(stream)) >= 23000


@pytest.mark.parametrize("suffix", ALL)
def test_the_same_sound_makes_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for path in paths:
        save_sound(tone(), path, RECIPE)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_standard_library_reads_a_wav_file(tmp_path: Path) -> None:
    save_sound(tone(0.25, 8000, 2), tmp_path / "x.wav", None)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert file.getparams()[:4] == (2, 2, 8000, 2000)


@pytest.mark.parametrize(
    ("suffix", "encoding", "subtype", "error"),
    [(".wav", "pcm24", "PCM_24", 2**-24), (".wav", "float", "FLOAT", 0), (".flac", "pcm24", "PCM_24", 2**-24)],
)
def test_finer_encodings(tmp_path: Path, suffix: str, encoding: Any, subtype: str, error: float) -> None:
    audio = tone(0.1, 48000, 3)
    save_sound(audio, tmp_path / f"x{suffix}", RECIPE, encoding=encoding)
    assert soundfile.info(tmp_path / f"x{suffix}").subtype == subtype
    samples, _ = soundfile.read(tmp_path / f"x{suffix}", dtype="float32")
    assert np.abs(samples.T - audio.samples).max() <= error
    assert read_recipe(tmp_path / f"x{suffix}") == RECIPE


def test_an_encoding_that_the_format_has_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"a \.ogg file has no encoding 'float'"):
        save_sound(tone(), tmp_path / "x.ogg", None, encoding="float")
    with pytest.raises(InvalidRequest, match="'pcm8' is no encoding"):
        save_sound(tone(), tmp_path / "x.wav", None, encoding="pcm8")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_too_loud_is_clipped(tmp_path: Path) -> None:
    save_sound(Audio(samples=np.array([[2.0, -3.0, 1.0, 0.0]], np.float32), sample_rate=8000), tmp_path / "x.wav", None)
    numbers, _ = soundfile.read(tmp_path / "x.wav", dtype="int16")
    assert numbers.tolist() == [32767, -32768, 32767, 0]


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_sound_fails_and_leaves_nothing(tmp_path: Path, suffix: str, value: float) -> None:
    audio = Audio(samples=np.array([[0.0] * 99 + [value]], np.float32), sample_rate=16000)
    with pytest.raises(GenerationFailed, match="NaN or infinity"):
        save_sound(audio, tmp_path / f"x{suffix}", None)
    with pytest.raises(GenerationFailed, match="no samples"):
        save_sound(Audio(samples=np.zeros((1, 0), np.float32), sample_rate=16000), tmp_path / f"x{suffix}", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".opus", ".mp3"])
def test_rates_that_a_format_has_not_are_resampled(tmp_path: Path, suffix: str) -> None:
    save_sound(tone(1.0, 22051), tmp_path / f"x{suffix}", None)
    assert soundfile.info(tmp_path / f"x{suffix}").samplerate == 24000


def test_a_long_recipe(tmp_path: Path) -> None:
    recipe = {"options": {"prompt": "\u00e4\u65e5\U0001d11e  \n" * 60_000}}
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        save_sound(tone(), tmp_path / f"x{suffix}", recipe)
        assert read_recipe(tmp_path / f"x{suffix}") == recipe
        assert soundfile.info(tmp_path / f"x{suffix}").samplerate == 16000
    with pytest.raises(InvalidRequest, match=r"an Opus file holds at most .* save it as \.ogg or \.flac"):
        save_sound(tone(), tmp_path / "x.opus", recipe)
    with av.open(str(tmp_path / "x.wav")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 8000


@given(recipe=RECIPES)
def test_any_recipe_survives(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> None:
    for suffix in (".wav", ".flac", ".mp3"):
        path = tmp_path_factory.getbasetemp() / f"recipe{suffix}"
        save_sound(tone(0.01), path, recipe)
        assert read_recipe(path) == recipe


@given(
    numbers=arrays.arrays(np.int16, st.tuples(st.integers(1, 4), st.integers(1, 40))),
    rate=st.sampled_from([8000, 16000, 44100]),
)
def test_16_bits_come_back_as_they_were(numbers: Any, rate: int) -> None:
    audio = open_sound((numbers, rate))
    assert np.array_equal(quantized(audio.samples, "pcm16"), numbers)
    out = io.BytesIO()
    with WavStream(out, sample_rate=rate, channels=len(numbers)) as stream:
        for begin in range(0, numbers.shape[1], 7):
            stream.write(audio.samples[:, begin : begin + 7])
    again = open_sound(out.getvalue())
    assert again.sample_rate == rate
    assert np.array_equal(again.samples, audio.samples)


class _Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_a_stream_that_cannot_go_back_says_that_its_size_is_unknown() -> None:
    pipe = _Pipe()
    stream = WavStream(pipe, sample_rate=16000)
    assert len(pipe.getvalue()) == 44
    stream.write(tone(0.1).samples[0])
    stream.close(RECIPE)
    stream.close()
    data = pipe.getvalue()
    assert data[40:44] == b"\xff\xff\xff\xff"
    with av.open(io.BytesIO(data[: 44 + 3200])) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 1600
    assert open_sound(data[: 44 + 3200]).samples.shape == (1, 1600)


@pytest.mark.parametrize("encoding", ["pcm16", "pcm24", "float"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_right(encoding: Any, channels: int) -> None:
    out = io.BytesIO(b"before")
    out.seek(6)
    with WavStream(out, sample_rate=16000, channels=channels, encoding=encoding) as stream:
        for _ in range(3):
            stream.write(tone(0.0101, channels=channels).samples)
        with pytest.raises(InvalidRequest, match="samples must be"):
            stream.write(np.zeros((channels + 1, 2), np.float32))
        stream.close({"a": 1})
    data = out.getvalue()[6:]
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    sound = soundfile.SoundFile(io.BytesIO(data))
    assert (sound.frames, sound.channels, sound.comment) == (3 * 162, channels, 'kamado:{"a":1}')


@pytest.mark.parametrize(
    "audio",
    [
        Audio(samples=np.zeros((1, 10), np.float32), sample_rate=0),
        Audio(samples=np.zeros((1, 10), np.float32), sample_rate=-5),
        Audio(samples=np.zeros((1, 10), np.float32), sample_rate=10**9),
    ],
)
def test_impossible_rates(tmp_path: Path, audio: Audio) -> None:
    with pytest.raises(InvalidRequest, match="Hz"):
        save_sound(audio, tmp_path / "x.wav", None)
    with pytest.raises(InvalidRequest, match="Hz"):
        open_sound(audio)
    assert list(tmp_path.iterdir()) == []


def test_open_takes_what_a_caller_has() -> None:
    audio = tone(0.1, 16000, 2)
    assert open_sound(audio).samples.tolist() == audio.samples.tolist()
    assert open_sound((audio.samples[0], 16000)).samples.shape == (1, 1600)
    assert open_sound((np.array([0, 255], np.uint8), 8000)).samples.tolist() == [[-1.0, 127 / 128]]
    assert open_sound((np.array([-(2**31), 2**30], np.int32), 8000)).samples.tolist() == [[-1.0, 0.5]]
    import torch

    assert open_sound((torch.zeros(2, 5), 16000)).samples.shape == (2, 5)
    mono = open_sound(audio, channels=1)
    assert np.allclose(mono.samples[0], audio.samples.mean(axis=0))
    assert open_sound(mono, channels=2).samples.shape == (2, 1600)
    slow = open_sound(audio, rate=8000, channels=1)
    assert (slow.sample_rate, slow.samples.shape, slow.samples.dtype) == (8000, (1, 800), np.float32)


def test_the_sound_of_a_video(tmp_path: Path) -> None:
    save_video(clip(audio=tone(1.0, 44100, 2)), tmp_path / "x.mp4", None)
    audio = open_sound(tmp_path / "x.mp4", rate=16000, channels=1)
    assert abs(audio.samples.shape[1] - 16000) < 1200
    save_video(clip(), tmp_path / "silent.mp4", None)
    with pytest.raises(InvalidRequest, match=r"silent\.mp4 has no track of sound"):
        open_sound(tmp_path / "silent.mp4")


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda tmp: _write(tmp / "x.wav", b""), r"x\.wav is an empty file"),
        (
            lambda tmp: _write(tmp / "x.wav", b"Hello, this is text.\n" * 9),
            r"x\.wav is no sound of a kind that is read",
        ),
        (lambda tmp: _write(tmp / "x.mp4", b"\0\0\0\x18ftypisom" + b"junk" * 9), r"x\.mp4 is damaged, or no sound"),
        (lambda tmp: tmp, "is no file"),
        (lambda tmp: tmp / "none.wav", "does not exist"),
        (lambda tmp: "https://example.org/x.wav", "no sound is ever fetched"),
        (lambda tmp: "data:audio/wav,xx", "data:audio/wav;base64"),
        (lambda tmp: (np.zeros(10), 0), "0 Hz"),
        (lambda tmp: (np.zeros(10), float("nan")), "must be an array and a number"),
        (lambda tmp: (np.zeros(10), 16000.5), "whole number of Hz"),
        (lambda tmp: (np.zeros(0), 16000), "is empty: it has no samples"),
        (lambda tmp: (np.zeros((1, 0)), 16000), "is empty: it has no samples"),
        (lambda tmp: (np.zeros((0, 5)), 16000), "0 channels"),
        (lambda tmp: (np.zeros((16000, 2)), 16000), r"16000 channels; .* samples are \[channels, samples\]"),
        (lambda tmp: (np.full(9, np.nan), 16000), "NaN"),
        (lambda tmp: (np.full(9, 3000.0), 16000), r"must lie in \[-1, 1\]"),
        (lambda tmp: (np.zeros(9, complex), 16000), "samples must be"),
        (lambda tmp: (np.zeros(9, np.uint16), 16000), "samples may be"),
        (lambda tmp: (np.zeros((1, 2, 3)), 16000), "samples must be"),
        (lambda tmp: np.zeros(9), "give \\(samples, sample rate\\)"),
        (lambda tmp: 7, "not int"),
        (lambda tmp: None, "not NoneType"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        open_sound(source(tmp_path))
    assert "\n" not in str(error.value)


def test_a_long_sound_is_not_blown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.media.sounds.MAX_VALUES", 40_000)
    sound = (np.zeros(2000, np.float32), 1000)
    assert open_sound(sound, rate=16_000).samples.shape == (1, 32_000)
    with pytest.raises(InvalidRequest, match="too long to be brought from 1000 Hz to 44100 Hz"):
        open_sound(sound, rate=44_100)


def test_channels_and_rates_that_cannot_be() -> None:
    with pytest.raises(InvalidRequest, match="3 channels, and 2 are needed"):
        open_sound(tone(channels=3), channels=2)
    with pytest.raises(InvalidRequest, match=f"1 to {MAX_CHANNELS}"):
        open_sound(tone(), channels=0)
    with pytest.raises(InvalidRequest, match="0 Hz"):
        open_sound(tone(), rate=0)


@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"RIFF\0\1\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3\4"]))
def test_damaged_files_are_refused_in_one_line(data: bytes, head: bytes) -> None:
    try:
        open_sound(head + data)
    except InvalidRequest as error:
        assert "\n" not in str(error)


@given(cut=st.integers(0, 4000), flip=st.integers(0, 4000), suffix=st.sampled_from([".wav", ".flac", ".ogg"]))
def test_cut_and_changed_files(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"whole{suffix}"
    if not path.exists():
        save_sound(tone(0.2), path, RECIPE)
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 0x55
    path.with_name(f"changed{suffix}").write_bytes(data[: len(data) - cut])
    for use in (open_sound, read_recipe):
        try:
            use(path.with_name(f"changed{suffix}"))
        except InvalidRequest as error:
            assert "\n" not in str(error)
