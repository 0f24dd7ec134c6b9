"""Video files: saved with their recipe, read from strangers. FFmpeg does it, through PyAV (the extra `video`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import GenerationFailed, InvalidRequest
from ..files import replacing
from ..outputs import Audio, Video
from .animations import open_animation, save_animation
from .frames import check_frame, collected
from .opening import check_target, opened_source, shown
from .sounds import MAX_VALUES, resampled
from .tags import tagged
from .tracks import decoded_track, opened_tracks, require_pyav
from .waves import quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray

WRITE_FORMATS = (".mp4", ".webm", ".gif", ".webp")
MAX_FILE_BYTES = 1 << 32
MAX_FPS = 1000.0
_CODECS: Mapping[str, tuple[str, Mapping[str, str], str, int, Mapping[str, str]]] = {
    # suffix: codec of pictures, its settings, codec of sound, its rate (0: any usual one), settings of the container
    # (x264's macroblock tree reads memory that nobody wrote, and so makes other bytes now and then)
    ".mp4": (
        "libx264",
        {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"},
        "aac",
        0,
        {"movflags": "+faststart"},
    ),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "0"}, "libopus", 48000, {}),
}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
_THREADS = 4
"""Always as many, whatever the machine has: the bytes of a file may depend on it."""
_BT709 = 1


def check_video_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a path to save a video to, in lower case. Raises InvalidRequest, also where PyAV is needed and
    missing; worth asking before the video is made."""
    suffix = check_target(path, WRITE_FORMATS, "video")
    if suffix in _CODECS:
        require_pyav(f"writing {suffix} files")
    return suffix


def save_video(video: Video, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None) -> None:
    """Write `video` to `path`, whole or not at all, with the recipe inside; a file that is there is replaced.

    .mp4: H.264 (yuv420p, BT.709) and AAC, its index first; an odd width or height grows by one, the last column or row
    again. .webm: VP9 and Opus. .gif and .webp: animations without sound. The same video makes the same bytes. Raises
    GenerationFailed for a video without frames, InvalidRequest for a path or a size that cannot be written, OSError
    when the disk fails.
    """
    suffix = check_video_path(path)
    frames = video.frames
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise GenerationFailed(f"the video has no frames ({list(frames.shape)}), so there is nothing to write")
    _check_fps(video.fps, "the video")
    try:
        with replacing(Path(path)) as file:
            if suffix in _CODECS:
                _encode(video, str(file.name), suffix, recipe)
            else:
                save_animation(frames, video.fps, file, suffix, recipe)
    except (PermissionError, ValueError) as error:
        raise InvalidRequest(f"{shown(path)} cannot be written: {error}") from error


def open_video(source: Any, max_frames: int | None = None, *, sound: bool = True) -> Video:
    """A video from a path, the bytes of a file, a `data:` URL, a Video, or (frames, fps) with frames uint8
    `[frames, height, width, 3]` or a list of pictures of one size.

    Read are MP4, MOV, WebM, MKV, AVI (with PyAV), and GIF and WebP animations. Frames are upright, in sRGB; after
    `max_frames` nothing more is read. `sound`: also the first track of sound. Raises InvalidRequest, also over
    `frames.MAX_VIDEO_BYTES`. Nothing is ever fetched from a network.
    """
    if max_frames is not None and max_frames < 1:
        raise InvalidRequest(f"max_frames must be at least 1, not {max_frames}")
    with opened_source(source, "video", "videos", MAX_FILE_BYTES) as opened:
        if opened is None:
            return _given(source, max_frames)
        return _read(*opened, max_frames, sound)


def _encode(video: Video, path: str, suffix: str, recipe: Mapping[str, Any] | None) -> None:
    """`path` has a name of its own without the suffix; it is written over."""
    import av

    codec, settings, _, _, container_settings = _CODECS[suffix]
    frames, step = video.frames, 2 if suffix == ".mp4" else 1
    fps = Fraction(float(video.fps)).limit_denominator(1001)
    options = {"fflags": "+bitexact", **container_settings}
    try:
        with av.open(path, "w", format=suffix[1:], options=options) as container:
            if recipe is not None:
                container.metadata["comment"] = tagged(recipe)
            stream: Any = container.add_stream(codec, rate=fps, options=dict(settings))
            stream.height, stream.width = (side + side % step for side in frames.shape[1:3])
            stream.pix_fmt = "yuv420p"
            _make_exact(stream.codec_context)
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
            track = None if video.audio is None else _Track(container, video.audio, suffix)
            for number, frame in enumerate(frames):
                if track is not None:
                    track.write(until_s=float(number / fps))
                container.mux(stream.encode(_frame(_even(frame, step), number)))
            container.mux(stream.encode(None))
            if track is not None:
                track.write(until_s=math.inf)
    except (av.error.FFmpegError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno and error.errno > 0 and not isinstance(error, ValueError):
            raise OSError(error.errno, error.strerror or str(error)) from error
        shape = f"{frames.shape[2]} x {frames.shape[1]} at {video.fps:g} frames a second"
        raise InvalidRequest(f"a video of {shape} cannot be written as {suffix}: {error}") from error


class _Track:
    """Sound that is encoded a little ahead of the pictures, so that a player finds both in one place."""

    def __init__(self, container: Any, audio: Audio, suffix: str) -> None:
        _, _, codec, only_rate, _ = _CODECS[suffix]
        samples, rate = quantized(audio.samples, "float"), int(audio.sample_rate)
        if not samples.size or len(samples) > 2:
            raise InvalidRequest(
                f"the sound of a video has 1 or 2 channels and some samples, not {list(samples.shape)}"
            )
        new_rate = only_rate or next((each for each in _AAC_RATES if each >= rate), _AAC_RATES[-1])
        self._samples, self._rate = resampled(samples, rate, new_rate).clip(-1, 1), new_rate
        self._layout = "mono" if len(samples) == 1 else "stereo"
        self._container = container
        self._stream: Any = container.add_stream(codec, rate=new_rate, layout=self._layout)
        self._stream.codec_context.format = "fltp" if codec == "aac" else "flt"
        self._stream.bit_rate = 128_000 * len(samples)
        _make_exact(self._stream.codec_context)
        self._written = 0

    def write(self, *, until_s: float) -> None:
        while self._written < self._samples.shape[1] and self._written <= until_s * self._rate:
            self._encode(self._samples[:, self._written : self._written + 1024])
        if until_s == math.inf:
            self._container.mux(self._stream.encode(None))

    def _encode(self, block: NDArray[Any]) -> None:
        import av
        import numpy as np

        form = self._stream.codec_context.format.name
        values = block if form == "fltp" else block.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format=form, layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._written
        frame.time_base = Fraction(1, self._rate)
        self._written += block.shape[1]
        self._container.mux(self._stream.encode(frame))


def _frame(pixels: NDArray[Any], number: int) -> Any:
    import av
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )
    frame.pts = number
    return frame


def _make_exact(context: Any) -> None:
    import av

    context.thread_count = _THREADS
    context.flags |= av.codec.context.Flags.bitexact


def _even(frame: NDArray[Any], step: int) -> NDArray[Any]:
    """The last column and row again, where the sides are no multiples of `step`, which is 1 or 2."""
    import numpy as np

    height, width = frame.shape[:2]
    if height % step == width % step == 0:
        return frame
    return np.pad(frame, ((0, height % step), (0, width % step), (0, 0)), mode="edge")


def _read(file: BinaryIO, name: str, max_frames: int | None, sound: bool) -> Video:
    head = file.read(12)
    file.seek(0)
    if head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        frames, fps = open_animation(file, name, max_frames)
        return Video(frames=frames, fps=fps)
    with opened_tracks(file, name) as container:
        if not container.streams.video:
            raise InvalidRequest(f"{name} has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InvalidRequest(f"{name} has video of a codec that is not known here")
        check_frame(stream.codec_context.width, stream.codec_context.height, name)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        stream.thread_type = "AUTO"
        frames = collected(_decoded(container, stream, name), name, max_frames)
        has_sound = sound and bool(container.streams.audio)
    fps = float(rate) if rate else 0.0
    _check_fps(fps, name)
    if not has_sound:
        return Video(frames=frames, fps=fps)
    file.seek(0)
    with opened_tracks(file, name) as container:
        samples, sample_rate = decoded_track(container, name, limit=MAX_VALUES)
    if max_frames is not None:
        samples = samples[:, : math.ceil(len(frames) / fps * sample_rate)]
    return Video(frames=frames, fps=fps, audio=Audio(samples=samples.clip(-1, 1), sample_rate=sample_rate))


def _decoded(container: Any, stream: Any, name: str) -> Iterator[NDArray[Any]]:
    import numpy as np

    for frame in container.decode(stream):
        check_frame(frame.width, frame.height, name)
        pixels = frame.to_ndarray(format="rgb24")
        turns = round(frame.rotation / 90) % 4
        yield np.rot90(pixels, turns) if turns else pixels


def _given(source: Any, max_frames: int | None) -> Video:
    import numpy as np

    if isinstance(source, Video):
        return source if max_frames is None else Video(frames=source.frames[:max_frames], fps=source.fps)
    if not isinstance(source, (tuple, list)) or len(source) != 2 or not isinstance(source[1], (int, float)):
        raise InvalidRequest(
            f"a video must be a path, bytes, a data URL or (frames, fps), not {type(source).__name__} alone"
        )
    frames, fps = source
    _check_fps(float(fps), "the video")
    if isinstance(frames, (list, tuple)):
        from .pictures import flattened, open_picture

        pictures = (np.asarray(flattened(open_picture(frame), "RGB")) for frame in frames)
        return Video(frames=collected(pictures, "the video", max_frames), fps=float(fps))
    array = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise InvalidRequest(
            f"frames must be uint8 [frames, height, width, 3], not {list(array.shape)} of {array.dtype}"
        )
    if not len(array):
        raise InvalidRequest("the video has no frames")
    check_frame(array.shape[2], array.shape[1], "the video")
    return Video(frames=array[:max_frames], fps=float(fps))


def _check_fps(fps: float, name: str) -> None:
    if not 0.01 <= fps <= MAX_FPS:  # also for NaN
        raise InvalidRequest(f"{name} has {fps:g} frames a second; from 0.01 to {MAX_FPS:g} can be used")
