"""Names of StyleGAN2's tensors in a widespread PyTorch port (`convs.0.conv.modulation.weight`). No torch."""

from __future__ import annotations

import re

_PORTED_PARTS = {
    "conv.weight": "weight", "conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength", "activate.bias": "bias", "bias": "bias",
}  # fmt: skip


def names(name: str) -> str:
    """The authors' name of a tensor of the port's synthesis; other names stay."""
    if name == "input.input":
        return "b4.const"
    if noise := re.fullmatch(r"noises\.noise_(\d+)", name):
        number = int(noise[1])
        return f"b{4 << (number + 1) // 2}.conv{1 - number % 2}.noise_const"
    found = re.fullmatch(r"(conv1|to_rgb1|(convs|to_rgbs)\.(\d+))\.(.+)", name)
    if found is None:
        return name
    number = int(found[3]) if found[3] else 0
    if found[4] == "upsample.kernel":
        return f"b{8 << number}.resample_filter"
    if found[1] in ("conv1", "to_rgb1"):
        place = "b4.conv1" if found[1] == "conv1" else "b4.torgb"
    elif found[2] == "convs":
        place = f"b{8 << number // 2}.conv{number % 2}"
    else:
        place = f"b{8 << number}.torgb"
    if found[4] == "conv.blur.kernel":
        return f"{place}.resample_filter"
    return f"{place}.{_PORTED_PARTS.get(found[4], found[4])}"
