"""Models that spell what they hear frame by frame (connectionist temporal classification): header data. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.options import Options

from ..library.configuring import number_in
from ..library.kinds import About, Part, architecture_of
from .common import TASK, window_facts, window_options

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

ARCHITECTURES = frozenset(
    {
        *("Wav2Vec2ForCTC", "Wav2Vec2BertForCTC", "Wav2Vec2ConformerForCTC", "HubertForCTC", "WavLMForCTC"),
        *("Data2VecAudioForCTC", "SEWForCTC", "SEWDForCTC", "UniSpeechForCTC", "UniSpeechSatForCTC", "ParakeetForCTC"),
        "LasrForCTC",
    }
)
WINDOW_S = 30.0
_RATE = 16_000
_USUAL_SAMPLES_A_FRAME = 320


class CtcKind:
    """See Kind."""

    name = "ctc"
    about = About(
        architectures=tuple(sorted(ARCHITECTURES)),
        tasks=(TASK,),
        oracle="transformers' pipeline, windows included, tiny random checkpoints",
        batching="windows of equal length",
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
        return window_options("CTC")

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return window_facts(checkpoint, WINDOW_S)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        inner = config.get("encoder_config")
        sizes = inner if isinstance(inner, Mapping) else config

        strides, channels = _sizes(sizes.get("conv_stride")), _sizes(sizes.get("conv_dim"))
        entries = math.prod(strides)  # samples a frame, where it hears raw sound

        def largest(number: int) -> int:
            """A window of 30 s: the first convolution's output with its norm, or a layer with all its attention."""
            samples = int(WINDOW_S * _RATE)
            frames = samples // (entries if strides else _USUAL_SAMPLES_A_FRAME)
            width, feed = number_in(sizes, "hidden_size", 768), number_in(sizes, "intermediate_size", 3072)
            layer = frames * (5 * width + 2 * feed) + number_in(sizes, "num_attention_heads", 12) * frames * frames
            first = 3 * channels[0] * samples // strides[0] if strides and channels else 0
            return number * max(first, layer)

        return {"network": Part(tensors=checkpoint.tensors, activation_bytes=largest, entries_per_position=entries)}

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .ctc_model import build

        return build(checkpoint, loader)

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind. Nothing more can be told."""


def _sizes(values: Any) -> list[int]:
    """A list of whole numbers above 0; empty for anything else."""
    good = isinstance(values, (list, tuple)) and all(isinstance(value, int) and value > 0 for value in values)
    return list(values) if good else []
