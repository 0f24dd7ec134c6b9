"""Tensors under their authors' names as diffusers and transformers name and cut them. Nothing is read for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils as library

from kamado.errors import UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage
from kamado.weights.deferred import ShapedTensor, converted
from kamado.weights.stream import renamed

from . import flux

_DENOISER = "model.diffusion_model."
_OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
_STRIPPED = (
    *("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
    *("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.", "text_encoders.t5xxl.transformer."),
)
_RAISED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What conversions raise for names and shapes that they do not expect."""

Tensors = Mapping[str, ShapedTensor]


def for_diffusers(model: Any, tensors: Tensors, what: str) -> Tensors:
    """The tensors for `model`, a model of diffusers. Those that have its names already stay as they are; `what` names
    it in errors. Raises UnsupportedCheckpoint."""
    conversion = _CONVERSIONS.get(type(model).__name__)
    if conversion is None or tensors.keys() == model.state_dict().keys():
        return tensors
    return _converted(tensors, lambda given: conversion(given, dict(model.config)), what)


def for_transformers(kind: Any, config: Any, tensors: Tensors, what: str) -> Tensors:
    """The tensors for a text encoder of class `kind`. Raises UnsupportedCheckpoint."""
    first = next(iter(tensors), "")
    if start := next((each for each in _OPEN_CLIP if first.startswith(each)), None):
        model = SimpleNamespace(config=config)
        return _converted(tensors, lambda given: library.convert_open_clip_checkpoint(model, given, prefix=start), what)
    prefix = next((each for each in _STRIPPED if first.startswith(each)), "")
    plain = {name: tensor for name, tensor in renamed(tensors, strip=prefix).items() if not _is_extra(kind, name)}
    width = getattr(config, "projection_dim", None)
    if _has_projection(kind) and "text_projection.weight" not in plain and width == config.hidden_size:
        # Files of Stable Diffusion 3 leave it out: its authors' code does not project these states.
        return converted(plain, lambda given: {**given, "text_projection.weight": torch.eye(width)})
    return plain


def _has_projection(kind: Any) -> bool:
    return "WithProjection" in kind.__name__


def _is_extra(kind: Any, name: str) -> bool:
    """What files of one text encoder hold beside it."""
    return (
        name in ("logit_scale", "spiece_model")
        or name.endswith("position_ids")
        or (name == "text_projection.weight" and not _has_projection(kind))
    )


def _converted(
    tensors: Tensors, conversion: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]], what: str
) -> Tensors:
    try:
        return converted(tensors, conversion)
    except _RAISED as error:
        if is_shortage(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedCheckpoint(f"{what}: its tensors are not in a layout that is known: {reason}") from error


def _unet(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Mapping[str, torch.Tensor]:
    prefixed = {name if name.startswith(_DENOISER) else _DENOISER + name: each for name, each in tensors.items()}
    return library.convert_ldm_unet_checkpoint(prefixed, config=config)  # type: ignore[no-any-return]


def _vae(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Mapping[str, torch.Tensor]:
    return library.convert_ldm_vae_checkpoint(tensors, config)  # type: ignore[no-any-return]


def _sd3(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Mapping[str, torch.Tensor]:
    return library.convert_sd3_transformer_checkpoint_to_diffusers(tensors)  # type: ignore[no-any-return]


def _flux(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Mapping[str, torch.Tensor]:
    # diffusers' own conversion knows one width.
    return flux.diffusers_names({name.removeprefix(_DENOISER): each for name, each in tensors.items()})


_CONVERSIONS: Mapping[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], Mapping[str, torch.Tensor]]] = {
    "UNet2DConditionModel": _unet,
    "AutoencoderKL": _vae,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
