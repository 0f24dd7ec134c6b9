"""Whisper, loaded. The long-form algorithm is the library's: windows of 30 s that begin where the last segment ended
(Radford et al., "Robust speech recognition via large-scale weak supervision", section 3.8)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.events import Media
from kamado.outputs import Output, Segment, Transcript
from kamado.tasks.library.standin import ModelCall, dissolve, stand_in

from ..library.kinds import Bench
from ..library.loading import Loader
from .common import clips
from .loading import features_of, library_config, stored_generation_config
from .whisper import generation_settings, is_english, is_multilingual, lacks, usable_settings

_TEMPERATURE_STEP = 0.2
_FALLBACK = {"logprob_threshold": -1.0, "compression_ratio_threshold": 1.35, "no_speech_threshold": 0.6}
"""When a window is decoded again at a higher temperature: the thresholds that transformers' documentation gives for its
implementation, which compresses tokens, not text."""


def build(checkpoint: Checkpoint, loader: Loader) -> Whisper:
    """See Kind."""
    extractor = loader.folder_call(AutoFeatureExtractor.from_pretrained, what="feature extractor")
    tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer")
    config = library_config(loader)
    model = loader.pretrained("model", WhisperForConditionalGeneration, config, checkpoint.tensors)
    settings = usable_settings(checkpoint)
    model.generation_config = stored_generation_config(checkpoint, loader, model)
    for name in generation_settings(checkpoint).keys() - settings.keys():
        delattr(model.generation_config, name)
    _forget_old_beginnings(model)
    return Whisper(model, extractor, tokenizer, checkpoint, settings)


def _forget_old_beginnings(model: Any) -> None:
    """Early checkpoints force the token for "no time stamps". `generate` places it by itself, and warns of that."""
    settings, config = model.generation_config, model.config
    usual = [[1, getattr(settings, "no_timestamps_token_id", None)]]
    for holder in (settings, config):
        if getattr(holder, "forced_decoder_ids", None) == usual:
            holder.forced_decoder_ids = None


class Whisper:
    """See Generator."""

    def __init__(
        self, model: Any, extractor: Any, tokenizer: Any, checkpoint: Checkpoint, settings: Mapping[str, Any]
    ) -> None:
        self.modules: Mapping[str, Any] = {"encoder": model.get_encoder(), "model": model}
        self._model = model
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._generation: Any = model.generation_config
        self._many_languages = is_multilingual(settings)
        self._knows_times = "no_timestamps_token_id" in settings
        self._no_times = lacks(checkpoint, "no_timestamps_token_id")
        self._only = "en" if is_english(settings) else None

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        given = {name: value for name, value in asked.items() if name != "audio"}
        stamps = given.setdefault("timestamps", "segment" if self._knows_times else "none")
        if "language" in given:
            given["language"] = self._language(given["language"])
        given["prompt_ids"] = self._prompt(given)
        found: list[Mapping[str, Any]] = []
        for samples in clips(asked, self._extractor.sampling_rate):
            is_long = len(samples) > self._extractor.n_samples
            if is_long and stamps == "none":
                raise InvalidRequest(
                    f"a recording of {len(samples) / self._extractor.sampling_rate:.0f} s is longer than this model's "
                    f"window of {self._extractor.chunk_length} s, and several need time stamps; "
                    + ("leave timestamps out" if self._knows_times else f"{self._no_times}, or give less sound")
                )
            settings = {"truncation": False, "padding": "longest"} if is_long else {}
            features = features_of(self._extractor, samples, **settings)
            found.append({**given, "features": features["input_features"], "mask": features["attention_mask"]})
        return found

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        words = asked["timestamps"] == "word"
        stand = self._attentive(bench) if words else bench.model("model")
        try:
            heard = _Heard(
                bench, self._tokenizer, self._model, self._only, streams=asked["timestamps"] == "segment",
                translates=asked.get("task") == "translate",
            )  # fmt: skip
            stand.__class__ = _watched_class(type(stand), _Encoder(bench.model("encoder")), heard)
            made = stand.generate(
                asked["features"].to(bench.device, bench.dtype),
                return_segments=True,
                return_timestamps=asked["timestamps"] != "none",
                monitor_progress=lambda seek: bench.progress(int(seek[0, 0]), int(seek[0, 1])),
                **self._settings(asked, bench.device),
            )
        finally:
            if words:
                dissolve(stand)
        text = self._tokenizer.decode(made["sequences"][0], skip_special_tokens=True).strip()
        segments = self._words(made, heard.spoken) if words else heard.segments
        return Transcript(
            text=text, segments=() if asked["timestamps"] == "none" else tuple(segments), language=heard.language
        )

    def _settings(self, asked: Mapping[str, Any], device: str) -> dict[str, Any]:
        """What `generate` is told besides the features."""
        settings: dict[str, Any] = {}
        if self._many_languages:
            settings["language"] = asked.get("language")
            if hasattr(self._generation, "task_to_id"):
                settings["task"] = asked.get("task", "transcribe")
        if asked["prompt_ids"] is not None:
            settings["prompt_ids"] = asked["prompt_ids"].to(device)
        if "condition_on_previous" in asked:
            settings["condition_on_prev_tokens"] = asked["condition_on_previous"]
        if "max_tokens" in asked:
            settings["max_new_tokens"] = asked["max_tokens"]
        if asked["timestamps"] == "word":
            settings |= {"return_token_timestamps": True, "attention_mask": asked["mask"].to(device)}
        temperature = asked.get("temperature")
        if asked.get("fallback"):
            first = temperature or 0.0
            steps = range(int((1.0 - first) / _TEMPERATURE_STEP + 1e-6) + 1) if first <= 1 else range(1)
            return settings | _FALLBACK | {
                "temperature": tuple(round(first + _TEMPERATURE_STEP * step, 6) for step in steps)
            }  # fmt: skip
        return settings | ({} if temperature is None else {"temperature": temperature})

    def _attentive(self, bench: Bench) -> Any:
        """A stand-in whose calls return attention weights, which times of words are found with. The fast kernels have
        none, so a call of it switches to others, for itself alone."""
        model = self._model

        def divert(call: ModelCall) -> Any:
            def run() -> Any:
                before = model.config._attn_implementation
                model.config._attn_implementation = "eager"
                try:
                    return dataclasses.replace(call, module=model).run()
                finally:
                    model.config._attn_implementation = before

            return bench.run("model", run)

        stand = stand_in(model, divert)
        stand.model.config = copy.deepcopy(model.config)  # `generate` switches it, and all requests share the other
        return stand

    def _words(self, made: Mapping[str, Any], language: str | None) -> list[Segment]:
        """Words with their times, as transformers' pipeline has them."""
        tokens = made["sequences"]
        parts = [segment["token_timestamps"] for segment in made["segments"][0]]
        if not parts:
            return []
        precision = self._extractor.chunk_length / self._model.config.max_source_positions
        output = {"tokens": tokens.cpu(), "token_timestamps": torch.cat(parts)[None].cpu()}
        _, optional = self._tokenizer._decode_asr(
            [output], return_timestamps="word", return_language=False, time_precision=precision
        )
        found = [(chunk["text"].strip(), *chunk["timestamp"]) for chunk in optional["chunks"]]
        return [
            Segment(start_s=float(start), end_s=float(end), text=text)
            for text, start, end in found
            if text and start is not None and end is not None
        ]

    def _language(self, name: str) -> str | None:
        """Its code; None where the model has no choice. Raises InvalidRequest."""
        if not self._many_languages:
            return None
        code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
        if f"<|{code}|>" not in self._generation.lang_to_id:
            known = ", ".join(sorted(token[2:-2] for token in self._generation.lang_to_id)[:12])
            raise InvalidRequest(f"language {name!r:.40} is none of this model's: {known}, ...; or leave it out")
        return code

    def _prompt(self, asked: Mapping[str, Any]) -> torch.Tensor | None:
        """Tokens of the words that precede the recording, [tokens]. Raises InvalidRequest."""
        longest = int(self._model.config.max_target_positions)
        found: torch.Tensor | None = None
        if "prompt" in asked:
            try:
                found = self._tokenizer.get_prompt_ids(asked["prompt"], return_tensors="pt")
            except ValueError as error:
                raise InvalidRequest(f"prompt: {error}") from error
            if len(found) > longest // 2 - 1:
                raise InvalidRequest(f"the prompt has {len(found)} tokens; this model takes {longest // 2 - 1}")
        used = 4 + (0 if found is None else len(found))
        if asked.get("max_tokens", 1) + used > longest:
            raise InvalidRequest(f"max_tokens must be at most {longest - used} for each window")
        return found


class _Encoder:
    """The encoder, asked for nothing but what it hears: the same call whatever else `generate` wants to know."""

    def __init__(self, stand: Any) -> None:
        self._stand = stand

    def forward(self, input_features: torch.Tensor) -> Any:
        """See WhisperEncoder."""
        return self._stand(input_features=input_features, return_dict=True)

    def __call__(self, input_features: torch.Tensor, **_: Any) -> Any:
        return self.forward(input_features)


def _watched_class(kind: Any, encoder: _Encoder, heard: _Heard) -> type:
    """A class like `kind` that asks `encoder` and tells `heard`. What is set on a stand-in itself would count as a
    setting of its model, and calls of others would no longer be like its own."""
    names = {
        "get_encoder": lambda self, modality=None: encoder,
        "_prepare_generation_config": _settled(kind._prepare_generation_config),
        "_retrieve_init_tokens": heard.first_tokens(kind._retrieve_init_tokens),
        "_retrieve_segment": staticmethod(heard.segments_of(kind._retrieve_segment)),
    }
    return type(kind.__name__, (kind,), names)


def _settled(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, which warns where Whisper's own `generate` gives it settings and changes to them, or two limits of
    length: settings come first, then the changes, and of the limits the one that counts is left."""

    def prepared(self: Any, generation_config: Any, **kwargs: Any) -> Any:
        names = ("suppress_tokens", "begin_suppress_tokens") if generation_config is not None else ()
        changes = {name: kwargs.pop(name) for name in names if name in kwargs}
        settings, rest = original(self, generation_config, **kwargs)
        settings.update(**changes)
        if settings.max_new_tokens is not None:
            settings.max_length = None
        return settings, rest

    return prepared


class _Heard:
    """What comes out of `generate` on the way: the language, and segments as soon as their window is done."""

    def __init__(
        self, bench: Bench, tokenizer: Any, model: Any, only: str | None, *, streams: bool, translates: bool
    ) -> None:
        """`only`: the language, where the model knows one. `streams`: segments go out at once. `translates`: what is
        written is English."""
        self.spoken: str | None = None
        self._translates = translates
        self.segments: list[Segment] = []
        self._bench = bench
        self._tokenizer = tokenizer
        self._only = only
        self._streams = streams
        self._languages = {
            number: token[2:-2] for token, number in getattr(model.generation_config, "lang_to_id", {}).items()
        }

    @property
    def language(self) -> str | None:
        """Of the text."""
        return "en" if self._translates else self.spoken

    def first_tokens(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`original`, watched: the tokens that every window begins with, (1, tokens)."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            tokens = original(*args, **kwargs)
            spoken = [self._languages[number] for number in tokens[0].tolist() if number in self._languages]
            self.spoken = spoken[0] if spoken and spoken[0] in LANGUAGES else self._only
            return tokens

        return watched

    def segments_of(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`original`, watched: it cuts the tokens of one window into segments."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            segments, offset = original(*args, **kwargs)
            for each in segments:
                text = self._tokenizer.decode(each["tokens"], skip_special_tokens=True).strip()
                segment = Segment(start_s=float(each["start"]), end_s=float(each["end"]), text=text)
                self.segments.append(segment)
                if self._streams:
                    part = Transcript(text=text, segments=(segment,), language=self.language)
                    self._bench.emit(Media(self._bench.request_id, self._bench.index, "transcript", part, is_part=True))
            return segments, offset

        return watched
