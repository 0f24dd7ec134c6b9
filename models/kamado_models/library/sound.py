"""Tensors of models as samples of sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kamado.errors import GenerationFailed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]


def as_samples(sound: Any) -> Samples:
    """A tensor, with or without channels in front, as samples (channels, samples) in [-1, 1]. Raises GenerationFailed
    for one without sound, or with NaN or infinity in it."""
    import numpy as np

    samples = sound.detach().float().cpu().numpy()
    samples = samples.reshape(-1, samples.shape[-1]) if samples.ndim != 2 else samples
    if not samples.size:
        raise GenerationFailed("the model made no sound; ask for more or other text, or take another seed")
    if not np.isfinite(samples).all():
        raise GenerationFailed("the model made a sound that is not finite; load it in another precision (--dtype)")
    return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)  # type: ignore[no-any-return]
