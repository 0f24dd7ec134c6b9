"""Models that tell what each pixel belongs to: header data. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, one_of, several, text

from ..library.kinds import About, Part, architecture_of
from .common import described, network, picture_options

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

ARCHITECTURES = frozenset(
    {
        *("SegformerForSemanticSegmentation", "BeitForSemanticSegmentation", "DPTForSemanticSegmentation"),
        *("MobileViTForSemanticSegmentation", "MobileNetV2ForSemanticSegmentation"),
        *("MaskFormerForInstanceSegmentation", "Mask2FormerForUniversalSegmentation"),
    }
)
TASK = "image-segmentation"
BACKGROUND = "background"


class SegmentKind:
    """See Kind."""

    name = "segments"
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
        checks = {"labels": several(text(longest=200)), "style": one_of("cutout", "mask", "map")}
        return picture_options("a segmentation model", checks)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        names = labels(checkpoint)
        return described(checkpoint) | {"labels": len(names), "first_labels": ", ".join(names[:8])}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        return network(checkpoint)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .segments_model import SegmentModel

        return SegmentModel(checkpoint, loader, labels(checkpoint))

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        chosen(labels(checkpoint), asked)


def labels(checkpoint: Checkpoint) -> list[str]:
    """Names of what it knows, by number."""
    named = checkpoint.config.get("id2label")
    if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
        return ["LABEL_0", "LABEL_1"]
    by_number = {int(key): str(value) for key, value in named.items()}
    return [by_number.get(number, f"LABEL_{number}") for number in range(min(max(by_number, default=-1) + 1, 100_000))]


def chosen(names: Sequence[str], asked: Mapping[str, Any]) -> frozenset[int] | None:
    """Numbers of the labels to cut out: those that were asked for, all but the background where the model has such, or
    None: no choice was made. Raises InvalidRequest."""
    style = asked.get("style")
    if "labels" not in asked:
        known = [number for number, name in enumerate(names) if name.lower() == BACKGROUND]
        if style == "map" or (style is None and not known):
            return None
        if not known:
            raise InvalidRequest(
                f"style {style}: say which labels; this model knows {', '.join(names[:12])}"
                + (", ..." if len(names) > 12 else "")
            )
        return frozenset(range(len(names))) - frozenset(known)
    if style == "map":
        raise InvalidRequest("style map shows all labels; leave labels out, or use style cutout or mask")
    numbers = {name.lower(): number for number, name in enumerate(names)}
    unknown = [label for label in asked["labels"] if label.lower() not in numbers]
    if unknown:
        listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise InvalidRequest(f"labels: {unknown[0]!r:.80} is none of this model's: {listed}")
    return frozenset(numbers[label.lower()] for label in asked["labels"])
