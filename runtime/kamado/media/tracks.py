"""Files with several tracks (MP4, WebM, AVI), opened with PyAV: in a fixed set of formats, none of which names other
files or addresses, as play lists do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import InvalidRequest, KamadoError
from .opening import library
from .tags import untagged

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INSTALL = "pip install 'kamado[video]'"


def require_pyav(what: str) -> Any:
    """PyAV. Raises InvalidRequest, which says what to install, if `what` ("writing .mp4 files") cannot be had."""
    return library("av", what, _INSTALL)


def container_format(head: bytes) -> str | None:
    """FFmpeg's name of the format of a file that begins with these (12 or more) bytes; None if it is not among those
    that are opened."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


@contextmanager
def opened_tracks(file: BinaryIO, name: str, what: str = "video") -> Iterator[Any]:
    """PyAV's container. Whatever FFmpeg makes of a damaged file, here or in the body, becomes InvalidRequest."""
    form = container_format(file.read(12))
    file.seek(0)
    if form is None:
        raise InvalidRequest(f"{name} is no {what} of a kind that is read (MP4, MOV, WebM, MKV, AVI)")
    av = require_pyav(f"reading {form} files")
    try:
        with av.open(file, "r", format=form, metadata_errors="replace") as container:
            yield container
    except KamadoError:
        raise
    except (av.error.FFmpegError, ValueError, RuntimeError, OSError, TypeError, ArithmeticError) as error:
        raise InvalidRequest(f"{name} is damaged, or no {what}: {str(error)[:120]}") from error


def read_tag(file: BinaryIO, name: str) -> str | None:
    """The JSON text of the recipe in the comment of a file with tracks; None if there is none."""
    with opened_tracks(file, name) as container:
        comments = [text for key, text in container.metadata.items() if key.lower() == "comment"]
    return next((found for text in comments if (found := untagged(text)) is not None), None)


def read_track(file: BinaryIO, name: str, *, limit: int) -> tuple[NDArray[Any], int]:
    """(float32 `[channels, samples]`, sample rate) of the first track of sound. Raises InvalidRequest: no such track,
    or over `limit` values."""
    with opened_tracks(file, name, "sound") as container:
        if not container.streams.audio:
            raise InvalidRequest(f"{name} has no track of sound")
        return decoded_track(container, name, limit=limit)


def decoded_track(container: Any, name: str, *, limit: int) -> tuple[NDArray[Any], int]:
    """See `read_track`; of a container that has such a track."""
    import av
    import numpy as np

    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise InvalidRequest(f"{name} has sound of a codec that is not known here")
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    if not rate or not channels:
        raise InvalidRequest(f"{name} has a track of sound of {rate} Hz and {channels} channels")
    resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
    blocks: list[NDArray[Any]] = []
    total = 0
    for frame in container.decode(stream):
        for even in resampler.resample(frame):
            block = even.to_ndarray()
            total += block.size
            if total > limit:
                raise InvalidRequest(
                    f"{name} holds more sound than the {limit // channels} samples that are read; cut it"
                )
            blocks.append(block)
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((channels, 0), np.float32), rate
