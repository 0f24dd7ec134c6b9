"""Vocoders: spectrograms into sound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import InvalidRequest, UnsupportedCheckpoint

from ..library.configuring import number_in
from ..library.kinds import Part

_MOST_STAGES = 16
_MOST_SAMPLES = 1 << 14
"""Of one frame; usual are 200 to 512."""


def hifigan_activation(config: Mapping[str, Any], frames: int, size: int) -> int:
    """About the bytes that a HiFi-GAN's temporary tensors take for so many frames, with numbers of `size` bytes: of the
    stage that has most of them, the input, the sum and two of a residual block."""
    rates = config.get("upsample_rates")
    channels = number_in(config, "upsample_initial_channel", 512)
    steps = [rate for rate in rates if isinstance(rate, int)] if isinstance(rates, list) else [4, 4, 4, 4]
    stages = (frames * math.prod(steps[: stage + 1]) * (channels >> (stage + 1)) for stage in range(len(steps)))
    return 4 * size * max((*stages, frames * channels))


def check_upsampling(config: Mapping[str, Any], reference: str) -> None:
    """Raise UnsupportedCheckpoint where a vocoder's configuration has no usable steps from frames to samples, or more
    blocks than can be built in a reasonable time."""
    rates = config.get("upsample_rates", [4, 4, 4, 4])
    good = isinstance(rates, list) and 0 < len(rates) <= _MOST_STAGES
    if not good or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in rates):
        raise UnsupportedCheckpoint(
            f"{reference}: upsample_rates is {rates!r:.60}; it must be a list of 1 to {_MOST_STAGES} whole numbers"
        )
    for name in ("upsample_kernel_sizes", "resblock_kernel_sizes", "resblock_dilation_sizes"):
        sizes = config.get(name)
        lists = [sizes, *sizes] if isinstance(sizes, list) else []
        if any(isinstance(each, list) and len(each) > _MOST_STAGES for each in lists):
            raise UnsupportedCheckpoint(
                f"{reference}: {name} has more than {_MOST_STAGES} entries; no vocoder has that"
            )
    if math.prod(rates) > _MOST_SAMPLES:
        raise UnsupportedCheckpoint(
            f"{reference}: upsample_rates make {math.prod(rates):.3g} samples of a frame; {_MOST_SAMPLES} are the most"
        )


def check_bins(vocoder_reference: str, vocoder: Any, reference: str, config: Any) -> None:
    """Raise InvalidRequest where a vocoder takes other spectrograms than a model, of that configuration, makes."""
    if vocoder.config.model_in_dim != config.num_mel_bins:
        raise InvalidRequest(
            f"the vocoder {vocoder_reference} takes {vocoder.config.model_in_dim} mel bins, and {reference} makes "
            f"{config.num_mel_bins}"
        )


def vocoder_part(vocoder: Checkpoint, frames: int, tensors: Mapping[str, TensorEntry] | None = None) -> Part:
    """The component. `frames`: of a usual spectrogram."""
    return Part(
        tensors=vocoder.tensors if tensors is None else tensors,
        activation_bytes=lambda size: hifigan_activation(vocoder.config, frames, size),
    )
