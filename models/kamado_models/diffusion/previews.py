"""Previews: what an unfinished picture looks like, from its latents, without running the decoder.

The colours of a picture are nearly a linear function of its latents (K. Turner, "Decoding latents to RGB without
upscaling", 2022, in the forum of diffusers' authors). The function is fitted once for each model: a few smooth pictures
go through its own autoencoder, and least squares does the rest. So fine-tuned and unknown autoencoders are served too.
Autoencoders that are as small as those made for previews decode them themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from kamado.tasks.library.standin import ModelCall, stand_in
from kamado.weights.outside.tensors import device_of

from .table import makes

TINY_DECODER = "preview_vae"
"""The component that makes previews where a checkpoint has it: an AutoencoderTiny (O. Bohan Boer, "TAESD", 2023)."""
_SMALL = 3_000_000
"""Parameters: a TAESD has 2.4 million."""
_AUTOENCODERS = ("vae", "movq", "vqvae")
_UNSCALED = "movq"
"""Kandinsky's pipelines decode latents as they are, whatever the scaling factor says."""
_SAMPLES = 8
_SAMPLE_SIDE = 64
"""Pixels; at least so many that there are 4 latents to a side."""
_MAX_SCALE = 64
"""Pixels of a side for each latent; the samples of a fit grow with it."""
_RIDGE = 1e-4
"""Of the latents' mean square: keeps channels that say nothing of colour from having large factors."""


@dataclass(frozen=True, slots=True)
class ColourMap:
    """RGB in [-1, 1] from one latent as the autoencoder makes it."""

    factors: Tensor
    """(channels + 1, 3); the last row is what is added."""
    scale: int
    """Pixels of a side for each latent."""

    def colours(self, latents: Tensor) -> Tensor:
        """(channels, height, width) -> (height, width, 3)."""
        flat = latents.movedim(0, -1)
        factors = self.factors.to(flat.device)
        return flat @ factors[:-1] + factors[-1]


class Previews:
    """Makes the previews of one model's pictures. On the loop's thread only."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        self._tiny = components.get(TINY_DECODER)
        self._maps: dict[str, ColourMap | None] = {}
        """By autoencoder. None: it has no such map."""
        self._small = {name for name in _AUTOENCODERS if _is_small(components.get(name))}

    def picture(
        self,
        pipeline: Any,
        latents: Tensor,
        sizes: Sequence[tuple[int, int]],
        divert: Callable[[str, ModelCall], Any],
    ) -> Image.Image | None:
        """A picture of the first row of `latents`, as the pipeline's scheduler has them. None for what is no picture,
        and where a safety checker may yet take it away.

        `sizes` are sizes (width, height) in pixels that the picture may have: sequences of latents do not tell theirs.
        The first preview of a model makes one call of its autoencoder, through `divert`, as does a tiny decoder."""
        if getattr(pipeline, "safety_checker", None) is not None:
            return None  # it judges finished pictures only
        name = next((name for name in _AUTOENCODERS if getattr(pipeline, name, None) is not None), None)
        if name is None:
            return _picture(latents[0].movedim(0, -1), 1) if _is_pixels(latents) else None
        autoencoder = getattr(pipeline, name)
        if name not in self._maps:
            self._maps[name] = colour_map(autoencoder)
        fitted = self._maps[name]
        channels = _channels(autoencoder) if fitted is None else fitted.factors.shape[0] - 1
        if channels is None:
            return None
        scale = int(getattr(pipeline, "vae_scale_factor", 8)) if fitted is None else fitted.scale
        plane = latent_plane(
            latents,
            autoencoder,
            channels,
            [(w / scale, h / scale) for w, h in sizes],
            is_video=makes(type(pipeline).__name__) == "video",
        )
        if plane is None:
            return None
        if self._tiny is not None:
            tiny = stand_in(self._tiny, lambda call: divert(TINY_DECODER, call))
            return _decoded(tiny, unscaled(plane, tiny.config))
        if fitted is None:
            return None
        raw = plane if name == _UNSCALED else unscaled(plane, autoencoder.config)
        return (
            _decoded(autoencoder, raw) if name in self._small else _picture(fitted.colours(raw.float()), fitted.scale)
        )


def clean_latents(scheduler: Any, result: Any, model_output: Any) -> Tensor:
    """The scheduler's estimate of the finished latents where it has one, else the latents after the step.

    `result` is what its `step` returned for the prediction `model_output`."""
    previous: Tensor = result[0]
    estimate = result[1] if len(result) > 1 else None
    if estimate is None:
        estimate = _estimate(scheduler, previous, model_output)
    return estimate if isinstance(estimate, Tensor) and estimate.shape == previous.shape else previous


def colour_map(autoencoder: Any) -> ColourMap | None:
    """Fit the map of an autoencoder. None for one that makes no RGB pictures, that has no encoder, or
    whose latents stand for more than _MAX_SCALE pixels of a side."""
    weight = next((part.weight for part in autoencoder.modules() if isinstance(part, (nn.Conv2d, nn.Conv3d))), None)
    if weight is None or _channels(autoencoder) is None or not callable(getattr(autoencoder, "encode", None)):
        return None
    if autoencoder.config.get("in_channels", 3) != 3:
        return None
    scale = _scale(autoencoder.config)
    if scale > _MAX_SCALE:
        return None
    pixels = _sample_pictures(max(_SAMPLE_SIDE, 4 * scale)).to(device_of(autoencoder), weight.dtype)
    encoded = autoencoder.encode(pixels.unsqueeze(2) if weight.ndim == 5 else pixels)
    latents = _mean(encoded)
    if latents is None:
        return None
    latents = latents.float().reshape(*latents.shape[:2], *latents.shape[-2:])  # a video of one frame
    channels, height, width = latents.shape[1:]
    seen = nn.functional.adaptive_avg_pool2d(pixels.float(), (height, width)).movedim(1, -1).reshape(-1, 3)
    known = latents.movedim(1, -1).reshape(-1, channels)
    if not bool(known.isfinite().all()):
        return None  # an autoencoder that overflows in half precision
    known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1).double().cpu()
    normal = known.T @ known
    normal += torch.eye(channels + 1, dtype=torch.float64) * (_RIDGE * normal.diagonal().mean())
    factors = torch.linalg.solve(normal, known.T @ seen.double().cpu())
    return ColourMap(factors.float(), pixels.shape[-1] // width)


def latent_plane(
    latents: Tensor,
    autoencoder: Any,
    channels: int,
    sizes: Sequence[tuple[float, float]],
    *,
    is_video: bool = False,
) -> Tensor | None:
    """(channels, height, width) of the first row. None for latents of another form.

    Sequences (rows, tokens, channels x 4) hold a square of 2 x 2 latents in each token, as Flux has it; of those with
    the right number of tokens, the first of `sizes` (width, height) in latents is taken, else what is nearest to it."""
    row = latents[0]
    if row.ndim == 4 and row.shape[0] == channels:
        return row[:, row.shape[1] // 2]
    if row.ndim == 4 and row.shape[1] == channels:
        return row[row.shape[0] // 2]  # CogVideoX has time first
    if row.ndim == 3 and row.shape[0] == channels:
        return row
    if row.ndim != 2 or row.shape[1] not in (channels, 4 * channels):
        return None
    if isinstance(norm := getattr(autoencoder, "bn", None), nn.BatchNorm2d) and norm.running_mean is not None:
        assert norm.running_var is not None
        row = row.float() * (norm.running_var + norm.eps).sqrt() + norm.running_mean
    side = 1 if row.shape[1] == channels else 2
    if is_video:
        row = _middle_frame(row, [(w / side, h / side) for w, h in sizes])
    width, height = _rectangle(row.shape[0], [(w / side, h / side) for w, h in sizes])
    tiles = row.reshape(height, width, channels, side, side)
    return tiles.permute(2, 0, 3, 1, 4).reshape(channels, height * side, width * side)


def unscaled(plane: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Latents (channels, height, width) as the autoencoder makes them, from what the pipeline makes of these."""
    raw = plane.float() / float(config.get("scaling_factor") or 1.0)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        per_channel = [torch.tensor(values, device=raw.device).reshape(-1, 1, 1) for values in (mean, std)]
        return raw * per_channel[1] + per_channel[0]
    return raw + float(config.get("shift_factor") or 0.0)


def _estimate(scheduler: Any, previous: Tensor, model_output: Any) -> Any:
    config = getattr(scheduler, "config", {})
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        if config.get("stochastic_sampling") or not isinstance(model_output, Tensor):
            return None
        # The step went down a straight line; this goes on to its end.
        return previous - scheduler.sigmas[scheduler.step_index].to(previous.device) * model_output
    predicts = str(config.get("algorithm_type", "")).endswith("dpmsolver++") or config.get("predict_x0")
    outputs = getattr(scheduler, "model_outputs", None)
    return outputs[-1] if predicts and isinstance(outputs, list) and outputs else None


def _is_pixels(latents: Tensor) -> bool:
    return latents.ndim == 4 and latents.shape[1] in (1, 3)


def _channels(autoencoder: Any) -> int | None:
    config = autoencoder.config
    found = next((config[key] for key in ("latent_channels", "z_dim", "vq_embed_dim") if config.get(key)), None)
    return found if isinstance(found, int) else None


def _scale(config: Mapping[str, Any]) -> int:
    """About; the fit finds out."""
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return int(2 ** (len(levels) - 1)) if isinstance(levels, (list, tuple)) and levels else 8


def _sample_pictures(side: int) -> Tensor:
    """(pictures, 3, side, side) in [-1, 1], always the same: patches with edges and soft clouds. As in pictures of
    things, they differ more in brightness than in colour, and some are white or black."""
    draw = torch.Generator().manual_seed(0)
    pictures = []
    for cells, mode in ((4, "nearest"), (6, "bicubic")):
        shape = (_SAMPLES // 2, 1, cells, cells)
        grey, tint = torch.randn(shape, generator=draw), torch.randn(_SAMPLES // 2, 3, cells, cells, generator=draw)
        pictures.append(nn.functional.interpolate(1.2 * grey + 0.5 * tint, side, mode=mode).clamp(-1, 1))
    return torch.cat(pictures)


def _mean(encoded: Any) -> Tensor | None:
    """The latents of what `encode` returned."""
    if (distribution := getattr(encoded, "latent_dist", None)) is not None:
        encoded_mean: Tensor = distribution.mode()
        return encoded_mean
    return next((found for key in ("latents", "latent") if (found := getattr(encoded, key, None)) is not None), None)


def _middle_frame(row: Tensor, sizes: Sequence[tuple[float, float]]) -> Tensor:
    """Of the tokens of a video, one frame after another, those of the frame in the middle."""
    for width, height in sizes:
        cells = int(width) * int(height)
        if cells and row.shape[0] > cells and row.shape[0] % cells == 0:
            middle = row.shape[0] // cells // 2 * cells
            return row[middle : middle + cells]
    return row


def _rectangle(count: int, sizes: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """(width, height) with `count` cells."""
    for width, height in sizes:
        if int(width) * int(height) == count:
            return int(width), int(height)
    wanted = sizes[0][0] / sizes[0][1] if sizes else 1.0
    heights = (height for height in range(1, count + 1) if count % height == 0)
    height = min(heights, key=lambda height: abs(numpy.log(count / height / height / wanted)))
    return count // height, height


def _is_small(autoencoder: Any) -> bool:
    """Whether it decodes pictures, and does it about as fast as one that was made for previews."""
    if autoencoder is None or any(isinstance(part, nn.Conv3d) for part in autoencoder.modules()):
        return False
    return bool(sum(weight.numel() for weight in autoencoder.parameters()) <= _SMALL)


def _decoded(decoder: Any, raw: Tensor) -> Image.Image:
    """Of latents (channels, height, width) as `decoder` takes them."""
    weight = next(decoder.parameters())
    latents = raw[None].to(device_of(decoder), weight.dtype)
    return _picture(decoder.decode(latents).sample[0].movedim(0, -1).float(), 1)


def _picture(colours: Tensor, scale: int) -> Image.Image:
    """(height, width, 1 or 3) in [-1, 1], enlarged."""
    eight = ((colours.float() / 2 + 0.5).nan_to_num().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    image = Image.fromarray(eight[..., 0] if eight.shape[-1] == 1 else eight)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BILINEAR)
