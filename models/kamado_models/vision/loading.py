"""Loading and calling models of transformers that look at one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.media.pictures import flattened

from ..library.kinds import Bench, architecture_of
from ..library.loading import Loader


class Looker:
    """A model with what prepares pictures for it."""

    def __init__(self, checkpoint: Checkpoint, loader: Loader) -> None:
        """Raises UnsupportedCheckpoint."""
        config = loader.folder_call(transformers.AutoConfig.from_pretrained, what="configuration")
        self.config = config
        self.processor = loader.folder_call(transformers.AutoImageProcessor.from_pretrained, what="image processor")
        model_class = getattr(transformers, architecture_of(checkpoint))
        try:
            self.model = loader.pretrained("network", model_class, config, checkpoint.tensors)
        except ImportError as error:  # some of these classes want scipy
            first = " ".join(str(error).split())[:160]
            raise UnsupportedCheckpoint(f"{checkpoint.reference} cannot be run here: {first}") from error

    def prepared(self, asked: Mapping[str, Any], **settings: Any) -> list[Mapping[str, Any]]:
        """One answer for each picture of a request, with what the model is to see. `settings`: of the processor.
        Raises InvalidRequest."""
        found: list[Mapping[str, Any]] = []
        pictures = asked["image"] if isinstance(asked["image"], tuple) else (asked["image"],)
        for picture in pictures:
            opaque = flattened(picture, "RGB")
            try:
                inputs = self.processor(images=opaque, return_tensors="pt", **settings)
            except (ValueError, RuntimeError, ZeroDivisionError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
                raise InvalidRequest(
                    f"the picture of {opaque.width} x {opaque.height} cannot be prepared for the model: {first}"
                ) from error
            found.append({**asked, "image": opaque, "inputs": dict(inputs)})
        return found

    def looked(self, bench: Bench, asked: Mapping[str, Any]) -> Any:
        """What the model returns."""
        given = {
            name: tensor.to(bench.device, bench.dtype if tensor.is_floating_point() else None)
            for name, tensor in asked["inputs"].items()
        }
        return bench.model("network")(**given)


def picture_size(asked: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the picture that was given."""
    image = asked["image"]
    return image.height, image.width
