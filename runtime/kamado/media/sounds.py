"""Sound files: saved with their recipe, read from strangers. libsndfile does the formats, soxr other rates."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import GenerationFailed, InvalidRequest, KamadoError
from ..files import replacing
from ..outputs import Audio
from ..units import format_bytes
from .ogg import with_fixed_serial
from .opening import check_target, library, opened_source, shown
from .tags import tagged, untagged
from .waves import Encoding, WavStream, quantized, wav_comment

if TYPE_CHECKING:
    from numpy.typing import NDArray

WRITE_FORMATS: Mapping[str, tuple[str, str]] = {
    # suffix: libsndfile's format and how samples are encoded, where there is no choice
    ".wav": ("WAV", ""),
    ".flac": ("FLAC", ""),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
READ_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")
MAX_FILE_BYTES = 1 << 32
MAX_SECONDS = 12 * 3600
MAX_VALUES = 1 << 29
"""Samples of all channels together, of a sound that is read: 2 GiB of float32, nine hours of one channel at 16 kHz."""
MIN_RATE, MAX_RATE = 1000, 768_000
MAX_CHANNELS = 32
_RATES = {
    # what a format has no other rates than; sound of another one is resampled to the next above
    ".opus": (8000, 12000, 16000, 24000, 48000),
    ".mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
_MAX_OPUS_RECIPE_BYTES = 50_000
"""Readers of Opus files give up where comments need more than a page."""
_LOUDEST = 4.0
"""Floats may pass 1 by as much as rounding, filters and limiters do; what is louder is of another range."""
_BLOCK = 1 << 18
_INSTALL = "pip install soundfile soxr"


def check_sound_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a path to save sound to, in lower case. Raises InvalidRequest; worth asking before it is made."""
    return check_target(path, WRITE_FORMATS, "sound")


def save_sound(
    audio: Audio, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None, *, encoding: Encoding = "pcm16"
) -> None:
    """Write `audio` to `path` (.wav, .flac, .ogg with Vorbis, .opus, .mp3), whole or not at all, with the recipe in its
    comment; a file that is there is replaced. The same sound makes the same bytes.

    `encoding`: 16 or 24 bits (WAV, FLAC) or "float" (WAV). What leaves [-1, 1] is clipped; rates that Opus and MP3 do
    not have are resampled. Raises GenerationFailed for NaN, infinity or no samples, InvalidRequest for a path that
    cannot be written or what the format cannot hold, OSError when the disk fails.
    """
    suffix = check_sound_path(path)
    samples, rate = _checked(audio.samples, audio.sample_rate)
    try:
        with replacing(Path(path)) as file:
            if suffix == ".wav":
                with WavStream(file, sample_rate=rate, channels=len(samples), encoding=encoding) as stream:
                    for begin in range(0, samples.shape[1], _BLOCK):
                        stream.write(samples[:, begin : begin + _BLOCK])
                    stream.close(recipe)
            else:
                file.write(_encoded(samples, rate, suffix, recipe, encoding))
    except (PermissionError, ValueError) as error:
        raise InvalidRequest(f"{shown(path)} cannot be written: {error}") from error


def open_sound(source: Any, rate: int | None = None, channels: int | None = None) -> Audio:
    """Sound from a path, the bytes of a file, a `data:` URL, an Audio, or (samples, sample rate).

    Samples are `[samples]` or `[channels, samples]`: floats in [-1, 1], or int16, int32, uint8 as files have them; a
    tensor will do. `rate` resamples (soxr, HQ); `channels=1` is the mean of all, and one channel becomes several alike.
    Files of video give their sound track where PyAV is there. The result lies in [-1, 1]. Raises InvalidRequest, also
    over MAX_SECONDS or MAX_VALUES. Nothing is ever fetched from a network.
    """
    if rate is not None:
        _check_rate(rate, "the sound asked for")
    if channels is not None and not 1 <= channels <= MAX_CHANNELS:
        raise InvalidRequest(f"channels must be from 1 to {MAX_CHANNELS}, not {channels}")
    with opened_source(source, "sound", "sounds", MAX_FILE_BYTES) as opened:
        samples, found, name = _given(source) if opened is None else (*_read(*opened), opened[1])
    _check_values(samples, found, name)
    samples = _with_channels(samples, channels, name)
    if rate is not None:
        if samples.size * rate > MAX_VALUES * found:
            raise InvalidRequest(f"{name} is too long to be brought from {found} Hz to {rate} Hz; cut it")
        samples = resampled(samples, found, rate)
    return Audio(samples=samples.clip(-1, 1), sample_rate=found if rate is None else rate)


def resampled(samples: NDArray[Any], rate: int, new_rate: int) -> NDArray[Any]:
    """float32 `[channels, samples]` at another rate: soxr, HQ."""
    import numpy as np

    if rate == new_rate:
        return samples
    soxr = library("soxr", "resampling sound", _INSTALL)
    return np.ascontiguousarray(soxr.resample(np.ascontiguousarray(samples.T), rate, new_rate, "HQ").T, np.float32)


def read_sound_recipe(file: BinaryIO, name: str) -> str | None:
    """The JSON text of the recipe in a file of sound; None if there is none. Raises InvalidRequest for another file."""
    comment = wav_comment(file)
    if comment is not None:
        return comment
    file.seek(0)
    with _sound_file(file, name) as sound:
        return untagged(sound.comment)


def _encoded(
    samples: NDArray[Any], rate: int, suffix: str, recipe: Mapping[str, Any] | None, encoding: Encoding
) -> bytes:
    soundfile = library("soundfile", f"a {suffix} file", _INSTALL)
    file_format, subtype = WRITE_FORMATS[suffix]
    if suffix == ".flac" and encoding != "float":
        subtype = {"pcm16": "PCM_16", "pcm24": "PCM_24"}[encoding]
    elif encoding != "pcm16":
        raise InvalidRequest(f"a {suffix} file has no encoding {encoding!r}; save it as .wav")
    comment = "" if recipe is None else tagged(recipe)
    if suffix == ".opus" and len(comment) > _MAX_OPUS_RECIPE_BYTES:
        raise InvalidRequest(
            f"an Opus file holds at most {format_bytes(_MAX_OPUS_RECIPE_BYTES)} of a recipe, and this one takes "
            f"{format_bytes(len(comment))}; save it as .ogg or .flac"
        )
    samples = quantized(samples, "float")
    rates = _RATES.get(suffix, (rate,))
    new_rate = next((each for each in rates if each >= rate), rates[-1])
    samples = resampled(samples, rate, new_rate)
    numbers = (quantized(samples, encoding) if suffix == ".flac" else samples.clip(-1, 1)).T
    out = io.BytesIO()
    try:
        with soundfile.SoundFile(out, "w", new_rate, numbers.shape[1], subtype, format=file_format) as sound:
            if comment:
                sound.comment = comment
            for begin in range(0, len(numbers), _BLOCK):  # libsndfile's Vorbis fails over very long ones
                sound.write(numbers[begin : begin + _BLOCK])
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        raise InvalidRequest(
            f"sound of {len(samples)} channels at {rate} Hz cannot be written as {suffix}: {error}; save it as .wav"
        ) from error
    return with_fixed_serial(out.getvalue()) if file_format == "OGG" else out.getvalue()


def _sound_file(file: BinaryIO, name: str) -> Any:
    soundfile = library("soundfile", "reading sound", _INSTALL)
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, ValueError, TypeError, OSError) as error:
        raise InvalidRequest(
            f"{name} is no sound of a kind that is read (WAV, FLAC, Ogg, MP3, AIFF, AU, CAF), or is damaged"
        ) from error
    if sound.format not in READ_FORMATS:
        raise InvalidRequest(f"{name} is a {sound.format} file, which is not read; save it as WAV or FLAC")
    return sound


def _read(file: BinaryIO, name: str) -> tuple[NDArray[Any], int]:
    import numpy as np

    head = file.read(16)
    file.seek(0)
    if not head:
        raise InvalidRequest(f"{name} is an empty file; it should hold sound")
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
        from .tracks import read_track

        return read_track(file, name, limit=MAX_VALUES)
    with _sound_file(file, name) as sound:
        rate, channels = sound.samplerate, sound.channels
        _check_shape(channels, 0, rate, name)
        blocks: list[NDArray[Any]] = []
        total = 0
        try:
            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                total += len(block)
                _check_shape(channels, total, rate, name)
                blocks.append(block)
        except KamadoError:
            raise
        except (RuntimeError, OSError, ValueError) as error:
            raise InvalidRequest(f"{name} is damaged: {error}") from error
    return (np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32)).T.copy(), rate


def _given(source: Any) -> tuple[NDArray[Any], int, str]:
    """Samples as float32 [channels, samples] that the caller has in memory."""
    import numpy as np

    if isinstance(source, Audio):
        return np.asarray(source.samples, np.float32), source.sample_rate, "the sound"
    if not isinstance(source, (tuple, list)) or len(source) != 2 or isinstance(source[1], (str, bytes)):
        if hasattr(source, "__array__"):
            raise InvalidRequest("samples alone do not say how fast they are; give (samples, sample rate)")
        raise InvalidRequest(
            f"a sound must be a path, bytes, a data URL or (samples, sample rate), not {type(source).__name__}"
        )
    values, rate = source
    try:
        array = np.asarray(values)
        whole = int(rate)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidRequest(f"(samples, sample rate) must be an array and a number: {error}") from error
    if whole != rate:
        raise InvalidRequest(f"a sample rate is a whole number of Hz, not {rate!r}")
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise InvalidRequest(
            f"samples must be [samples] or [channels, samples] of float, int16, int32 or uint8, not "
            f"{list(array.shape)} of {array.dtype}"
        )
    two = np.atleast_2d(array)
    if two.dtype.kind == "f":
        return two.astype(np.float32), whole, "the sound"
    if two.dtype == np.uint8:
        return (two.astype(np.float32) - 128) / 128, whole, "the sound"
    if two.dtype not in (np.int16, np.int32):
        raise InvalidRequest(f"samples may be float, int16, int32 or uint8, not {two.dtype}; convert them")
    full = -float(np.iinfo(two.dtype).min)
    return np.asarray(two / full, np.float32), whole, "the sound"


def _checked(samples: NDArray[Any], rate: int) -> tuple[NDArray[Any], int]:
    """What a model made, before it is written."""
    if samples.ndim != 2 or samples.size == 0:
        raise GenerationFailed(f"the sound has no samples ({list(samples.shape)}), so there is nothing to write")
    _check_rate(int(rate), "the sound")
    return samples, int(rate)


def _check_rate(rate: int, name: str) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidRequest(f"{name} has {rate} Hz; sample rates are from {MIN_RATE} to {MAX_RATE} Hz")


def _check_shape(channels: int, samples: int, rate: int, name: str) -> None:
    _check_rate(rate, name)
    if not 1 <= channels <= MAX_CHANNELS:
        hint = "; samples are [channels, samples]" if channels else ""
        raise InvalidRequest(f"{name} has {channels} channels; sounds of 1 to {MAX_CHANNELS} are read{hint}")
    if samples > MAX_SECONDS * rate or samples * channels > MAX_VALUES:
        hours = min(MAX_SECONDS, MAX_VALUES / channels / rate) / 3600
        raise InvalidRequest(f"{name} is longer than {hours:.1f} hours, the most that is read of its kind; cut it")


def _check_values(samples: NDArray[Any], rate: int, name: str) -> None:
    _check_shape(len(samples), samples.shape[1], rate, name)
    if samples.shape[1] == 0:
        raise InvalidRequest(f"{name} is empty: it has no samples")
    low, high = float(samples.min()), float(samples.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidRequest(f"{name} holds NaN or infinity")
    if max(-low, high) > _LOUDEST:
        raise InvalidRequest(f"{name} must lie in [-1, 1]; it has {low:g} to {high:g}; divide it by its range")


def _with_channels(samples: NDArray[Any], channels: int | None, name: str) -> NDArray[Any]:
    import numpy as np

    if channels in (None, len(samples)):
        return samples
    if channels == 1:
        return np.asarray(samples.mean(axis=0, keepdims=True, dtype=np.float32))
    if len(samples) == 1:
        return np.repeat(samples, channels or 1, axis=0)
    raise InvalidRequest(f"{name} has {len(samples)} channels, and {channels} are needed; mix it first")
