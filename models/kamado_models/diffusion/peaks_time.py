"""How much memory the temporary tensors of videos and sounds take, estimated from configurations. Imports no torch.

Frames count like more pixels, sounds like spectrograms, which these models treat as pictures, or like samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_CHUNKS: Mapping[str, int] = {
    "AutoencoderKL": 16,
    "AutoencoderKLCogVideoX": 8,
    "AutoencoderKLHunyuanVideo": 16,
    "AutoencoderKLTemporalDecoder": 14,
    "AutoencoderKLWan": 3,
}
"""Frames that a decoder, or the pipeline that calls it, makes at once, as measured; others make all."""
_HEAVIER = {"AutoencoderKLCogVideoX": 4}
"""How much more they take for a frame than others: its normalization has the latents enlarged beside the states."""
_COPIES = 2 * 3
"""Of the finished frames, while they are put together."""
_WAVE_COPIES = 5
"""Of a sound's states at full rate, as measured."""
_RATIOS = ("temporal_compression_ratio", "scale_factor_temporal")
_MAX = 1 << 20
_MAX_SECONDS = 100_000.0
_SPECTROGRAM = (64, 100)
"""Bands, and rows a second, of models whose vocoder does not say it."""


def spatial_scale(config: Mapping[str, Any]) -> int | None:
    """Pixels of a side for each latent where an autoencoder of videos says it."""
    for name in ("spatial_compression_ratio", "scale_factor_spatial"):
        if found := _number(config, name):
            return found
    halving = config.get("spatio_temporal_scaling")
    if isinstance(halving, (list, tuple)) and len(halving) <= 16:
        return int(max(_number(config, "patch_size"), 1) * 2 ** sum(map(bool, halving)))
    return None


def latent_frames(config: Mapping[str, Any], frames: int) -> int:
    """Latents that so many frames become in an autoencoder."""
    ratio = next((found for name in _RATIOS if (found := _number(config, name))), 1)
    for name in ("temperal_downsample", "spatio_temporal_scaling"):  # written like that
        halving = config.get(name)
        if ratio == 1 and isinstance(halving, (list, tuple)) and len(halving) <= 16:
            ratio = 2 ** sum(map(bool, halving)) * max(_number(config, "patch_size_t"), 1)
    return (frames - 1) // ratio + 1


def joined_frames(config: Mapping[str, Any]) -> int:
    """Latents along time that a transformer joins in a token."""
    patch = config.get("patch_size")
    if isinstance(patch, (list, tuple)) and len(patch) == 3 and type(patch[0]) is int:
        return max(patch[0], 1)
    return max(_number(config, "patch_size_t"), 1)


def video_numbers(config: Mapping[str, Any], frames: int, of_a_pixel: int) -> int:
    """Numbers that decoding lays out for each pixel of a frame, where a picture takes `of_a_pixel`."""
    kind = str(config.get("_class_name"))
    at_once = min(frames, _CHUNKS.get(kind, frames)) * _HEAVIER.get(kind, 1)
    patch = _number(config, "patch_size") or 1
    return at_once * max(of_a_pixel // patch**2, 1) + frames * _COPIES


def spectrogram_size(vocoder: Mapping[str, Any], seconds: float) -> tuple[int, int]:
    """(bands, rows) of the spectrogram that a vocoder makes a sound from."""
    rates = vocoder.get("upsample_rates")
    rate, bands = _number(vocoder, "sampling_rate"), _number(vocoder, "model_in_dim")
    step = math.prod(each for each in rates if type(each) is int) if isinstance(rates, (list, tuple)) else 0
    rows = rate / step if rate and step > 0 else _SPECTROGRAM[1]
    return bands or _SPECTROGRAM[0], max(int(min(seconds, _MAX_SECONDS) * rows), 1)


def vocoder_numbers(config: Mapping[str, Any], seconds: float) -> int:
    """Numbers that a vocoder (HiFi-GAN) lays out: each level doubles the rate or more, and has half of the width."""
    rates = config.get("upsample_rates")
    levels = min(len(rates), 16) if isinstance(rates, (list, tuple)) else 0
    width = max((_number(config, "upsample_initial_channel") or 512) >> levels, 1)
    samples = int(min(seconds, _MAX_SECONDS) * (_number(config, "sampling_rate") or 16_000))
    return samples * width * _WAVE_COPIES


def wave_numbers(config: Mapping[str, Any], seconds: float, latents: int) -> int | None:
    """Numbers that an autoencoder of samples (Oobleck) lays out; None for any other model. `latents`: how many it
    always decodes; 0: those of the sound."""
    width, rate = _number(config, "decoder_channels"), _number(config, "sampling_rate")
    if not width or not rate:
        return None
    ratios = config.get("downsampling_ratios")
    step = math.prod(each for each in ratios if type(each) is int) if isinstance(ratios, (list, tuple)) else 1
    samples = min(latents * step, _MAX << 8) if latents else int(min(seconds, _MAX_SECONDS) * rate)
    return samples * width * _WAVE_COPIES


def sound_tokens(config: Mapping[str, Any]) -> int:
    """Tokens of a transformer of sounds, which always has as many; 0 for others."""
    return _number(config, "sample_size") if config.get("_class_name") == "StableAudioDiTModel" else 0


def _number(config: Mapping[str, Any], name: str) -> int:
    """A whole number of a configuration; 0 where there is none."""
    value = config.get(name)
    return min(value, _MAX) if type(value) is int and value > 0 else 0
