"""Whisper: header data. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
        settings = usable_settings(checkpoint)
        return {
            "architecture": architecture_of(checkpoint),
            "parameters": num_parameters(checkpoint.tensors),
            "window_s": _WINDOW_S,
            "languages": len(settings.get("lang_to_id", ())) or 1,
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
        check_settings(checkpoint, asked)


def generation_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """`generation_config.json`; empty where there is none that can be read."""
    path = checkpoint.files.get("generation_config.json")
    if path is not None:
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict):
                return found
    return {}


def usable_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """`generation_settings` without those of Whisper's own that do not fit the model."""
    settings, config = dict(generation_settings(checkpoint)), checkpoint.config
    vocabulary = number_in(config, "vocab_size", 51_866)
    fits: dict[str, Callable[[Any], bool]] = {
        "lang_to_id": lambda value: _are_tokens(value, vocabulary),
        "task_to_id": lambda value: _are_tokens(value, vocabulary) and {"transcribe", "translate"} <= value.keys(),
        "no_timestamps_token_id": lambda value: _is_below(value, vocabulary - 1),  # those of times come after it
        "alignment_heads": lambda value: _are_heads(
            value, number_in(config, "decoder_layers", 6), number_in(config, "decoder_attention_heads", 8)
        ),
    }
    return {name: value for name, value in settings.items() if name not in fits or fits[name](value)}


def _are_tokens(value: Any, vocabulary: int) -> bool:
    return isinstance(value, dict) and bool(value) and all(_is_below(number, vocabulary) for number in value.values())


def _are_heads(value: Any, layers: int, heads: int) -> bool:
    """Whether it is a list of (layer, head)."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(each, list) and len(each) == 2 and _is_below(each[0], layers) and _is_below(each[1], heads)
        for each in value
    )  # fmt: skip


def _is_below(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def is_multilingual(settings: Mapping[str, Any]) -> bool:
    """Whether the model can be told a language and a task."""
    return bool(settings.get("lang_to_id")) and not is_english(settings)


def is_english(settings: Mapping[str, Any]) -> bool:
    """Whether the model knows no other language."""
    return settings.get("is_multilingual", True) is False


def check_settings(checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for what the model's generation settings say it cannot do."""
    settings = usable_settings(checkpoint)
    if is_english(settings):
        if asked.get("language", "en").lower() not in ("en", "english"):
            raise InvalidRequest(f"language {asked['language']!r:.40}: this Whisper knows English alone; leave it out")
        if asked.get("task") == "translate":
            raise InvalidRequest("task translate: this Whisper knows English alone; leave it out")
    elif "language" in asked and "lang_to_id" not in settings:
        raise InvalidRequest(f"language {asked['language']!r:.40}: {lacks(checkpoint, 'lang_to_id')}, or leave it out")
    elif asked.get("task") == "translate":
        for name in ("lang_to_id", "task_to_id"):
            if name not in settings:
                raise InvalidRequest(f"task translate: {lacks(checkpoint, name)}, or leave it out")
    _check_times(checkpoint, settings, asked)


def _check_times(checkpoint: Checkpoint, settings: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    stamps = asked.get("timestamps")
    if "no_timestamps_token_id" not in settings:
        missing = lacks(checkpoint, "no_timestamps_token_id")
        if stamps in ("segment", "word"):
            raise InvalidRequest(f"timestamps: {missing}, or use timestamps=false")
        if asked.get("fallback"):
            raise InvalidRequest(f"fallback: {missing}, or leave it out")
    if stamps == "word" and "alignment_heads" not in settings:
        raise InvalidRequest(f"timestamps word: {lacks(checkpoint, 'alignment_heads')}, or use timestamps=true")


def lacks(checkpoint: Checkpoint, name: str) -> str:
    """That a generation setting is missing, and where to get it."""
    if "generation_config.json" not in checkpoint.files:
        return f"the model has no generation_config.json, which holds {name}; fetch it"
    return f"the model's generation_config.json has no usable {name}; fetch the file that was published with the model"
