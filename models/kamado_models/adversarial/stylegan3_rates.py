"""Sampling rates of StyleGAN3's layers: Karras et al. 2021, "Alias-Free Generative Adversarial Networks". No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

DEFAULTS: Mapping[str, float] = {
    "first_cutoff": 2.0, "first_stopband": 2.0**2.1, "last_stopband_rel": 2.0**0.3, "margin_size": 10,
    "num_critical": 2, "output_scale": 0.25,
}  # fmt: skip
"""As the authors trained all of theirs."""


def rates(size: int, num_layers: int, settings: Mapping[str, float]) -> tuple[list[int], list[int]]:
    """Sampling rates and sizes of `num_layers` + 1 features of pictures of this size: section 3.2 of the paper."""
    last = size / 2
    critical = num_layers - settings["num_critical"]
    shares = [min(place / critical, 1.0) for place in range(num_layers + 1)]
    stop, last_stop = settings["first_stopband"], last * settings["last_stopband_rel"]
    stopbands = [stop * (last_stop / stop) ** share for share in shares]
    found = [int(2 ** math.ceil(math.log2(min(2 * each, size)))) for each in stopbands]
    sizes = [rate + 2 * int(settings["margin_size"]) for rate in found]
    return found, [*sizes[:-2], size, size]
