"""Edges of a picture, white on black, as edge ControlNets read them.

J. Canny, "A computational approach to edge detection", IEEE Transactions on Pattern Analysis and Machine Intelligence
8(6), 1986: blur, slope, thinning across the edge, and two thresholds, of which the lower counts beside what passes the
higher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_TRUNCATE = 4.0
"""The blur reaches so many standard deviations far."""


def canny(image: Any, low: float = 100.0, high: float = 200.0, sigma: float = 1.0) -> Image.Image:
    """The edges of a picture (whatever `open_picture` takes) as one of its size, mode `RGB`.

    `low`, `high`: slopes of brightness (0 to 255) by Sobel's operator, as the usual preprocessors of ControlNets have
    them; `sigma`: pixels of the blur before, 0 for none. Raises InvalidRequest.
    """
    import numpy as np
    from PIL import Image as Pictures

    from .pictures import open_picture

    if not 0 <= low <= high or not 0 <= sigma <= 100:
        raise InvalidRequest(f"canny: 0 <= low <= high and 0 <= sigma <= 100 must hold, not {low}, {high}, {sigma}")
    grey = np.asarray(open_picture(image).convert("RGB").convert("L"), np.float32)
    steep, thin = _slopes(_blurred(grey, sigma))
    edges = _connected(thin & (steep > low), thin & (steep > high))
    return Pictures.fromarray(edges.astype(np.uint8) * 255).convert("RGB")


def _blurred(grey: NDArray[Any], sigma: float) -> NDArray[Any]:
    import numpy as np

    if not sigma:
        return grey
    reach = max(int(_TRUNCATE * sigma + 0.5), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        wide = np.pad(grey, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        size = grey.shape[axis]
        parts = (np.take(wide, range(start, start + size), axis) for start in range(2 * reach + 1))
        grey = np.asarray(sum(weight * part for weight, part in zip(weights, parts, strict=True)), np.float32)
    return grey


def _slopes(grey: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How steep each pixel is (sum of both directions' amounts), and whether it is the steepest across its edge."""
    import numpy as np

    wide = np.pad(grey, 1, mode="edge")
    rows = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    columns = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    across, down = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]
    steep = np.abs(across) + np.abs(down)
    around = np.pad(steep, 1)
    height, width = steep.shape

    def beside(dy: int, dx: int) -> NDArray[Any]:
        return around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, upright = np.abs(down) <= 0.4142 * np.abs(across), np.abs(down) >= 2.4142 * np.abs(across)
    falling = across * down > 0
    # Strictly steeper than one neighbour, and at least as steep as the other: an edge of two equal pixels has one.
    thin = np.select(
        [flat, upright, falling],
        [
            (steep > beside(0, -1)) & (steep >= beside(0, 1)),
            (steep > beside(-1, 0)) & (steep >= beside(1, 0)),
            (steep > beside(-1, -1)) & (steep >= beside(1, 1)),
        ],
        (steep > beside(-1, 1)) & (steep >= beside(1, -1)),
    )
    return steep, thin


def _connected(weak: NDArray[Any], strong: NDArray[Any]) -> NDArray[Any]:
    """The weak pixels that are joined to strong ones, diagonals included. Goes outwards from the strong ones, a ring at
    a time; a margin keeps neighbours within the array."""
    import numpy as np

    found = np.pad(strong, 1)
    flat, allowed, width = found.reshape(-1), np.pad(weak, 1).reshape(-1), found.shape[1]
    around = [dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    front = np.flatnonzero(flat)
    while front.size:
        rings = []
        for step in around:
            near = front + step
            near = near[allowed[near] & ~flat[near]]
            flat[near] = True
            rings.append(near)
        front = np.concatenate(rings)
    return found[1:-1, 1:-1]
