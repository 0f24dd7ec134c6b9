"""How much a quantized model differs from the one it was made of, and how much is too much. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from .checkpoint.strict_json import read_json_object
from .errors import UnsupportedCheckpoint
from .quant import recorded

FILE = "kamado_quality.json"
"""Where a quantized checkpoint keeps it."""

FLOORS: Mapping[str, Mapping[str, tuple[str, float]]] = {
    "text": {"kl_divergence": ("most", 1.0), "agreement": ("least", 0.5), "perplexity_ratio": ("most", 1.5)},
    "image": {"psnr_db": ("least", 12.0), "ssim": ("least", 0.3)},
}
"""Beyond these a model is broken, not coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures of a comparison with the reference precision.

    `text`: over the tokens of a text that comes with Kamado, `kl_divergence` (mean, in nats, of the next token's
    distribution), `agreement` (share of equal most probable tokens), `perplexity`, `perplexity_ratio` (to that of the
    reference). `image`: `psnr_db` (at most 100) and `ssim` of pictures from the same seed, pixels in [0, 1].
    """

    kind: str
    figures: Mapping[str, float]
    quant: Any
    """As `Runtime.load` takes it."""
    reference: str
    """What it was compared with."""
    measured_on: str
    """Device and precision."""

    def problems(self) -> list[str]:
        """What lies beyond FLOORS, a sentence each."""
        found = []
        for name, (direction, bound) in FLOORS[self.kind].items():
            value = self.figures.get(name, float("nan"))
            is_fine = isfinite(value) and (value <= bound if direction == "most" else value >= bound)
            if not is_fine:
                found.append(f"{name.replace('_', ' ')} is {value:.3g}, where {bound:g} is the {direction} allowed")
        return found

    def sentence(self) -> str:
        """For people."""
        listed = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.figures.items())
        return f"{listed} (against {self.reference}, {self.measured_on})"

    def as_json(self) -> dict[str, Any]:
        """For FILE."""
        return {
            "kind": self.kind,
            "figures": dict(self.figures),
            "quant": self.quant,
            "reference": self.reference,
            "measured_on": self.measured_on,
        }


def read_quality(path: Path) -> Quality:
    """Of a file that `as_json` went to. Raises UnsupportedCheckpoint."""
    told = read_json_object(path)
    figures = told.get("figures")
    if told.get("kind") not in tuple(FLOORS) or not isinstance(figures, Mapping):
        raise UnsupportedCheckpoint(f"{path} does not hold the quality of a quantized model")
    return Quality(
        kind=told["kind"],
        figures={str(name): float(value) for name, value in figures.items() if isinstance(value, (int, float))},
        quant=recorded(told.get("quant")),
        reference=str(told.get("reference", "")),
        measured_on=str(told.get("measured_on", "")),
    )
