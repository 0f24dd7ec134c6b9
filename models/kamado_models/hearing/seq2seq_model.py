"""Models that listen to a piece of a recording and then write, loaded. Long recordings are cut where they are quiet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import transformers

from kamado.checkpoint.types import Checkpoint
from kamado.events import Media
from kamado.outputs import Output, Segment, Transcript

from ..library.kinds import Bench, architecture_of
from ..library.loading import Loader
from .common import clips, quiet_pieces
from .loading import library_config, stored_generation_config
from .seq2seq import CLASSES, PIECE_S, SEAMLESS, used_tensors

_TOKENS_A_SECOND = 6.5
"""The most that somebody says: Moonshine's authors end answers there, since it goes on for ever over noise."""
_SHORTEST_S = 0.1
"""Shorter recordings are filled up with silence: convolutions need that much."""


def build(checkpoint: Checkpoint, loader: Loader) -> Seq2Seq:
    """See Kind."""
    extractor = loader.folder_call(transformers.AutoFeatureExtractor.from_pretrained, what="feature extractor")
    tokenizer = loader.folder_call(transformers.AutoTokenizer.from_pretrained, what="tokenizer")
    architecture = architecture_of(checkpoint)
    model_class = getattr(transformers, CLASSES[architecture])
    model = loader.pretrained("model", model_class, library_config(loader), used_tensors(checkpoint))
    model.generation_config = stored_generation_config(checkpoint, loader, model)
    return Seq2Seq(model, extractor, tokenizer, architecture)


class Seq2Seq:
    """See Generator."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any, architecture: str) -> None:
        self.modules: Mapping[str, Any] = {"encoder": model.get_encoder(), "model": model}
        self._input_name: str = model.main_input_name
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._is_seamless = architecture in SEAMLESS
        self._is_moonshine = architecture.startswith("Moonshine")
        self._rate: int = extractor.sampling_rate

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        import numpy as np

        given = {name: value for name, value in asked.items() if name != "audio"}
        window_s = asked.get("window", PIECE_S)
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
        language = asked.get("language")
        for number, (begin, end, inputs) in enumerate(asked["pieces"], start=1):
            given = {
                name: tensor.to(bench.device, bench.dtype if tensor.is_floating_point() else None)
                for name, tensor in inputs.items()
            }
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
        made = self._extractor(samples, sampling_rate=self._rate, return_tensors="pt", return_attention_mask=True)
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
