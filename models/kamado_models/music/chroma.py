"""Which of the twelve notes sounds when: what MusicGen Melody hears of a melody.

In torch alone; transformers' extractor wants torchaudio for its spectrogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.audio_utils import chroma_filter_bank

from ..library.configuring import number_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Chroma:
    """How chroma is computed."""

    rate: int = 32_000
    """Hz, of the sound."""
    window: int = 16_384
    hop: int = 4096
    notes: int = 12
    seconds: int = 30
    """What is longer is cut."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Chroma:
        """As a preprocessor_config.json says."""
        return cls(
            rate=number_in(settings, "sampling_rate", cls().rate),
            window=number_in(settings, "n_fft", cls().window),
            hop=number_in(settings, "hop_length", cls().hop),
            notes=number_in(settings, "num_chroma", cls().notes),
            seconds=number_in(settings, "chunk_length", cls().seconds),
        )

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """Of samples (1, samples): one-hot (1, frames, notes), the loudest note of each frame. The power of a
        short-time Fourier transform with Hann windows, summed over the frequencies of each note."""
        samples = samples[:, : self.rate * self.seconds]
        missing = max(self.window - samples.shape[-1], 0)
        samples = torch.nn.functional.pad(samples, (missing // 2, missing - missing // 2))
        window = torch.hann_window(self.window)
        spectrum = torch.stft(samples, self.window, self.hop, window=window, center=True, return_complex=True)
        power = spectrum.abs().square() / window.square().sum()
        bank = chroma_filter_bank(
            num_frequency_bins=self.window, sampling_rate=self.rate, tuning=0, num_chroma=self.notes
        )
        loudness = torch.einsum("cf,bft->btc", torch.from_numpy(bank).float(), power)
        return torch.nn.functional.one_hot(loudness.argmax(-1), self.notes).float()
