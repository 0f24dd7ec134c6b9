"""Models that say at each moment what comes next, or that nothing does (transducers): header data. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Options

from ..library.configuring import number_in, section_of
from ..library.kinds import About, Part, architecture_of
from .common import TASK, window_facts, window_options

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

ARCHITECTURES = frozenset({"ParakeetForTDT", "ParakeetForRNNT"})
PIECE_S = 30.0
_FRAMES_A_SECOND = 12.5


class TransducerKind:
    """See Kind. Parakeet TDT and RNN-T."""

    name = "transducer"
    about = About(
        architectures=tuple(sorted(ARCHITECTURES)),
        tasks=(TASK,),
        oracle="transformers' generate of each piece, tiny random checkpoints",
        batching="encoder calls of equal length; steps one request at a time",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint) in ARCHITECTURES

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return (TASK,)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("transcript",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        return window_options("transducer")

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return window_facts(checkpoint, PIECE_S)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config, inner = checkpoint.config, section_of(checkpoint.config, "encoder_config")
        frames = int(PIECE_S * _FRAMES_A_SECOND)
        width, feed = number_in(inner, "hidden_size", 1024), number_in(inner, "intermediate_size", 4096)
        layer = frames * (5 * width + 2 * feed) + number_in(inner, "num_attention_heads", 8) * frames * frames
        # The first convolution: four frames for one, and half as many bands as the spectrogram has.
        first = number_in(inner, "subsampling_conv_channels", 256) * 4 * frames * number_in(inner, "num_mel_bins", 80)
        hidden = number_in(config, "decoder_hidden_size", 640)
        step = frames * hidden + 16 * hidden + number_in(config, "vocab_size", 8193)
        return {
            "encoder": Part(tensors={}, activation_bytes=lambda number: number * max(layer, first)),  # as in `model`
            "model": Part(tensors=checkpoint.tensors, activation_bytes=lambda number: number * step),
        }

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .transducer_model import build

        return build(checkpoint, loader)

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind. Nothing more can be told."""
