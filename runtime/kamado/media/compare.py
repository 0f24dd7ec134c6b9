"""Whether a picture is, pixel for pixel, the one in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two pictures are apart."""

    equal: bool | None
    """None: the file's format loses detail, so nobody can tell."""
    same_size: bool = True
    different_pixels: int = 0
    """0 where the sizes differ: then no pixel belongs to another."""
    largest: int = 0
    """Largest difference of a value, 0 to 255."""

    def within(self, levels: int) -> bool:
        """Whether no value is off by more than that."""
        return self.same_size and self.largest <= levels


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
    """Compares values of 8 bits; opaque and without opacity are the same."""
    import numpy as np

    if one.size != other.size:
        return Comparison(equal=False, same_size=False)
    apart: Any = np.abs(np.asarray(one.convert("RGBA"), np.int16) - np.asarray(other.convert("RGBA"), np.int16))
    different = int(apart.any(axis=-1).sum())
    return Comparison(equal=different == 0, different_pixels=different, largest=int(apart.max(initial=0)))
