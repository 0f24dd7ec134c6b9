"""How large what a pipeline makes is."""

from __future__ import annotations

from dataclasses import dataclass, replace

_SHORTEST_S = 0.5


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a picture, of a video, or the length of a sound; all 0 for a mesh."""

    width: int = 0
    """Pixels."""
    height: int = 0
    """Pixels."""
    frames: int = 1
    seconds: float = 0.0
    """Of a sound."""

    @property
    def key(self) -> tuple[int, ...]:
        """What peaks are kept by: a picture's width and height, of others also frames and milliseconds."""
        if self.frames == 1 and not self.seconds:
            return self.width, self.height
        return self.width, self.height, self.frames, round(1000 * self.seconds)

    def shorter(self) -> Extent | None:
        """About half of it in time; None for what takes none, or next to none."""
        if self.frames <= 2 and self.seconds <= _SHORTEST_S:
            return None
        return replace(self, frames=(self.frames - 1) // 2 + 1, seconds=self.seconds / 2)

    def __str__(self) -> str:
        if self.seconds:
            return f"a sound of {self.seconds:g} seconds"
        if self.frames > 1:
            return f"a video of {self.frames} frames of {self.width} x {self.height}"
        if not self.width:
            return "a mesh"
        return f"a picture of {self.width} x {self.height}"


def extent_of_key(key: tuple[int, ...]) -> Extent:
    """The extent whose key that is."""
    width, height, *time = key
    return Extent(width, height, time[0], time[1] / 1000) if time else Extent(width, height)
