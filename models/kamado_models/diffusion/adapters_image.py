"""IP-Adapters (Ye et al. 2023): a picture as a prompt, for models with a UNet.

Such a request's UNet attends to the picture beside the text. Nothing of that stays on the shared UNet: the attention is
swapped while one of the request's forwards runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kamado.checkpoint.inspect import inspect
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage
from kamado.tasks.library.standin import ModelCall, stand_in
from kamado.weights.stream import lazy_tensors

from ..language.materialize import library_call, materialize
from .adapters_files import AdapterFile, shown

_ENCODER_PLACES = ("image_encoder", "../image_encoder", "../models/image_encoder")
"""From the adapter's file, as the published ones lie."""
_FACES = ("perceiver_resampler.proj_in.weight", "norm.weight")
"""What the pictures of those adapters that want a face's embedding go through."""

Divert = Callable[[ModelCall], Any]


class ImagePrompt:
    """An IP-Adapter for one UNet."""

    def __init__(
        self,
        processors: Mapping[str, nn.Module],
        projection: nn.Module,
        encoder: nn.Module | None,
        extractor: Any,
        config: Any,
    ) -> None:
        """`processors`: path of an attention -> what it does instead. `encoder` and `extractor` make embeddings of the
        picture; None: the pipeline has its own. `config`: that of the UNet, changed."""
        self.components = frozenset({"unet"})
        self.processors = processors
        self._projection = projection
        self._encoder = encoder
        self._extractor = extractor
        self._config = config
        self._modules = [*processors.values(), projection, *([encoder] if encoder is not None else [])]
        held = [tensor for module in self._modules for tensor in (*module.parameters(), *module.buffers())]
        self.nbytes = sum(tensor.nbytes for tensor in held)

    def move(self, device: str) -> None:
        """Put its tensors there."""
        for module in self._modules:
            module.to(device)

    def equip(self, pipeline: Any, divert: Divert) -> None:
        """Give a request's pipeline what it looks for. Calls of the encoder go to `divert`."""
        # Not as parts of the stand-in: its own attributes leave the shared parts of the model in place.
        pipeline.unet.__dict__.update(encoder_hid_proj=self._projection, _internal_dict=self._config)
        if self._encoder is not None:
            pipeline.image_encoder = stand_in(self._encoder, divert)
        if self._extractor is not None and pipeline.feature_extractor is None:
            pipeline.feature_extractor = self._extractor

    @contextmanager
    def working(self, attentions: Mapping[str, Any], weight: float) -> Iterator[None]:
        """While inside, the UNet with these attentions looks at the picture."""
        before = {path: attentions[path].processor for path in self.processors}
        try:
            for path, processor in self.processors.items():
                processor.scale = [weight]  # type: ignore[assignment]
                attentions[path].set_processor(processor)
            yield
        finally:
            for path, processor in before.items():
                attentions[path].set_processor(processor)


def attentions_of(models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """path -> attention to the text, of a UNet of diffusers; in the order in which adapters number them."""
    unet: Any = models.get("unet")
    if not hasattr(unet, "_convert_ip_adapter_image_proj_to_diffusers"):
        return {}
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return {
        name: unet.get_submodule(name)
        for name in names
        if not name.endswith("attn1") and "motion_modules" not in name and hasattr(unet.get_submodule(name), "to_k")
    }


def read_image_prompt(
    file: AdapterFile, models: Mapping[str, nn.Module], attentions: Mapping[str, Any], reference: str
) -> ImagePrompt:
    """The IP-Adapter in `file` for the model `reference`. Raises UnsupportedCheckpoint, InvalidRequest."""
    if not attentions:
        raise InvalidRequest(f"{file.what} is an IP-Adapter, and this version uses those only with a UNet")
    unet: Any = models["unet"]
    tensors = file.read()
    image, attention = _part(tensors, "image_proj."), _part(tensors, "ip_adapter.")
    faces = "proj.weight" not in image and any(name in image for name in _FACES)
    if faces or any("lora" in name for name in attention):
        raise UnsupportedCheckpoint(f"{file.what} wants the embedding of a face, which this version cannot make")
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise InvalidRequest(f"{file.what} is an IP-Adapter, and {reference} projects its prompts in another way")
    dtype = next(unet.parameters()).dtype
    processors = _processors(file, attention, attentions, _num_tokens(image), reference, dtype)
    try:
        with library_call():
            from diffusers.configuration_utils import FrozenDict
            from diffusers.models.embeddings import MultiIPAdapterImageProjection

            layer = unet._convert_ip_adapter_image_proj_to_diffusers(image, low_cpu_mem_usage=False)
            projection = MultiIPAdapterImageProjection([layer]).to(dtype)
    except Exception as error:  # whatever the library makes of tensors that do not belong together
        if is_shortage(error):
            raise
        raise UnsupportedCheckpoint(f"{file.what}: its image_proj is of no form that diffusers knows") from error
    encoder, extractor = _encoder(file, dtype) if models.get("image_encoder") is None else (None, None)
    config = FrozenDict({**unet.config, "encoder_hid_dim_type": "ip_image_proj"})
    for module in (projection, *processors.values()):
        module.eval().requires_grad_(False)
    return ImagePrompt(processors, projection, encoder, extractor, config)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _num_tokens(image: Mapping[str, Tensor]) -> int:
    """How many words the picture counts for, as diffusers reads it off."""
    if "latents" in image and image["latents"].ndim == 3:
        return image["latents"].shape[1]
    return 257 if "proj.3.weight" in image else 4


def _processors(
    file: AdapterFile,
    tensors: Mapping[str, Tensor],
    attentions: Mapping[str, Any],
    num_tokens: int,
    reference: str,
    dtype: torch.dtype,
) -> dict[str, nn.Module]:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    found: dict[str, nn.Module] = {}
    used = set()
    for number, (path, attention) in enumerate(attentions.items()):
        weights = {}
        shape = (attention.to_k.out_features, attention.to_k.in_features)
        for side in ("k", "v"):
            name = f"{2 * number + 1}.to_{side}_ip.weight"
            tensor = tensors.get(name)
            if tensor is None or tuple(tensor.shape) != shape:
                has = f"the shape {list(tensor.shape)}" if tensor is not None else "no such tensor"
                raise InvalidRequest(
                    f"{file.what} was made for another model: ip_adapter.{name} must have the shape {list(shape)} for "
                    f"{reference}, and there is {has}"
                )
            weights[f"to_{side}_ip.0.weight"] = tensor.to(dtype)
            used.add(name)
        with torch.device("meta"):
            processor: Any = IPAdapterAttnProcessor2_0(*shape, num_tokens=(num_tokens,))
        processor.load_state_dict(weights, assign=True)
        found[path] = processor
    if rest := [f"ip_adapter.{name}" for name in tensors if name not in used]:
        raise InvalidRequest(f"{file.what} was made for another model: {reference} has no place for {shown(rest)}")
    return found


def _encoder(file: AdapterFile, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """What makes embeddings of pictures, from beside the file: (model, image processor)."""
    with library_call():
        import transformers

        kind: Any = transformers.CLIPVisionModelWithProjection
    places: list[Path] = [file.path.parent / place for place in _ENCODER_PLACES]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    if folder is None:
        raise UnsupportedCheckpoint(f"{file.what}: its image_encoder is missing: a folder {places[0]} is needed")
    checkpoint = inspect(folder, reference=f"{file.what}: its image_encoder")
    if checkpoint.config.get("architectures") != [kind.__name__]:
        raise UnsupportedCheckpoint(f"{file.what}: its image_encoder must be a {kind.__name__}")
    plain = {key: value for key, value in checkpoint.config.items() if not key.startswith("_")}
    model, _ = materialize(
        kind, kind.config_class.from_dict(plain), lazy_tensors(checkpoint.tensors), dtype=dtype, device="cpu"
    )
    side = model.config.image_size
    with library_call():
        return model, transformers.CLIPImageProcessor(size=side, crop_size=side)
