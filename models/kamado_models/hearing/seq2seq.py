"""Models that listen to a piece of a recording and then write (encoder and decoder), Whisper apart: header data. No
torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number, text, whole

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
CLASSES: Mapping[str, str] = {
    **SEAMLESS,
    "MoonshineForConditionalGeneration": "MoonshineForConditionalGeneration",
    "Speech2TextForConditionalGeneration": "Speech2TextForConditionalGeneration",
}
PIECE_S = 30.0
_USED = ("shared.", "speech_encoder.", "text_decoder.", "lm_head.")
"""What of a SeamlessM4T listens and writes."""
_RATE = 16_000
_SAMPLES_A_FRAME = {"MoonshineForConditionalGeneration": 384, "Speech2TextForConditionalGeneration": 640}
_USUAL_SAMPLES_A_FRAME = 320


class Seq2SeqKind:
    """See Kind. Moonshine, Speech2Text, SeamlessM4T."""

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
        config = checkpoint.config
        sizes = (config.get(name) for name in ("hidden_size", "d_model"))
        width = next((size for size in sizes if isinstance(size, int) and size > 0), 1024)
        frames = int(PIECE_S * _RATE) // _SAMPLES_A_FRAME.get(architecture_of(checkpoint), _USUAL_SAMPLES_A_FRAME)
        is_raw = architecture_of(checkpoint) == "MoonshineForConditionalGeneration"
        layers = config.get("decoder_layers") or config.get("decoder_num_hidden_layers")
        layers = layers if isinstance(layers, int) and layers > 0 else 12
        return {
            "encoder": Part(
                tensors={},  # its weights are the model's
                activation_bytes=lambda number: number * (frames * 14 * width + 16 * frames * frames),
                entries_per_position=_SAMPLES_A_FRAME["MoonshineForConditionalGeneration"] if is_raw else 1,
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
        if known and asked.get("language") not in known:
            given = f"{asked['language']!r:.40} is none of them" if "language" in asked else "it was left out"
            raise InvalidRequest(
                f"this model must be told the language to write, one of {', '.join(sorted(known)[:12])}, ...; {given}"
            )


def languages(checkpoint: Checkpoint) -> Mapping[str, int]:
    """The codes of languages that it can be told to write, with their tokens; empty where it has one."""
    found = generation_settings(checkpoint).get("text_decoder_lang_to_code_id")
    return found if isinstance(found, dict) and architecture_of(checkpoint) in SEAMLESS else {}


def used_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those that take part in listening."""
    if architecture_of(checkpoint) not in SEAMLESS:
        return dict(checkpoint.tensors)
    return {name: entry for name, entry in checkpoint.tensors.items() if name.startswith(_USED)}
