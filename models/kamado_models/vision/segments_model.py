"""Models that tell what each pixel belongs to, loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kamado.checkpoint.types import Checkpoint
from kamado.media.maps import label_colors, with_opacity
from kamado.outputs import Output, Picture

from ..library.kinds import Bench
from ..library.loading import Loader
from .loading import Looker, picture_size
from .segments import chosen

_MOST_NAMED = 12


class SegmentModel:
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader, names: Sequence[str]) -> None:
        self._looker = Looker(checkpoint, loader)
        self._names = names
        self.modules: Mapping[str, Any] = {"network": self._looker.model}

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        return self._looker.prepared({**asked, "chosen": chosen(self._names, asked)})

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        returned = self._looker.looked(bench, asked)
        (found,) = self._looker.processor.post_process_semantic_segmentation(returned, [picture_size(asked)])
        segments = found.cpu().numpy()
        bench.note(self._told(segments))
        if asked["chosen"] is None:
            palette = np.asarray(label_colors(max(len(self._names), int(segments.max()) + 1)), np.uint8)
            return Picture(image=Image.fromarray(palette[segments]))
        inside = np.isin(segments, list(asked["chosen"]))
        if asked.get("style") == "mask":
            mask = Image.fromarray(inside.astype(np.uint8) * 255)
            return Picture(image=mask, pixels=inside[..., None].astype(np.float32))
        return Picture(image=with_opacity(asked["image"], inside))

    def _told(self, segments: Any) -> str:
        """What is in the picture, by share."""
        numbers, counts = np.unique(segments, return_counts=True)
        order = np.argsort(-counts)[:_MOST_NAMED]
        parts = []
        for place in order:
            number = int(numbers[place])
            name = self._names[number] if number < len(self._names) else str(number)
            parts.append(f"{name} {100 * counts[place] / segments.size:.1f} %")
        more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
        return f"the picture shows {', '.join(parts)}{more}"
