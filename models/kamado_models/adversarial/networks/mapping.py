"""From latents to styles, in StyleGAN2 and StyleGAN3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ops import ScaledLinear, stored, unit_length

_RATE = 0.01
"""Of learning, as published."""


class Mapping(nn.Module):
    """Latents, and classes where there are some, to styles: w."""

    def __init__(
        self, z_size: int, w_size: int, num_layers: int, *, num_classes: int, embedded: int, mean: bool
    ) -> None:
        """`embedded`: numbers of an embedded class; `mean`: whether the mean of w is stored."""
        super().__init__()
        if num_classes:
            self.embed = ScaledLinear(num_classes, embedded)
        self._layers = [f"fc{number}" for number in range(num_layers)]
        for number, name in enumerate(self._layers):
            inputs = w_size if number else z_size + (embedded if num_classes else 0)
            self.add_module(name, ScaledLinear(inputs, w_size, rate=_RATE, rectified=True))
        if mean:
            self.w_avg = stored(w_size)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """z (rows, z), shares of classes (rows, classes) -> (rows, w)."""
        x = unit_length(z)
        if classes is not None:
            x = torch.cat((x, unit_length(self.embed(classes))), dim=1)
        for name in self._layers:
            x = self.get_submodule(name)(x)
        return x
