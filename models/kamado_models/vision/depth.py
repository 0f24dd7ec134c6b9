"""Models that tell how far away things are: header data. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Options, one_of

from ..library.kinds import About, Part, architecture_of
from .common import described, network, picture_options

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

ARCHITECTURES = frozenset({"DPTForDepthEstimation", "DepthAnythingForDepthEstimation", "GLPNForDepthEstimation"})
TASK = "depth-estimation"


class DepthKind:
    """See Kind."""

    name = "depth"
    about = About(
        architectures=tuple(sorted(ARCHITECTURES)),
        tasks=(TASK,),
        oracle="transformers' model and post-processing, tiny random checkpoints",
        batching="pictures of equal size",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint) in ARCHITECTURES

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return (TASK,)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("image",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        return picture_options("a depth model", {"style": one_of("grey", "deep", "color")})

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return described(checkpoint) | {"metres": is_metric(checkpoint)}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        return network(checkpoint)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .depth_model import DepthModel

        return DepthModel(checkpoint, loader, in_metres=is_metric(checkpoint))

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind. Nothing more can be told."""


def is_metric(checkpoint: Checkpoint) -> bool:
    """Whether it tells distances in metres; others tell something like their inverse, of no scale."""
    is_glpn = architecture_of(checkpoint).startswith("GLPN")
    return is_glpn or checkpoint.config.get("depth_estimation_type") == "metric"
