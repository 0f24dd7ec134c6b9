"""Whisper: header data. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, flag, number, one_of, text, whole

from ..library.configuring import number_in
from ..library.kinds import About, Part, architecture_of, num_parameters
from .common import TASK, recordings, time_stamps

if TYPE_CHECKING:
    from ..library.kinds import Generator
    from ..library.loading import Loader

_WINDOW_S = 30


class WhisperKind:
    """See Kind. Whisper of every size, distilled ones too."""

    name = "whisper"
    about = About(
        architectures=("WhisperForConditionalGeneration",),
        tasks=(TASK,),
        oracle="transformers' generate with its own long-form algorithm, tiny random checkpoints",
        batching="encoder calls; steps one request at a time",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return architecture_of(checkpoint) == "WhisperForConditionalGeneration"

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
            "language": text(longest=100),
            "task": one_of("transcribe", "translate"),
            "prompt": text(),
            "timestamps": time_stamps,
            "temperature": number(0.0, 2.0),
            "fallback": flag,
            "condition_on_previous": flag,
            "max_tokens": whole(1, 100_000),
        }
        return Options(
            what="a Whisper model", checks=checks, inputs={"audio": "audio"}, needs=("audio",),
            aliases={"initial_prompt": "prompt", "max_new_tokens": "max_tokens"},
        )  # fmt: skip

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        settings = generation_settings(checkpoint)
        languages = settings.get("lang_to_id")
        return {
            "architecture": architecture_of(checkpoint),
            "parameters": num_parameters(checkpoint.tensors),
            "window_s": _WINDOW_S,
            "languages": len(languages) if isinstance(languages, dict) else 1,
            "word_timestamps": bool(settings.get("alignment_heads")),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        width, frames = number_in(config, "d_model", 512), number_in(config, "max_source_positions", 1500)
        inner = number_in(config, "encoder_ffn_dim", 4 * width)
        layers = number_in(config, "decoder_layers", 6)
        vocabulary = number_in(config, "vocab_size", 51_866)

        def listening(number: int) -> int:
            return number * frames * (5 * width + 2 * inner + 2 * width)

        def speaking(number: int) -> int:
            kept = 2 * layers * width * (frames + number_in(config, "max_target_positions", 448))
            return listening(number) // 4 + number * (kept + frames * width) + 16 * vocabulary

        return {
            "encoder": Part(tensors={}, activation_bytes=listening),  # its weights are the model's
            "model": Part(tensors=checkpoint.tensors, activation_bytes=speaking),
        }

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from .whisper_model import build

        return build(checkpoint, loader)

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        check_settings(generation_settings(checkpoint), asked)


def generation_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`generation_config.json`; empty where there is none that can be read."""
    path = checkpoint.files.get("generation_config.json")
    if path is not None:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}


def is_multilingual(settings: Mapping[str, Any]) -> bool:
    """Whether the model can be told a language and a task."""
    return bool(settings.get("lang_to_id")) and settings.get("is_multilingual", True) is not False


def check_settings(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for what the model's generation settings say it cannot do."""
    if not is_multilingual(settings):
        if asked.get("language", "en").lower() not in ("en", "english"):
            raise InvalidRequest(f"language {asked['language']!r:.40}: this Whisper knows English alone; leave it out")
        if asked.get("task") == "translate":
            raise InvalidRequest("task translate: this Whisper knows English alone; leave it out")
    stamps = asked.get("timestamps")
    if stamps in ("segment", "word") and "no_timestamps_token_id" not in settings:
        raise InvalidRequest("timestamps: the model's generation_config.json has no time stamps; use timestamps=false")
    if stamps == "word" and not settings.get("alignment_heads"):
        raise InvalidRequest(
            "timestamps word: the model's generation_config.json has no alignment_heads; use timestamps=true"
        )
    if asked.get("fallback") and "no_timestamps_token_id" not in settings:
        raise InvalidRequest("fallback: the model's generation_config.json has no time stamps, which it needs")
