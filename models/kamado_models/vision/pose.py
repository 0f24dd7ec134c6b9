"""Models that find the joints of people: header data. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number, one_of

from ..library.kinds import About, Part, architecture_of
from .common import described, network, picture_options

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

ARCHITECTURE = "VitPoseForPoseEstimation"
TASK = "keypoint-detection"
MAX_BOXES = 256


class PoseKind:
    """See Kind. ViTPose."""

    name = "pose"
    about = About(
        architectures=(ARCHITECTURE,),
        tasks=(TASK,),
        oracle="transformers' model and post-processing, tiny random checkpoints",
        batching="requests of as many people",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint) == ARCHITECTURE

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return (TASK,)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks = {"boxes": _boxes, "threshold": number(0.0, 1.0), "style": one_of("skeleton", "overlay")}
        return picture_options("a pose model", checks)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return described(checkpoint)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        return network(checkpoint, (256, 192))

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .pose_model import build

        return build(checkpoint, loader)

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if find_spec("scipy") is None:
            raise InvalidRequest(f"{checkpoint.reference}: ViTPose's image processor needs scipy; pip install scipy")


def _boxes(name: str, value: Any) -> tuple[tuple[float, ...], ...]:
    """[left, top, width, height] of each person, in pixels; one such, or several."""
    rows = value if isinstance(value, (list, tuple)) else ()
    rows = [rows] if rows and not isinstance(rows[0], (list, tuple)) else rows
    if not 0 < len(rows) <= MAX_BOXES:
        raise InvalidRequest(f"{name} must be 1 to {MAX_BOXES} boxes [left, top, width, height], not {value!r:.80}")
    side, size = number(-1e5, 1e5), number(0.0, 1e5, above=True)
    for row in rows:
        if not isinstance(row, (list, tuple)) or len(row) != 4:
            raise InvalidRequest(f"{name}: a box is [left, top, width, height] in pixels, not {row!r:.80}")
    return tuple(
        tuple(check(name, part) for check, part in zip((side, side, size, size), row, strict=True)) for row in rows
    )
