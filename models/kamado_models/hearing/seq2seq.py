"""Models that listen to a piece of a recording and then write (encoder and decoder), Whisper apart: header data. No
torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, flag, number, text, whole

from ..library.configuring import number_in, section_of
from ..library.kinds import About, Part, architecture_of, num_parameters
from .common import TASK, recordings, time_stamps
from .whisper import generation_settings

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

SEAMLESS: Mapping[str, str] = {
    # the class that listens, by that of the checkpoint, which may hold more
    "SeamlessM4TForSpeechToText": "SeamlessM4TForSpeechToText",
    "SeamlessM4TModel": "SeamlessM4TForSpeechToText",
    "SeamlessM4Tv2ForSpeechToText": "SeamlessM4Tv2ForSpeechToText",
    "SeamlessM4Tv2Model": "SeamlessM4Tv2ForSpeechToText",
}
COHERE, CANARY = "CohereAsrForConditionalGeneration", "CanaryForConditionalGeneration"
LANGUAGES: Mapping[str, tuple[str, ...]] = {
    # those that prompts of an architecture can name, as transformers' processors have them
    COHERE: ("ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh"),
    CANARY: (
        *("bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "hr", "hu", "it", "lt", "lv", "mt", "nl", "pl"),
        *("pt", "ro", "ru", "sk", "sl", "sv", "uk"),
    ),
}
USUAL_LANGUAGE = "en"
"""What a Canary is told that is told nothing."""
_NAMES: Mapping[str, str] = {
    # English names, as Whisper has them, of all that LANGUAGES have
    "arabic": "ar", "bulgarian": "bg", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da",
    "dutch": "nl", "english": "en", "estonian": "et", "finnish": "fi", "french": "fr", "german": "de", "greek": "el",
    "hungarian": "hu", "italian": "it", "japanese": "ja", "korean": "ko", "latvian": "lv", "lithuanian": "lt",
    "maltese": "mt", "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "slovak": "sk",
    "slovenian": "sl", "spanish": "es", "swedish": "sv", "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
_RAW = frozenset({"MoonshineForConditionalGeneration", "MoonshineStreamingForConditionalGeneration"})
"""Hear samples, not a spectrogram."""
CLASSES: Mapping[str, str] = {
    **SEAMLESS,
    **{name: name for name in (*_RAW, *LANGUAGES, "Speech2TextForConditionalGeneration")},
}
PIECE_S = 30.0
_USED = ("shared.", "speech_encoder.", "text_decoder.", "lm_head.")
"""What of a SeamlessM4T listens and writes."""
_RATE = 16_000
_SAMPLES_A_FRAME = {
    "MoonshineForConditionalGeneration": 384,
    "Speech2TextForConditionalGeneration": 640,
    **dict.fromkeys(LANGUAGES, 1280),
}
_USUAL_SAMPLES_A_FRAME = 320


class Seq2SeqKind:
    """See Kind. Moonshine, Speech2Text, SeamlessM4T, Canary, Cohere ASR."""

    name = "seq2seq"
    about = About(
        architectures=tuple(sorted(CLASSES)),
        tasks=(TASK,),
        oracle="transformers' generate of each piece, tiny random checkpoints",
        batching="encoder calls of equal length; steps one request at a time",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint) in CLASSES

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return (TASK,)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("transcript",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind."""
        checks = {
            "audio": recordings,
            "timestamps": time_stamps,
            "window": number(1.0, 30.0),
            "max_tokens": whole(1, 100_000),
        }
        if languages(checkpoint):
            checks["language"] = text(longest=100)
        if architecture_of(checkpoint) in LANGUAGES:
            checks |= {"language": _language, "punctuation": flag}
        if architecture_of(checkpoint) == CANARY:
            checks["target_language"] = _language
        return Options(
            what="a speech recognition model", checks=checks, inputs={"audio": "audio"}, needs=("audio",),
            aliases={"max_new_tokens": "max_tokens"},
        )  # fmt: skip

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return {
            "architecture": CLASSES[architecture_of(checkpoint)],
            "parameters": num_parameters(used_tensors(checkpoint)),
            "window_s": PIECE_S,
            "languages": len(languages(checkpoint)) or 1,
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config, architecture = checkpoint.config, architecture_of(checkpoint)
        inner = section_of(config, "encoder_config")
        width = max(*(number_in(each, "hidden_size", 1) for each in (config, inner)), number_in(config, "d_model", 1))
        width = width if width > 1 else 1024
        frames = int(PIECE_S * _RATE) // _SAMPLES_A_FRAME.get(architecture, _USUAL_SAMPLES_A_FRAME)
        layers = config.get("decoder_layers") or config.get("decoder_num_hidden_layers")
        layers = layers if isinstance(layers, int) and layers > 0 else number_in(config, "num_hidden_layers", 12)
        # The first convolution of a Parakeet encoder: half as many frames and bands as its spectrogram has.
        channels = number_in(inner, "subsampling_conv_channels", 256) if architecture in LANGUAGES else 0
        first = channels * 2 * frames * number_in(inner, "num_mel_bins", 128) * 2
        return {
            "encoder": Part(
                tensors={},  # its weights are the model's
                activation_bytes=lambda number: number * max(frames * 14 * width + 16 * frames * frames, first),
                entries_per_position=_SAMPLES_A_FRAME["MoonshineForConditionalGeneration"]
                if architecture in _RAW
                else 1,
            ),
            "model": Part(
                tensors=used_tensors(checkpoint),
                activation_bytes=lambda number: number * (2 * layers + 2) * width * (frames + 256),
            ),
        }

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .seq2seq_model import build

        return build(checkpoint, loader)

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if asked.get("timestamps") == "word":
            raise InvalidRequest("timestamps word: this model does not know when words were said; use true")
        known = languages(checkpoint)
        if architecture_of(checkpoint) == CANARY:  # English, if it is told nothing
            asked = {"language": USUAL_LANGUAGE, **asked}
        listed = f"{', '.join(sorted(known)):.2000}"  # a file that lies may have any number
        if known and asked.get("language") not in known:
            given = f"{asked['language']!r:.40} is none of them" if "language" in asked else "it was left out"
            what = "to write" if architecture_of(checkpoint) in SEAMLESS else "that is spoken"
            raise InvalidRequest(f"this model must be told the language {what}, one of {listed}; {given}")
        if "target_language" in asked and asked["target_language"] not in known:
            raise InvalidRequest(f"target_language {asked['target_language']!r:.40} is none of {listed}")


def _language(name: str, value: Any) -> str:
    """A check of options: a code, or an English name, which becomes its code."""
    given = text(longest=100)(name, value)
    low = given.strip().lower()
    return _NAMES.get(low, low if low in _NAMES.values() else given)


def languages(checkpoint: Checkpoint) -> Collection[str]:
    """The codes of languages that it can be told; empty where it has one."""
    if (architecture := architecture_of(checkpoint)) in LANGUAGES:
        return LANGUAGES[architecture]
    found = generation_settings(checkpoint).get("text_decoder_lang_to_code_id")
    return found if isinstance(found, dict) and architecture in SEAMLESS else ()


def used_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those that take part in listening."""
    if architecture_of(checkpoint) not in SEAMLESS:
        return dict(checkpoint.tensors)
    return {name: entry for name, entry in checkpoint.tensors.items() if name.startswith(_USED)}
