"""transformers' processor of a checkpoint, also where parts of it want libraries that are not here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kamado.errors import UnsupportedCheckpoint

from .frames import FrameProcessor

_IMAGES_OF_PIXTRAL = "transformers.models.pixtral.image_processing_pixtral"

_CROP_FRAMES = ("LlavaNextVideoProcessor", "VideoLlavaProcessor")
"""Classes whose frames are not cut like pictures."""
_OF_A_TILE = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")


def processor_class(name: str) -> Any:
    """The class of that name. Raises UnsupportedCheckpoint where it wants what is not here."""
    import transformers

    if name == "PixtralProcessor":
        return _pixtral()
    found = getattr(transformers, name, None)
    if found is None:
        raise UnsupportedCheckpoint(f"the installed transformers has no {name}")
    if "dummy" in found.__module__:
        module = name.removesuffix("Processor").lower()
        raise UnsupportedCheckpoint(f"{name} ({module}) wants libraries that are not installed here")
    return found


@contextmanager
def without_words(own: Any) -> Iterator[None]:
    """While inside, SmolVLM's class can be made without num2words: it needs that only for how many frames a video has,
    but asks for it at once."""
    module: Any = sys.modules[own.__module__]
    if own.__name__ != "SmolVLMProcessor" or module.num2words is not None:
        yield
        return
    module.num2words = str
    try:
        yield
    finally:
        module.num2words = None


def built(own: Any, folder: Path, videos: Mapping[str, Any]) -> Any:
    """A processor of the class `own` from the files in `folder`; its videos are for FrameProcessor where transformers'
    own class cannot be had, with the settings `videos`."""
    names = own.get_attributes()
    if "video_processor" not in names and own.__name__ != "PixtralProcessor":
        return own.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.utils.import_utils import is_torchvision_available

    if is_torchvision_available():
        return own.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    parts: dict[str, Any] = {}
    for name in names:
        if name == "tokenizer":
            parts[name] = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        elif name == "feature_extractor":
            from transformers import AutoFeatureExtractor

            parts[name] = AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
        elif name == "image_processor":
            parts[name] = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    settings, _ = own.get_processor_dict(str(folder), local_files_only=True)
    # The class checks its parts' types; everything else of it runs as it is.
    stand_in: Any = type(own.__name__, (own,), {"check_argument_for_proper_class": _any_class})
    with without_words(own):
        processor = stand_in.from_args_and_dict([parts.get(name) for name in names], settings)
    if "video_processor" in names:
        images = parts["image_processor"]
        processor.video_processor = FrameProcessor(_whole(images) if own.__name__ in _CROP_FRAMES else images, videos)
    return processor


def _whole(images: Any) -> Any:
    """What makes of a picture the middle of it, as large as a tile that the processor `images` cuts pictures into."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(**{name: getattr(images, name) for name in _OF_A_TILE})


def _any_class(self: Any, name: str, argument: Any) -> type:
    return type(argument)


def _pixtral() -> Any:
    """Its module takes one function from one that wants torchvision, and that function is elsewhere as well."""
    try:
        return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    except ImportError:
        pass
    plain = importlib.import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    sys.modules[_IMAGES_OF_PIXTRAL] = plain
    try:
        return importlib.import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[_IMAGES_OF_PIXTRAL]
