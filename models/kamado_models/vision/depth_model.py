"""Models that tell how far away things are, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from kamado.checkpoint.types import Checkpoint
from kamado.errors import GenerationFailed
from kamado.media.maps import coloured, deep_picture, stretched
from kamado.outputs import Output, Picture

from ..library.kinds import Bench
from ..library.loading import Loader
from .loading import Looker, picture_size


class DepthModel:
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader, *, in_metres: bool) -> None:
        self._looker = Looker(checkpoint, loader)
        self._in_metres = in_metres
        self.modules: Mapping[str, Any] = {"network": self._looker.model}

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        return self._looker.prepared(asked)

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator. In the picture, what is near is white."""
        returned = self._looker.looked(bench, asked)
        (found,) = self._looker.processor.post_process_depth_estimation(returned, [picture_size(asked)])
        depth = found["predicted_depth"].float().cpu().numpy().reshape(picture_size(asked))  # 1 x 1 is squeezed
        if not np.isfinite(depth).all():
            raise GenerationFailed("the model made no depth: it holds NaN or infinity; try --dtype float32")
        if self._in_metres:
            bench.note(f"from {depth.min():.2f} m, white, to {depth.max():.2f} m, black")
        near = stretched(-depth if self._in_metres else depth)
        style = asked.get("style", "grey")
        if style == "deep":
            image = deep_picture(near)
        elif style == "color":
            image = coloured(1 - near)
        else:
            image = Image.fromarray((near * 255).round().astype(np.uint8))
        return Picture(image=image, pixels=near[..., None])
