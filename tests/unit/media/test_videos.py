"""Video files and animations, opened again by PyAV and Pillow."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.recipes import read_recipe
from kamado.media.videos import open_video, save_video
from kamado.outputs import Audio, Video
from media_outputs import clip, tone
from media_recipes import RECIPE


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_another_program_reads_the_same_video(tmp_path: Path, suffix: str) -> None:
    video, path = clip(24, 64, 48, 12.0, tone(2.0, 16000)), tmp_path / f"x{suffix}"
    save_video(video, path, RECIPE)
    with av.open(str(path)) as container:
        stream, sound = container.streams.video[0], container.streams.audio[0]
        assert stream.codec_context.name == {".mp4": "h264", ".webm": "libvpx-vp9"}[suffix] or suffix == ".webm"
        assert (stream.codec_context.pix_fmt, stream.average_rate) == ("yuv420p", 12)
        assert sound.codec_context.sample_rate == {".mp4": 16000, ".webm": 48000}[suffix]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        container.seek(0)
        samples = sum(frame.samples for frame in container.decode(sound))
        assert container.duration is not None and abs(container.duration / 1e6 - 2.0) < 0.1
    assert len(frames) == 24
    assert abs(samples / sound.codec_context.sample_rate - 2.0) < 0.15
    assert np.abs(np.stack(frames).astype(int) - video.frames).mean() < 4
    for number, color in enumerate([(254, 0, 0), (0, 254, 0), (0, 0, 254)]):
        assert np.abs(frames[3][number * 8 + 4, 3].astype(int) - color).max() < 12
    assert read_recipe(path) == RECIPE
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_mp4_file_begins_with_its_index(tmp_path: Path) -> None:
    save_video(clip(), tmp_path / "x.mp4", RECIPE)
    data = (tmp_path / "x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_the_same_video_makes_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    found, kept = set(), []
    for number in range(12 if suffix == ".mp4" else 2):
        path = tmp_path / f"{number}{suffix}"
        kept.append(clip(audio=tone()))  # other memory each time
        save_video(kept[-1], path, RECIPE)
        found.add(path.read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("size", [(1, 1), (63, 47), (64, 47), (17, 16)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    width, height = size
    frames = np.full((3, height, width, 3), 200, np.uint8)
    save_video(Video(frames=frames, fps=24.0), tmp_path / f"x{suffix}", None)
    again = open_video(tmp_path / f"x{suffix}").frames
    even = suffix == ".mp4"
    assert again.shape == (3, height + (height % 2) * even, width + (width % 2) * even, 3)
    assert np.abs(again.astype(int) - 200).max() < 4


@pytest.mark.parametrize("fps", [0.5, 8.0, 24000 / 1001, 29.97, 60.0])
def test_frame_rates(tmp_path: Path, fps: float) -> None:
    save_video(clip(6, fps=fps), tmp_path / "x.mp4", None)
    again = open_video(tmp_path / "x.mp4")
    assert (len(again.frames), again.fps) == (6, pytest.approx(fps, rel=1e-4))


@pytest.mark.parametrize(("suffix", "error"), [(".gif", 12), (".webp", 8)])
def test_animations(tmp_path: Path, suffix: str, error: float) -> None:
    video, path = clip(12, fps=12.0), tmp_path / f"x{suffix}"
    save_video(video, path, RECIPE)
    with Image.open(path) as image:
        assert (getattr(image, "n_frames", 1), image.size, image.info["loop"]) == (12, (64, 48), 0)
    again = open_video(path)
    assert again.fps == pytest.approx(12.0, rel=0.01)
    assert again.audio is None
    assert np.abs(again.frames.astype(int) - video.frames).mean() < error
    assert read_recipe(path) == RECIPE


def test_frames_that_were_joined_come_apart_again(tmp_path: Path) -> None:
    frames = clip(3).frames.repeat([1, 4, 2], axis=0)
    save_video(Video(frames=frames, fps=8.0), tmp_path / "x.gif", None)
    with Image.open(tmp_path / "x.gif") as image:
        assert getattr(image, "n_frames", 1) == 3
    again = open_video(tmp_path / "x.gif")
    assert (len(again.frames), again.fps) == (7, pytest.approx(8.0, rel=0.05))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_a_long_recipe(tmp_path: Path, suffix: str) -> None:
    recipe = {"options": {"prompt": "\u00e4\u65e5\U0001d11e  \n--> <a>" * 40_000}}
    save_video(clip(2), tmp_path / f"x{suffix}", recipe)
    assert read_recipe(tmp_path / f"x{suffix}") == recipe


def test_sound_and_pictures_come_back_together(tmp_path: Path) -> None:
    save_video(clip(24, fps=12.0, audio=tone(2.0, 44100, 2)), tmp_path / "x.mp4", None)
    again = open_video(tmp_path / "x.mp4")
    assert again.audio is not None
    assert (again.audio.sample_rate, len(again.audio.samples)) == (44100, 2)
    begin = np.argmax(np.abs(again.audio.samples[0]) > 0.1)
    assert begin < 0.06 * 44100
    short = open_video((tmp_path / "x.mp4").read_bytes(), max_frames=6)
    assert short.audio is not None
    assert (len(short.frames), short.audio.samples.shape[1]) == (6, 22050)
    assert open_video(tmp_path / "x.mp4", sound=False).audio is None


def test_open_takes_what_a_caller_has() -> None:
    video = clip()
    assert open_video(video) is video
    assert len(open_video(video, 3).frames) == 3
    assert open_video((video.frames, 8)).fps == 8.0
    pictures = [Image.fromarray(frame) for frame in video.frames]
    assert np.array_equal(open_video((pictures, 8.0)).frames, video.frames)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_no_frames_fail_and_leave_nothing(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(GenerationFailed, match="no frames"):
        save_video(Video(frames=np.zeros((0, 8, 8, 3), np.uint8), fps=8.0), tmp_path / f"x{suffix}", None)
    with pytest.raises(InvalidRequest, match="nan frames a second"):
        save_video(Video(frames=np.zeros((1, 8, 8, 3), np.uint8), fps=float("nan")), tmp_path / f"x{suffix}", None)
    assert list(tmp_path.iterdir()) == []


def test_broken_sound_leaves_nothing(tmp_path: Path) -> None:
    broken = Audio(samples=np.full((1, 100), np.nan, np.float32), sample_rate=16000)
    with pytest.raises(GenerationFailed, match="NaN or infinity"):
        save_video(clip(audio=broken), tmp_path / "x.mp4", None)
    wide = Audio(samples=np.zeros((6, 100), np.float32), sample_rate=16000)
    with pytest.raises(InvalidRequest, match="1 or 2 channels"):
        save_video(clip(audio=wide), tmp_path / "x.mp4", None)
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"a video of 20000 x 2 at 8 frames a second cannot be written as \.mp4"):
        save_video(Video(frames=np.zeros((1, 2, 20_000, 3), np.uint8), fps=8.0), tmp_path / "x.mp4", None)
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_video(clip(), tmp_path / "x.mp4", None)
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (open_video, read_recipe, lambda path: save_video(clip(), path, None)):
        with pytest.raises(
            InvalidRequest, match=r"needs the Python package av, .*; install it: pip install 'kamado\[video\]'"
        ):
            use(tmp_path / "x.mp4")
    save_video(clip(), tmp_path / "x.gif", None)


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _sound_only() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            lambda tmp: _write(tmp / "x.mp4", b"Hello, this is text.\n" * 9),
            r"x\.mp4 is no video of a kind that is read",
        ),
        (lambda tmp: _write(tmp / "x.mp4", b""), "is no video"),
        (lambda tmp: _write(tmp / "x.mp4", b"#EXTM3U\nhttp://127.0.0.1/x\n"), "is no video"),
        (lambda tmp: _write(tmp / "x.mp4", b"\0\0\0\x18ftypisom" + b"junk" * 9), "is damaged, or no video"),
        (lambda tmp: _write(tmp / "x.webm", b"\x1a\x45\xdf\xa3" + b"junk" * 9), "is damaged, or no video"),
        (lambda tmp: _write(tmp / "x.gif", b"GIF89a" + b"junk" * 9), r"x\.gif is"),
        (lambda tmp: _write(tmp / "x.mp4", _sound_only()), "has no video stream"),
        (lambda tmp: tmp, "is no file"),
        (lambda tmp: tmp / "none.mp4", "does not exist"),
        (lambda tmp: "https://example.org/x.mp4", "no video is ever fetched"),
        (lambda tmp: (np.zeros((0, 8, 8, 3), np.uint8), 8), "has no frames"),
        (lambda tmp: ([], 8), "has no frames"),
        (lambda tmp: (np.zeros((2, 8, 8, 3), np.uint8), 0), "0 frames a second"),
        (lambda tmp: (np.zeros((2, 8, 8, 3), np.float32), 8), "frames must be uint8"),
        (lambda tmp: (np.zeros((8, 8, 3), np.uint8), 8), "frames must be uint8"),
        (lambda tmp: (np.zeros((1, 0, 8, 3), np.uint8), 8), "8 x 0"),
        (lambda tmp: ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], 8), "changes its size"),
        (lambda tmp: np.zeros((2, 8, 8, 3), np.uint8), r"\(frames, fps\)"),
        (lambda tmp: None, "not NoneType"),
    ],
)
def test_what_is_no_video(tmp_path: Path, source: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as error:
        open_video(source(tmp_path))
    assert "\n" not in str(error.value)


def test_small_frames_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of GIF can ask for any number of frames."""
    monkeypatch.setattr("kamado.media.frames.MAX_FRAMES", 1000)
    out = io.BytesIO()
    pictures = [Image.new("RGB", (1, 1), color) for color in ("red", "blue")]
    pictures[0].save(out, "GIF", save_all=True, append_images=pictures[1:], duration=[10, 600_000])
    with pytest.raises(InvalidRequest, match="has more than 1000 frames"):
        open_video(out.getvalue())


def test_a_file_with_a_stream_but_no_frames(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 16, 16
        container.start_encoding()
    with pytest.raises(InvalidRequest, match=r"x\.avi"):
        open_video(tmp_path / "x.avi")


@pytest.mark.parametrize("value", [0, -1])
def test_max_frames(value: int) -> None:
    with pytest.raises(InvalidRequest, match="max_frames"):
        open_video(clip(), value)


@given(cut=st.integers(0, 3000), flip=st.integers(0, 5000), suffix=st.sampled_from([".mp4", ".webm", ".gif", ".webp"]))
def test_cut_and_changed_files(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"whole{suffix}"
    if not path.exists():
        save_video(clip(3), path, RECIPE)
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 0x55
    path.with_name(f"changed{suffix}").write_bytes(data[: len(data) - cut])
    for use in (open_video, read_recipe):
        try:
            use(path.with_name(f"changed{suffix}"))
        except InvalidRequest as error:
            assert "\n" not in str(error)
