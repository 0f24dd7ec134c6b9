"""What a prompt shows, opened: pictures, sounds and videos in the form that processors take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from kamado.errors import InvalidRequest
from kamado.turns import Item

MAX_AUDIO_S = 3600.0
_SOME_FPS = 24.0


@dataclass(frozen=True, slots=True, eq=False)
class OpenedItem:
    """`value` is a PIL picture in RGB, float32 samples `[n]` of one channel, or uint8 frames `[frames, height, width,
    3]`."""

    kind: str
    """One of `kamado.turns.KINDS`."""
    value: Any = field(repr=False)
    digest: str
    """SHA-256 of what the model gets to see, as 64 hexadecimal digits."""
    rate: float = 0.0
    """Samples or frames a second; 0 where frames came without a rate."""


def opened(item: Item, *, sound_rate: int) -> OpenedItem:
    """Open one; sounds get the rate that the model takes. Raises InvalidRequest."""
    if item.kind == "image":
        from kamado.media.pictures import flattened, open_picture, picture_digest

        picture = flattened(open_picture(item.source), "RGB")
        return OpenedItem("image", picture, picture_digest(picture))
    return _sound(item.source, sound_rate) if item.kind == "audio" else _video(item.source)


def _sound(source: Any, rate: int) -> OpenedItem:
    from kamado.media.sounds import open_sound

    samples = open_sound(source, rate, 1).samples[0]
    if len(samples) > MAX_AUDIO_S * rate:
        raise InvalidRequest(
            f"the sound is {len(samples) / rate:.0f} s long; up to {MAX_AUDIO_S:.0f} s are heard; cut it"
        )
    return OpenedItem("audio", samples, _digest(f"audio {rate} {len(samples)}", samples.tobytes()), float(rate))


def _video(source: Any) -> OpenedItem:
    from kamado.media.videos import open_video

    # Bare frames were chosen by whoever gives them, and nobody says how fast they come.
    is_bare = hasattr(source, "shape")
    video = open_video((source, _SOME_FPS) if is_bare else source, sound=False)
    rate = 0.0 if is_bare else float(video.fps)
    shape = "x".join(map(str, video.frames.shape))
    return OpenedItem("video", video.frames, _digest(f"video {rate} {shape}", video.frames.tobytes()), rate)


def _digest(head: str, body: bytes) -> str:
    found = hashlib.sha256(f"{head}\n".encode())
    found.update(body)
    return found.hexdigest()
