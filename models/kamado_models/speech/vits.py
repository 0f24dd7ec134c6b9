"""VITS and MMS: text to sound in one go."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number, text

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind, json_beside
from ..library.configuring import config_of, divided, number_in
from ..library.kinds import About, Bench, Generator, Part
from .options import SPEED, speech_options
from .speaking import Speaker, check_durations, known_rate, known_voice
from .vocoding import check_upsampling

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

_CHARACTERS = 200
"""Of a usual sentence."""
_FRAMES_A_CHARACTER = 8
_LONGEST_PIECE_S = 600
_NOISE = {"noise": number(0.0, 10.0), "duration_noise": number(0.0, 10.0)}
"""How much the voice, and the rhythm, vary."""
_ROMAN = 0x024F
"""The last character of Latin scripts."""


class VitsKind(AudioKind):
    """See Kind."""

    name = "vits"
    about = About(
        architectures=("VitsModel",),
        tasks=("text-to-speech",),
        oracle="transformers' forward, tiny random checkpoints",
        batching="requests take turns at encoder and decoder",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        voice = {"voice": text(longest=100)} if _voices(checkpoint) else {}
        return speech_options("a VITS speech model", SPEED, _NOISE, voice)

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        voices, language = _voices(checkpoint), _tokenizer(checkpoint).get("language")
        return {
            "sample_rate": number_in(checkpoint.config, "sampling_rate", 16_000),
            **({"language": language} if isinstance(language, str) else {}),
            **({"voices": len(voices)} if voices else {}),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        hidden = number_in(config, "hidden_size", 192)
        frames = _CHARACTERS * _FRAMES_A_CHARACTER
        found = config.get("upsample_rates")
        rates = [rate for rate in found if isinstance(rate, int)] if isinstance(found, list) else [256]
        samples = frames * math.prod(rates)
        channels = number_in(config, "upsample_initial_channel", 512)
        return divided(
            checkpoint,
            "encoder",
            {"decoder": ("decoder.",)},
            {
                "encoder": lambda size: size * frames * (hidden * 12 + _CHARACTERS * 3),
                # The last stages have few channels and all samples.
                "decoder": lambda size: size * samples * max(channels >> len(rates), 1) * 4,
            },
        )

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if "voice" in asked:
            known_voice(asked["voice"], _voices(checkpoint), checkpoint.reference)
        settings = _tokenizer(checkpoint)
        if settings.get("phonemize", True) and not importlib.util.find_spec("phonemizer"):
            raise InvalidRequest(
                f"{checkpoint.reference} reads phonemes, for which it needs the package phonemizer and the program "
                "espeak-ng: pip install phonemizer, and install espeak-ng. A model of letters (MMS) needs neither"
            )
        foreign = next((each for each in asked["prompt"] if each.isalpha() and ord(each) > _ROMAN), None)
        if settings.get("is_uroman") and foreign is not None and not importlib.util.find_spec("uroman"):
            raise InvalidRequest(
                f"{checkpoint.reference} reads Latin letters, and the prompt has {foreign!r}: pip install uroman, or "
                "write the prompt in Latin letters"
            )

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from transformers import VitsConfig, VitsModel, VitsTokenizer

        check_upsampling(checkpoint.config, checkpoint.reference)
        model = loader.pretrained("encoder", VitsModel, config_of(checkpoint, VitsConfig), checkpoint.tensors)
        tokenizer = loader.folder_call(VitsTokenizer.from_pretrained, what="tokenizer")
        return VitsSpeaker(model, tokenizer, _voices(checkpoint), checkpoint.reference)


class VitsSpeaker(Speaker):
    """See Generator."""

    def __init__(self, model: Any, tokenizer: Any, voices: list[str], reference: str) -> None:
        self.modules = {"encoder": model, "decoder": model.decoder}
        self.sample_rate = known_rate(model.config.sampling_rate, reference)
        self._tokenizer = tokenizer
        self._voices = voices
        self._reference = reference

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """Token numbers (1, tokens)."""
        tokens = self._tokenizer(text, return_tensors="pt").input_ids
        if not tokens.numel() or not self._tokenizer.prepare_for_tokenization(text)[0].strip():
            raise InvalidRequest(f"{self._reference} knows no letter of {text!r:.80}; is it another language?")
        return tokens

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        parts = {
            "text_encoder": Through(lane="encoder"),
            "duration_predictor": Through(lane="encoder"),
            "flow": Through(lane="encoder"),
            "decoder": Through(lane="decoder"),
        }
        model = doubled(self.modules["encoder"], bench, parts)
        if "noise" in asked:
            model.noise_scale = asked["noise"]
        if "duration_noise" in asked:
            model.noise_scale_duration = asked["duration_noise"]
        speaker = self._voices.index(asked.get("voice", "0")) if self._voices else None
        speed = asked.get("speed", model.speaking_rate)
        most = _LONGEST_PIECE_S * self.sample_rate // math.prod(model.config.upsample_rates)
        predicted = model.duration_predictor

        def durations(*args: Any, **kwargs: Any) -> Any:
            found = predicted(*args, **kwargs)
            check_durations(found.float().exp() / speed, most)
            return found

        model.__dict__["duration_predictor"] = durations  # of the double alone
        return model(piece.to(bench.device), speaker_id=speaker, speaking_rate=speed).waveform


def _voices(checkpoint: Checkpoint) -> list[str]:
    """Numbers, as the model has no names for them; none where it has one voice only."""
    count = number_in(checkpoint.config, "num_speakers", 1)
    return [str(number) for number in range(min(count, 100_000))] if count > 1 else []


def _tokenizer(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return json_beside(checkpoint, "tokenizer_config.json")
