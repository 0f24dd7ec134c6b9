"""SpeechT5: a spectrogram step by step, in a voice that is a vector, and a vocoder that makes it heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind
from ..library.configuring import config_of, divided, number_in
from ..library.kinds import About, Bench, Generator, Part
from ..library.second import second_checkpoint
from .options import speech_options
from .speaking import Speaker, known_rate
from .vectors import SUFFIXES, vector_for, voice_files, voice_option
from .vocoding import check_bins, check_upsampling, vocoder_part

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

_FRAMES = 1000
"""Of a usual sentence."""


class SpeechT5Kind(AudioKind):
    """See Kind."""

    name = "speecht5"
    about = About(
        architectures=("SpeechT5ForTextToSpeech",),
        tasks=("text-to-speech",),
        oracle="transformers' generate_speech with its vocoder, tiny random checkpoints",
        batching="requests take turns at encoder, decoder steps and vocoder",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `threshold`: how sure the model must be that it has come to the end; `max_length`: frames for each
        token of the text, at most."""
        own = {"voice": voice_option, "threshold": number(0.0, 1.0), "max_length": number(0.0, 1000.0, above=True)}
        return speech_options("a SpeechT5 speech model", own, files={"voice": SUFFIXES})

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        voices = sorted(voice_files(checkpoint))
        return {"voice_numbers": _voice_size(checkpoint), **({"voices": voices} if voices else {})}

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it takes from other checkpoints."""
        return ("vocoder",)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        hidden = number_in(config, "hidden_size", 768)
        inner = number_in(config, "decoder_ffn_dim", 3072)
        own = divided(
            checkpoint,
            "decoder",
            {"encoder": ("speecht5.encoder.",)},
            {
                "encoder": lambda size: size * 600 * (hidden * 6 + inner * 2),
                "decoder": lambda size: size * _FRAMES * (hidden * 6 + inner),
            },
        )
        return {**own, "vocoder": vocoder_part(_vocoder(checkpoint), _FRAMES)}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        vector_for(checkpoint, asked.get("voice"), _voice_size(checkpoint))

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from transformers import (
            SpeechT5Config,
            SpeechT5ForTextToSpeech,
            SpeechT5HifiGan,
            SpeechT5HifiGanConfig,
            SpeechT5Tokenizer,
        )

        second = _vocoder(checkpoint)
        check_upsampling(second.config, second.reference)
        config = config_of(checkpoint, SpeechT5Config)
        model = loader.pretrained("decoder", SpeechT5ForTextToSpeech, config, checkpoint.tensors)
        vocoder = loader.pretrained(
            "vocoder", SpeechT5HifiGan, config_of(second, SpeechT5HifiGanConfig), second.tensors
        )
        check_bins(second.reference, vocoder, checkpoint.reference, config)
        tokenizer = loader.folder_call(SpeechT5Tokenizer.from_pretrained, what="tokenizer")
        return SpeechT5Speaker(checkpoint, model, vocoder, tokenizer)


class SpeechT5Speaker(Speaker):
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, model: Any, vocoder: Any, tokenizer: Any) -> None:
        self.modules = {"encoder": model.speecht5.encoder, "decoder": model, "vocoder": vocoder}
        self.sample_rate = known_rate(vocoder.config.sampling_rate, checkpoint.reference)
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        vector = vector_for(self._checkpoint, asked.get("voice"), _voice_size(self._checkpoint))
        return super().prepare({**asked, "vector": vector})

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """Token numbers (1, tokens)."""
        tokens = self._tokenizer(text, return_tensors="pt").input_ids
        most = self.modules["decoder"].config.max_text_positions
        if tokens.shape[1] > most:
            raise InvalidRequest(f"a sentence has {tokens.shape[1]} tokens, and the model reads {most}: shorten it")
        return tokens

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        import torch

        parts = {
            "speecht5.encoder": Through(lane="encoder"),
            "speecht5.decoder.prenet": Through(lane="decoder"),
            "speecht5.decoder.wrapped_decoder": Through(lane="decoder"),
            "speech_decoder_postnet": Through(lane="decoder", methods=("postnet",)),
        }
        model = doubled(self.modules["decoder"], bench, parts)
        vector = torch.tensor([asked["vector"]], dtype=bench.dtype, device=bench.device)
        settings = {"threshold": asked.get("threshold"), "maxlenratio": asked.get("max_length")}
        return model.generate_speech(
            piece.to(bench.device),
            vector,
            vocoder=doubled(self.modules["vocoder"], bench, {"": Through(lane="vocoder")}),
            **{name: value for name, value in settings.items() if value is not None},
        )


def _vocoder(checkpoint: Checkpoint) -> Checkpoint:
    return second_checkpoint(
        checkpoint, "vocoder", classes=("SpeechT5HifiGan", "hifigan"), usual="microsoft/speecht5_hifigan"
    )


def _voice_size(checkpoint: Checkpoint) -> int:
    return number_in(checkpoint.config, "speaker_embedding_dim", 512)
