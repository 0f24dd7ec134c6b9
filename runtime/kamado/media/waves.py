"""WAV files, written as the samples come: RIFF as Microsoft and IBM describe it (WAVE_FORMAT_EXTENSIBLE above two
channels).

The recipe lies in the comment (`ICMT`) of a LIST/INFO chunk behind the samples, since it may be complete only when they
are. No time of day is written: the same samples make the same file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from ..errors import GenerationFailed, InvalidRequest
from ..units import format_bytes
from .tags import tagged, untagged

if TYPE_CHECKING:
    from numpy.typing import NDArray

Encoding = Literal["pcm16", "pcm24", "float"]
ENCODINGS: Mapping[str, tuple[int, int]] = {"pcm16": (1, 16), "pcm24": (1, 24), "float": (3, 32)}
"""Format tag, and bits of a sample."""
MAX_WAV_BYTES = (1 << 32) - 1
_UNKNOWN = 0xFFFFFFFF
"""The size in the header of a stream whose end is not known; players read on."""
_MAX_COMMENT_BYTES = 16 << 20
_EXTENSIBLE = 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def quantized(samples: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """Floats as the numbers of a file: int16, int32 with 24 bits that count (the upper ones), or float32.

    What is outside of [-1, 1] is clipped. A sample that was read as number / 32768 becomes that number again. Raises
    GenerationFailed for NaN and infinity.
    """
    import numpy as np

    if not np.isfinite(samples).all():
        raise GenerationFailed("the sound holds NaN or infinity, so it cannot be written")
    clipped = samples.clip(-1, 1)
    if encoding == "float":
        return clipped.astype(np.float32)
    full = 1 << (ENCODINGS[encoding][1] - 1)
    numbers = np.rint(clipped.astype(np.float64) * full).clip(-full, full - 1).astype(np.int32)
    return numbers.astype(np.int16) if encoding == "pcm16" else numbers << 8


class WavStream:
    """A WAV file that grows. The header is written at once; the sizes in it are set by `close` where `file` can go
    back, and say "unknown" where it cannot (a pipe, an answer over HTTP)."""

    def __init__(self, file: BinaryIO, *, sample_rate: int, channels: int = 1, encoding: Encoding = "pcm16") -> None:
        """`file` is written from where it stands, and stays open after `close`. Raises InvalidRequest for numbers that
        no WAV file holds."""
        if encoding not in ENCODINGS:
            raise InvalidRequest(f"{encoding!r} is no encoding of a WAV file; use {', '.join(ENCODINGS)}")
        if not 1 <= sample_rate <= 1 << 24 or not 1 <= channels <= 255:
            raise InvalidRequest(f"no WAV file has {sample_rate} samples a second and {channels} channels")
        self._file, self._encoding, self._channels = file, encoding, channels
        self._begin = file.tell() if file.seekable() else None
        self._num_bytes, self._closed = 0, False
        self._header = _header(sample_rate, channels, encoding)
        file.write(self._header)

    def write(self, samples: NDArray[Any]) -> None:
        """Append floats `[channels, samples]` (or `[samples]` of one channel) in [-1, 1]; see `quantized`. Raises
        GenerationFailed, and InvalidRequest for another number of channels or over 4 GiB."""
        import numpy as np

        two = np.atleast_2d(samples)
        if two.ndim != 2 or len(two) != self._channels:
            raise InvalidRequest(f"samples must be [{self._channels}, samples], not {list(samples.shape)}")
        data = wav_bytes(two, self._encoding)
        if len(self._header) + self._num_bytes + len(data) + _MAX_COMMENT_BYTES > MAX_WAV_BYTES:
            raise InvalidRequest(f"a WAV file holds at most {format_bytes(MAX_WAV_BYTES)}; save it as .flac")
        self._file.write(data)
        self._num_bytes += len(data)

    def close(self, recipe: Mapping[str, Any] | None = None) -> None:
        """The end of the samples: writes the recipe behind them, and the sizes. Once only; later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        chunks = b"\0" * (self._num_bytes % 2)
        if recipe is not None:
            chunks += _comment(tagged(recipe))
        self._file.write(chunks)
        if self._begin is None:
            return
        end = self._file.tell()
        self._file.seek(self._begin + 4)
        self._file.write(struct.pack("<I", len(self._header) - 8 + self._num_bytes + len(chunks)))
        self._file.seek(self._begin + len(self._header) - 4)
        self._file.write(struct.pack("<I", self._num_bytes))
        if self._encoding == "float":
            frames = self._num_bytes // (4 * self._channels)
            self._file.seek(self._begin + len(self._header) - 12)
            self._file.write(struct.pack("<I", frames))
        self._file.seek(end)

    def __enter__(self) -> WavStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wav_bytes(samples: NDArray[Any], encoding: Encoding = "pcm16") -> bytes:
    """Floats `[channels, samples]` as they lie in a WAV file: little-endian, channel by channel. See `quantized`."""
    import numpy as np

    numbers = quantized(samples, encoding).T
    if encoding != "pcm24":
        return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
    return np.ascontiguousarray(numbers.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


def wav_comment(file: BinaryIO) -> str | None:
    """The JSON text of the recipe in a WAV file; None if there is none, or no WAV file. Nothing of it is checked."""
    for name, size in _chunks(file):
        if name != b"LIST" or size > _MAX_COMMENT_BYTES:
            continue
        data = file.read(size)
        if data[:4] != b"INFO":
            continue
        position = 4
        while position + 8 <= len(data):
            length = int.from_bytes(data[position + 4 : position + 8], "little")
            if data[position : position + 4] == b"ICMT":
                text = untagged(data[position + 8 : position + 8 + length].decode("utf-8", "replace"))
                if text is not None:
                    return text
            position += 8 + length + length % 2
    return None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk; the file stands behind them."""
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64") or head[8:12] != b"WAVE":
        return
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        here = file.tell()
        yield head[:4], size
        file.seek(here + size + size % 2)


def _header(sample_rate: int, channels: int, encoding: Encoding) -> bytes:
    tag, bits = ENCODINGS[encoding]
    block = channels * bits // 8
    is_plain = channels <= 2
    fmt = struct.pack(
        "<HHIIHH",
        tag if is_plain else _EXTENSIBLE,
        channels,
        sample_rate,
        min(sample_rate * block, _UNKNOWN),
        block,
        bits,
    )
    if not is_plain:  # which loudspeaker a channel is for is not known: mask 0
        fmt += struct.pack("<HHIH", 22, bits, 0, tag) + _GUID_TAIL
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if tag != 1:
        chunks += b"fact" + struct.pack("<II", 4, _UNKNOWN)
    return b"RIFF" + struct.pack("<I", _UNKNOWN) + b"WAVE" + chunks + b"data" + struct.pack("<I", _UNKNOWN)


def _comment(text: str) -> bytes:
    data = text.encode() + b"\0"
    info = b"INFOICMT" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"LIST" + struct.pack("<I", len(info)) + info
