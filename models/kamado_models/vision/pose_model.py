"""Models that find the joints of people, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from PIL import Image

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.media.poses import COCO_POINTS, draw_poses
from kamado.outputs import Output, Picture

from ..library.kinds import Bench
from ..library.loading import Loader
from .loading import Looker

_USUAL_THRESHOLD = 0.3


def build(checkpoint: Checkpoint, loader: Loader) -> PoseModel:
    """See Kind."""
    if find_spec("scipy") is None:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: ViTPose's image processor needs scipy; pip install scipy")
    looker = Looker(checkpoint, loader)
    known, points = len(COCO_POINTS), looker.config.num_labels
    if points != known:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} tells {points} points; this version draws COCO's {known}")
    if getattr(looker.config.backbone_config, "num_experts", 1) > 1:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} is of several data sets at once, which is not run")
    return PoseModel(looker)


class PoseModel:
    """See Generator."""

    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self.modules: Mapping[str, Any] = {"network": looker.model}

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        found: list[Mapping[str, Any]] = []
        pictures = asked["image"] if isinstance(asked["image"], tuple) else (asked["image"],)
        for picture in pictures:
            boxes = [list(box) for box in asked.get("boxes", ((0.0, 0.0, *map(float, picture.size)),))]
            (one,) = self._looker.prepared({**asked, "image": picture}, boxes=[boxes])
            found.append({**one, "boxes": boxes})
        return found

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        returned = self._looker.looked(bench, asked)
        returned.heatmaps = returned.heatmaps.float()
        (people,) = self._looker.processor.post_process_pose_estimation(
            returned, boxes=[asked["boxes"]], threshold=asked.get("threshold", _USUAL_THRESHOLD)
        )
        places = [
            {
                int(label): (float(x), float(y))
                for label, (x, y) in zip(person["labels"], person["keypoints"], strict=True)
            }
            for person in people
        ]
        bench.note(f"of {len(places)} boxes, points of the body were found in {sum(map(bool, places))}")
        picture: Image.Image = asked["image"]
        ground = picture if asked.get("style") == "overlay" else Image.new("RGB", picture.size)
        return Picture(image=draw_poses(ground, places))
