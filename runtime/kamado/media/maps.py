"""Maps of what is where in a picture (depth, segments) as pictures that people and other models read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_SPECTRAL = (
    # ColorBrewer's "Spectral", 11 classes (Brewer, Harrower; Apache 2.0), from near to far
    *((158, 1, 66), (213, 62, 79), (244, 109, 67), (253, 174, 97), (254, 224, 139), (255, 255, 191)),
    *((230, 245, 152), (171, 221, 164), (102, 194, 165), (50, 136, 189), (94, 79, 162)),
)


def deep_picture(values: NDArray[Any]) -> Image.Image:
    """Values `[height, width]` in [0, 1] as a grey picture of 16 bits (mode `I;16`), which only PNG holds."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((values.astype(np.float64).clip(0, 1) * 65535).round().astype(np.uint16))


def coloured(values: NDArray[Any]) -> Image.Image:
    """Values `[height, width]` in [0, 1] in colours from red (0) over yellow to violet (1), as papers on depth show
    them."""
    import numpy as np
    from PIL import Image

    table = np.asarray(_SPECTRAL, np.float64)
    places = np.linspace(0.0, 1.0, len(table))
    clipped = values.astype(np.float64).clip(0, 1)
    channels = [np.interp(clipped, places, table[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def stretched(values: NDArray[Any]) -> NDArray[Any]:
    """Values brought to [0, 1], the smallest to 0; all 0 where there is one value only."""
    import numpy as np

    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / (high - low)).astype(np.float32)


def with_opacity(picture: Image.Image, opacity: NDArray[Any]) -> Image.Image:
    """The picture with opacity `[height, width]` in [0, 1], of its own size."""
    import numpy as np
    from PIL import Image

    found = picture.convert("RGB")
    found.putalpha(Image.fromarray((opacity.astype(np.float64).clip(0, 1) * 255).round().astype(np.uint8)))
    return found


def label_colors(count: int) -> Sequence[tuple[int, int, int]]:
    """So many colours that differ, for the labels of segments: PASCAL VOC's palette, whose first is black (each bit of
    a number goes to the next place of red, green and blue in turn)."""
    colors = []
    for label in range(count):
        channels, rest = [0, 0, 0], label
        for bit in range(7, -1, -1):
            for channel in range(3):
                channels[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colors.append((channels[0], channels[1], channels[2]))
    return colors
