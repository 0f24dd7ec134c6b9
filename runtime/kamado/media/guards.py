"""Pictures, videos and sounds that are certainly not what anybody asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DARKEST = 1 / 255


def blank_reason(array: NDArray[Any]) -> str | None:
    """Why a float picture `[height, width, channels]` in [0, 1], or a video of such, is useless, or None.

    A model that overflows in half precision gives NaN, infinity, or black, which is what NaN becomes in 8 bits.
    A fourth channel, the opacity, does not count. A picture in one other colour may be what was asked for.
    """
    import numpy as np

    if array.size == 0:
        return "it has no pixels"
    if not np.isfinite(array).all():
        return "it holds NaN or infinity"
    if (array[..., :3] < _DARKEST).all():
        return "it is all black"
    return None


def silent_reason(samples: NDArray[Any]) -> str | None:
    """Why a sound, float `[channels, samples]`, is useless, or None. A very quiet one may be what was asked for."""
    import numpy as np

    if samples.size == 0:
        return "it has no samples"
    if not np.isfinite(samples).all():
        return "it holds NaN or infinity"
    if not samples.any():
        return "it is silent"
    return None
