"""The codec of HiggsAudio v2: transformers' X-Codec with projections around its codebooks. transformers' own class for
it needs torchaudio, for the one function that is written here."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import HiggsAudioV2TokenizerConfig, XcodecModel

_CROSSINGS = 6
"""Zero crossings of the sinc on each side."""
_ROLLOFF = 0.99
"""Of the lower Nyquist frequency, where the filter ends."""
_EDGE = 160
"""Samples of silence on each side of what the semantic model hears."""


class HiggsCodec(XcodecModel):
    """See transformers' HiggsAudioV2TokenizerModel: the same tensors, `encode` and `decode`."""

    config_class = HiggsAudioV2TokenizerConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._keys_to_ignore_on_load_unexpected = {"semantic_model.masked_spec_embed"}
        books = self.quantizer.quantizers
        self.quantizer.quantizers = nn.ModuleList([_Projected(config, each.codebook) for each in books])

    def _extract_semantic_features(self, input_values: Any) -> Any:
        """Mean over the semantic model's layers (rows, frames, size) of sound (rows, 1, samples)."""
        sound = resampled(input_values[:, 0], self.config.sample_rate, self.config.semantic_sample_rate)
        layers = self.semantic_model(functional.pad(sound, (_EDGE, _EDGE)), output_hidden_states=True).hidden_states
        features = torch.stack(layers, dim=1).mean(dim=1)
        return features[:, :: max(self.config.semantic_downsample_factor, 1)]


class _Projected(nn.Module):
    """One codebook, whose vectors are smaller than the codec's."""

    def __init__(self, config: HiggsAudioV2TokenizerConfig, codebook: Any) -> None:
        super().__init__()
        self.codebook = codebook
        self.project_in = nn.Linear(config.hidden_size, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, config.hidden_size)

    def encode(self, vectors: Any) -> Any:
        """Codes (rows, frames) of vectors (rows, size, frames)."""
        return self.codebook.encode(self.project_in(vectors.transpose(1, 2)))

    def decode(self, codes: Any) -> Any:
        """Back."""
        return self.project_out(self.codebook.decode(codes)).transpose(1, 2)


def resampled(sound: Any, rate: int, new_rate: int) -> Any:
    """Sound (rows, samples) at another rate (Hz), as `torchaudio.functional.resample` makes it by default: each new
    sample is the sum of those around it, weighted by a sinc under a Hann window.

    Source: J. O. Smith, Digital Audio Resampling, https://ccrma.stanford.edu/~jos/resample/"""
    if rate == new_rate:
        return sound
    common = math.gcd(rate, new_rate)
    old, new = rate // common, new_rate // common
    cutoff = min(old, new) * _ROLLOFF
    reach = math.ceil(_CROSSINGS * old / cutoff)
    taps = torch.arange(-reach, reach + old, dtype=torch.float64, device=sound.device)
    phases = torch.arange(new, dtype=torch.float64, device=sound.device)
    distance = ((taps / old - phases[:, None] / new) * cutoff).clamp(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(distance * math.pi / _CROSSINGS / 2) ** 2
    weights = (torch.sinc(distance) * window * cutoff / old).to(sound.dtype)
    padded = functional.pad(sound, (reach, reach + old))
    made = functional.conv1d(padded[:, None], weights[:, None], stride=old)  # (rows, new, steps)
    length = math.ceil(sound.shape[1] * new / old)
    return made.transpose(1, 2).reshape(len(sound), -1)[:, :length]
