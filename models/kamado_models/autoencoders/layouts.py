"""What the autoencoders of diffusers take and give, by class and configuration. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint

Config = Mapping[str, Any]
Latents = Literal["normal", "codes", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One class of autoencoders."""

    spatial: Callable[[Config], int]
    """So many pixels, in each dimension, are one latent."""
    latents: Latents = "normal"
    """`normal`: the encoder gives a distribution for each; `codes`: they are looked up in a table; or plain numbers."""
    temporal: Callable[[Config], int] | None = None
    """So many frames are one latent, and the first frame is one by itself. None: it is one of pictures."""
    frames_are_rows: bool = False
    """Whether frames are a batch of pictures for it."""
    takes_video: bool = True
    """Of those with frames: whether they were trained on more than one."""
    tiling: bool = False
    """Whether large pictures can be cut into tiles by diffusers."""
    width: str = "block_out_channels"
    """The key whose first value is the number of features at full size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one checkpoint."""

    name: str
    layout: Layout
    spatial: int
    temporal: int
    channels: int
    """Of a latent."""
    features: int
    """At full size."""

    @property
    def is_video(self) -> bool:
        """Whether it is one of videos."""
        return self.layout.takes_video and (self.layout.temporal is not None or self.layout.frames_are_rows)

    @property
    def has_frames(self) -> bool:
        """Whether its tensors have a dimension of frames."""
        return self.layout.temporal is not None


def _levels(key: str = "block_out_channels") -> Callable[[Config], int]:
    return lambda config: 2 ** (len(config[key]) - 1)


def _value(key: str, usual: int) -> Callable[[Config], int]:
    return lambda config: int(config.get(key) or usual)


def _product(key: str, usual: tuple[int, ...]) -> Callable[[Config], int]:
    return lambda config: math.prod(config.get(key, usual))


def _ltx(ratio: str, patch: str, usual: int) -> Callable[[Config], int]:
    def found(config: Config) -> int:
        scaled = sum(map(bool, config.get("spatio_temporal_scaling", (True, True, True, False))))
        return int(config.get(ratio) or int(config.get(patch, usual)) * 2**scaled)

    return found


LAYOUTS: Mapping[str, Layout] = {
    "AutoencoderKL": Layout(spatial=_levels(), tiling=True),
    "AsymmetricAutoencoderKL": Layout(spatial=_levels("down_block_out_channels"), width="down_block_out_channels"),
    "AutoencoderKLHunyuanImage": Layout(spatial=_value("spatial_compression_ratio", 32), tiling=True),
    "VQModel": Layout(spatial=_levels(), latents="codes"),
    "AutoencoderTiny": Layout(
        spatial=_levels("encoder_block_out_channels"), latents="plain", tiling=True, width="encoder_block_out_channels"
    ),
    "AutoencoderDC": Layout(
        spatial=_levels("encoder_block_out_channels"), latents="plain", tiling=True, width="encoder_block_out_channels"
    ),
    "AutoencoderKLTemporalDecoder": Layout(spatial=_levels(), frames_are_rows=True),
    "AutoencoderKLWan": Layout(
        spatial=_value("scale_factor_spatial", 8), temporal=_value("scale_factor_temporal", 4), tiling=True,
        width="base_dim",
    ),
    "AutoencoderKLQwenImage": Layout(
        spatial=lambda config: 2 ** len(config.get("temperal_downsample", (False, True, True))),
        temporal=lambda config: 1, takes_video=False, tiling=True, width="base_dim",
    ),
    "AutoencoderKLLTXVideo": Layout(
        spatial=_ltx("spatial_compression_ratio", "patch_size", 4),
        temporal=_ltx("temporal_compression_ratio", "patch_size_t", 1), tiling=True,
    ),
    "AutoencoderKLCogVideoX": Layout(
        spatial=_levels(), temporal=_value("temporal_compression_ratio", 4), tiling=True
    ),
    "AutoencoderKLHunyuanVideo": Layout(
        spatial=_value("spatial_compression_ratio", 8), temporal=_value("temporal_compression_ratio", 4), tiling=True
    ),
    "AutoencoderKLMochi": Layout(
        spatial=_product("spatial_expansions", (2, 2, 2)), temporal=_product("temporal_expansions", (1, 2, 3)),
        tiling=True, width="encoder_block_out_channels",
    ),
    "AutoencoderKLCosmos": Layout(
        spatial=_value("spatial_compression_ratio", 8), temporal=_value("temporal_compression_ratio", 8), tiling=True,
        width="encoder_block_out_channels",
    ),
}  # fmt: skip
"""By class."""
_CHANNELS = ("latent_channels", "z_dim")


def known(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is one of `LAYOUTS`."""
    return checkpoint.layout == "component" and checkpoint.config.get("_class_name") in LAYOUTS


def facts(checkpoint: Checkpoint) -> Facts:
    """Of a checkpoint that is `known`. Raises UnsupportedCheckpoint."""
    config, name = checkpoint.config, str(checkpoint.config["_class_name"])
    layout = LAYOUTS[name]
    try:
        width = config.get(layout.width, 128)
        found = Facts(
            name=name,
            layout=layout,
            spatial=layout.spatial(config),
            temporal=1 if layout.temporal is None else layout.temporal(config),
            channels=int(next((config[key] for key in _CHANNELS if key in config), 4)),
            features=int(width[0] if isinstance(width, (list, tuple)) else width),
        )
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: config.json of {name} cannot be used: {error}") from error
    if not (0 < found.spatial <= 1024 and 0 < found.temporal <= 256 and found.channels > 0 and found.features > 0):
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: config.json of {name} has impossible sizes")
    return found
