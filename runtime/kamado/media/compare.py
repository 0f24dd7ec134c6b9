"""Whether an output is, value for value, the one in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..outputs import Audio, Embedding, Mesh, Score, Video


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two outputs of one kind are apart."""

    equal: bool | None
    """None: the file's format loses detail, so nobody can tell."""
    same_size: bool = True
    """Width and height, samples and channels, vertices, ..."""
    different: int = 0
    """How many pixels, samples, vertices or notes; 0 where the sizes differ: then none belongs to another."""
    largest: float = 0
    """Largest difference of a value, 0 to `full`."""
    full: float = 255
    """The range of values: 255 of pixels, 65535 of samples, the extent of a mesh."""
    what: str = "pixel"
    """The word for one of them."""

    def within(self, levels: int) -> bool:
        """Whether no value is off by more than that, of 255."""
        return self.same_size and self.largest <= levels * self.full / 255


def keeps_pixels(path: Path) -> bool:
    """Whether the file holds its pixels as they were saved: PNG, or a WebP file that is lossless. `path` is a picture
    that could be opened."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF":
            return head.startswith(b"\x89PNG")
        while len(chunk := file.read(8)) == 8:
            if chunk[:4] in (b"VP8L", b"VP8 ", b"ANMF"):
                return chunk[:4] == b"VP8L"
            size = int.from_bytes(chunk[4:], "little")
            file.seek(size + size % 2, 1)
    return False


def compare_pictures(one: Image.Image, other: Image.Image) -> Comparison:
    """Compares values of 8 bits, or of 16 where both have such; opaque and without opacity are the same."""
    import numpy as np

    is_deep = one.mode.startswith("I;16")
    if one.size != other.size or is_deep is not other.mode.startswith("I;16"):
        return Comparison(equal=False, same_size=False)
    if is_deep:
        apart: Any = np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32))[..., None]
    else:
        apart = np.abs(np.asarray(one.convert("RGBA"), np.int16) - np.asarray(other.convert("RGBA"), np.int16))
    different = int(apart.any(axis=-1).sum())
    return Comparison(
        equal=different == 0, different=different, largest=int(apart.max(initial=0)), full=65535 if is_deep else 255
    )


def compare_outputs(one: Any, other: Any) -> Comparison:
    """Compares two sounds (as 16 bits), videos with their sound, meshes, scores or documents, as files have them."""
    if isinstance(one, Audio) and isinstance(other, Audio):
        return _compare_sounds(one, other)
    if isinstance(one, Video) and isinstance(other, Video):
        return _compare_videos(one, other)
    if isinstance(one, Mesh) and isinstance(other, Mesh):
        return _compare_meshes(one, other)
    if isinstance(one, Score) and isinstance(other, Score):
        apart = set(one.notes) ^ set(other.notes)
        return Comparison(
            equal=one == other, same_size=not apart, different=len(apart), largest=len(apart), full=0, what="note"
        )
    if isinstance(one, Embedding) and isinstance(other, Embedding):
        return _compare_vectors(one, other)
    return Comparison(equal=one == other, same_size=one == other, full=0, what="word")


def _compare_vectors(one: Embedding, other: Embedding) -> Comparison:
    import numpy as np

    if one.vectors.shape != other.vectors.shape or one.shape != other.shape:
        return Comparison(equal=False, same_size=False, what="number")
    apart = np.abs(one.vectors.astype(np.float64) - other.vectors)
    different = int((apart != 0).sum())
    extent = float(np.ptp(one.vectors)) if one.vectors.size else 0.0
    largest = float(apart.max(initial=0))
    return Comparison(equal=different == 0, different=different, largest=largest, full=extent, what="number")


def _compare_sounds(one: Audio, other: Audio) -> Comparison:
    import numpy as np

    if one.samples.shape != other.samples.shape or one.sample_rate != other.sample_rate:
        return Comparison(equal=False, same_size=False, full=65535, what="sample")
    numbers = [np.rint(sound.samples.astype(np.float64) * 32768).clip(-32768, 32767) for sound in (one, other)]
    apart = np.abs(numbers[0] - numbers[1])
    different = int((apart != 0).sum())
    largest = int(apart.max(initial=0))
    return Comparison(equal=different == 0, different=different, largest=largest, full=65535, what="sample")


def _compare_videos(one: Video, other: Video) -> Comparison:
    import numpy as np

    if one.frames.shape != other.frames.shape or (one.audio is None) is not (other.audio is None):
        return Comparison(equal=False, same_size=False)
    different = largest = 0
    for then, now in zip(one.frames, other.frames, strict=True):  # one by one: all at once may not fit
        apart = np.abs(then.astype(np.int16) - now)
        different += int(apart.any(axis=-1).sum())
        largest = max(largest, int(apart.max(initial=0)))
    if different == 0 and one.audio is not None and other.audio is not None:
        return _compare_sounds(one.audio, other.audio)
    return Comparison(equal=different == 0, different=different, largest=largest)


def _compare_meshes(one: Mesh, other: Mesh) -> Comparison:
    import numpy as np

    if one.vertices.shape != other.vertices.shape or not np.array_equal(one.faces, other.faces):
        return Comparison(equal=False, same_size=False, what="vertex")
    apart = np.abs(one.vertices.astype(np.float64) - other.vertices).max(axis=1)
    colors = [np.zeros((len(apart), 4), np.uint8) if mesh.colors is None else mesh.colors for mesh in (one, other)]
    different = int(((apart != 0) | (colors[0] != colors[1]).any(axis=1)).sum())
    extent = float(np.ptp(one.vertices, axis=0).max())
    return Comparison(
        equal=different == 0, different=different, largest=float(apart.max(initial=0)), full=extent, what="vertex"
    )
