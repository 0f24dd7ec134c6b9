"""Models that listen to a piece of a recording and then write, loaded. Long recordings are cut where they are quiet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from kamado.checkpoint.strict_json import read_bounded
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.events import Media
from kamado.outputs import Output, Segment, Transcript

from ..language.chat_template import ChatTemplate
from ..library.kinds import Bench, architecture_of
from ..library.loading import Loader
from .common import clips, quiet_pieces
from .loading import features_of, library_config, stored_generation_config
from .seq2seq import CANARY, CLASSES, COHERE, PIECE_S, USUAL_LANGUAGE, used_tensors

Prompting = Callable[[Mapping[str, Any]], "list[int | None]"]
"""The tokens that what is written begins with, for a request."""

_TOKENS_A_SECOND = 6.5
"""The most that somebody says: Moonshine's authors end answers there, since it goes on for ever over noise."""
_SHORTEST_S = 0.1
"""Shorter recordings are filled up with silence: convolutions need that much."""
_TEMPLATE = "chat_template.jinja"
_MAX_PROMPT_CHARS = 1 << 12
"""Of a Canary: it has about ten tokens."""
_MAX_CLIP_S = 1e5


def build(checkpoint: Checkpoint, loader: Loader) -> Seq2Seq:
    """See Kind."""
    extractor = loader.folder_call(transformers.AutoFeatureExtractor.from_pretrained, what="feature extractor")
    tokenizer = loader.folder_call(transformers.AutoTokenizer.from_pretrained, what="tokenizer")
    architecture = architecture_of(checkpoint)
    prompting = _prompting(loader, architecture, extractor, tokenizer)
    longest_s = _longest_s(checkpoint, extractor)
    model_class = getattr(transformers, CLASSES[architecture])
    model = loader.pretrained("model", model_class, library_config(loader), used_tensors(checkpoint))
    model.generation_config = stored_generation_config(checkpoint, loader, model)
    return Seq2Seq(model, extractor, tokenizer, prompting, longest_s)


def _prompting(loader: Loader, architecture: str, extractor: Any, tokenizer: Any) -> Prompting | None:
    """How what is written is made to begin, where requests say so."""
    if architecture == CANARY:
        return _Canary(loader.checkpoint, tokenizer)
    if architecture == COHERE:
        return _Cohere(
            loader.folder_call(lambda *_, **__: transformers.CohereAsrProcessor(extractor, tokenizer), what="processor")
        )
    return None


class _Cohere:
    """See Prompting."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, asked: Mapping[str, Any]) -> list[int | None]:
        found: list[int | None] = self._processor.get_decoder_prompt_ids(
            asked["language"], asked.get("punctuation", True)
        )
        return found


class _Canary:
    """See Prompting. The checkpoint has a template for it."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any) -> None:
        """Raises UnsupportedCheckpoint."""
        file = checkpoint.files.get(_TEMPLATE)
        if file is None:
            raise UnsupportedCheckpoint(f"{checkpoint.reference} has no {_TEMPLATE}, which makes its prompts")
        self._template = ChatTemplate(read_bounded(file).decode(errors="replace"), max_chars=_MAX_PROMPT_CHARS)
        self._variables = {**tokenizer.special_tokens_map, "add_generation_prompt": True}
        self._tokenizer = tokenizer

    def __call__(self, asked: Mapping[str, Any]) -> list[int | None]:
        told = {
            "type": "text",
            "source_language": asked.get("language", USUAL_LANGUAGE),
            "target_language": _written(asked),
            "punctuation": asked.get("punctuation", True),
        }
        heard = {"type": "audio", "audio": [0.0]}  # where it stands says nothing of what it is
        prompt = self._template.render([{"role": "user", "content": [heard, told]}], self._variables)
        begins = prompt.startswith(self._tokenizer.bos_token or "\0")
        found: list[int | None] = self._tokenizer(prompt, add_special_tokens=not begins)["input_ids"]
        return found


def _written(asked: Mapping[str, Any]) -> str:
    """The language that a Canary is to write."""
    found: str = asked.get("target_language", asked.get("language", USUAL_LANGUAGE))
    return found


def _tokens(found: list[int | None]) -> torch.Tensor:
    """[1, tokens]. Raises InvalidRequest."""
    if not found or None in found:
        raise InvalidRequest("the model's tokenizer lacks tokens that its prompts have: it belongs to another model")
    return torch.tensor([found])


def _longest_s(checkpoint: Checkpoint, extractor: Any) -> float:
    """Longer pieces an extractor would cut once more. Raises UnsupportedCheckpoint."""
    found: dict[str, float] = {}
    for name in ("max_audio_clip_s", "overlap_chunk_second"):
        value = getattr(extractor, name, None)
        if value is None:
            return PIECE_S
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_CLIP_S:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: its feature extractor has {name} {value!r:.40}; 0 to {_MAX_CLIP_S:g} can be"
            )
        found[name] = float(value)
    return max(found["max_audio_clip_s"] - found["overlap_chunk_second"], 1.0)


class Seq2Seq:
    """See Generator."""

    def __init__(
        self, model: Any, extractor: Any, tokenizer: Any, prompting: Prompting | None, longest_s: float
    ) -> None:
        """`longest_s`: pieces that the extractor takes."""
        self.modules: Mapping[str, Any] = {"encoder": model.get_encoder(), "model": model}
        self._input_name: str = model.main_input_name
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._prompting = prompting
        kind: str = model.config.model_type
        self._is_seamless = kind.startswith("seamless")
        self._is_moonshine = kind.startswith("moonshine")
        self._is_canary = kind == "canary"
        self._padding = {"pad_to_multiple_of": 80, "padding": True} if kind == "moonshine_streaming" else {}
        self._rate: int = extractor.sampling_rate
        self._longest_s = longest_s

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        given = {name: value for name, value in asked.items() if name != "audio"}
        if self._prompting is not None:
            given["begins"] = _tokens(self._prompting(asked))
        window_s = min(asked.get("window", PIECE_S), self._longest_s)
        found: list[Mapping[str, Any]] = []
        for heard in clips(asked, self._rate):
            samples = np.pad(heard, (0, max(int(_SHORTEST_S * self._rate) - len(heard), 0)))
            pieces = [
                (begin / self._rate, end / self._rate, self._inputs(samples[begin:end]))
                for begin, end in quiet_pieces(samples, self._rate, window_s)
            ]
            found.append({**given, "pieces": pieces})
        return found

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        stand = bench.model("model")
        stand.get_encoder = lambda *_, **__: bench.model("encoder")
        segments: list[Segment] = []
        language = _written(asked) if self._is_canary else asked.get("language")
        for number, (begin, end, inputs) in enumerate(asked["pieces"], start=1):
            given = {
                name: tensor.to(bench.device, bench.dtype if tensor.is_floating_point() else None)
                for name, tensor in inputs.items()
            }
            if "begins" in asked:
                given["decoder_input_ids"] = asked["begins"].to(bench.device)
            tokens = stand.generate(**given, **self._settings(asked, end - begin))
            text = self._tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
            bench.progress(number, len(asked["pieces"]))
            if not text:
                continue
            segments.append(Segment(start_s=begin, end_s=end, text=text))
            if asked.get("timestamps") != "none":
                part = Transcript(text=text, segments=(segments[-1],), language=language)
                bench.emit(Media(bench.request_id, bench.index, "transcript", part, is_part=True))
        text = " ".join(segment.text for segment in segments)
        told = () if asked.get("timestamps") == "none" else tuple(segments)
        return Transcript(text=text, segments=told, language=language)

    def _inputs(self, samples: Any) -> dict[str, Any]:
        made = features_of(self._extractor, samples, **self._padding)
        if len(made[self._input_name]) != 1:
            raise InvalidRequest(
                f"the model's feature extractor cuts {len(samples) / self._rate:.1f} s into several pieces; "
                "its preprocessor_config.json belongs to another model, or window must be smaller"
            )
        return {name: made[name] for name in (self._input_name, "attention_mask")}

    def _settings(self, asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """What `generate` is told besides the features."""
        settings: dict[str, Any] = {"tgt_lang": asked["language"]} if self._is_seamless and "language" in asked else {}
        if "max_tokens" in asked:
            settings["max_new_tokens"] = asked["max_tokens"]
        elif self._is_moonshine:
            settings["max_new_tokens"] = max(math.ceil(_TOKENS_A_SECOND * seconds), 1)
        # `generate` warns of two limits
        return settings | ({"max_length": None} if "max_new_tokens" in settings else {})
