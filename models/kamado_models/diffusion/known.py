"""Classes of which it is known that they compute each row for itself; the tests compare every one of them.

Others are compared when a batch of theirs comes up for the first time, at the cost of making its calls twice.
"""

from __future__ import annotations

from collections.abc import Mapping

ROWS_APART: Mapping[str, frozenset[str]] = {
    "AutoencoderKL": frozenset({"generator"}),
    "CLIPTextModel": frozenset(),
    "CLIPTextModelWithProjection": frozenset(),
    "FluxTransformer2DModel": frozenset(),
    "SD3Transformer2DModel": frozenset(),
    "T5EncoderModel": frozenset(),
    "UNet2DConditionModel": frozenset(),
    "UNet2DModel": frozenset(),
}
"""By class: arguments that it takes and does not use."""
