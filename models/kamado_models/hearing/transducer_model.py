"""Transducers, loaded (Graves, "Sequence transduction with recurrent neural networks"; with durations: Xu et al.,
"Efficient sequence transduction by jointly predicting tokens and durations"). Long recordings are cut where they are
quiet; the loop over moments is the library's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.events import Media
from kamado.outputs import Output, Segment, Transcript

from ..library.assembly import Through, doubled
from ..library.kinds import Bench, architecture_of
from ..library.loading import Loader
from .common import Word, clips, lines, quiet_pieces, segment_of
from .loading import features_of, library_config, stored_generation_config
from .transducer import PIECE_S

_SHORTEST_S = 0.1
"""Shorter recordings are filled up with silence: convolutions need that much."""
_TICK_S = 0.001
"""What times of words are counted in."""
_PROCESSOR = "processor_config.json"
_MOST_AT_ONCE = 1000
"""Tokens at one moment."""
_PARTS = {"": Through(lane="model"), "encoder_projector": Through(lane="model")}


def build(checkpoint: Checkpoint, loader: Loader) -> Transducer:
    """See Kind."""
    most = checkpoint.config.get("max_symbols_per_step", 10)
    if not isinstance(most, int) or not 0 < most <= _MOST_AT_ONCE:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: config.json has max_symbols_per_step {most!r:.40}; 1 to {_MOST_AT_ONCE} can be"
        )
    processor = _processor(checkpoint, loader)
    model_class = getattr(transformers, architecture_of(checkpoint))
    model = loader.pretrained("model", model_class, library_config(loader), checkpoint.tensors)
    model.generation_config = stored_generation_config(checkpoint, loader, model)
    return Transducer(model, processor)


def _processor(checkpoint: Checkpoint, loader: Loader) -> Any:
    """Made by hand: `from_pretrained` of a processor loads the model that its file names as `audio_tokenizer`, from
    anywhere. Raises UnsupportedCheckpoint."""
    file = checkpoint.files.get(_PROCESSOR)
    stated = {} if file is None else read_json_object(file)
    blank, decoder = stated.get("blank_token", "<blank>"), stated.get("decoder_type")
    if not isinstance(blank, str):
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {_PROCESSOR} has blank_token {blank!r:.40}; it must be text"
        )
    if decoder not in (None, "ctc", "rnnt", "tdt"):
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: {_PROCESSOR} has decoder_type {decoder!r:.40}; ctc, rnnt and tdt can be"
        )
    extractor = loader.folder_call(transformers.AutoFeatureExtractor.from_pretrained, what="feature extractor")
    tokenizer = loader.folder_call(transformers.AutoTokenizer.from_pretrained, what="tokenizer")
    return loader.folder_call(
        lambda *_, **__: transformers.ParakeetProcessor(extractor, tokenizer, blank, decoder), what="processor"
    )


class Transducer:
    """See Generator."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.modules: Mapping[str, Any] = {"encoder": model.encoder, "model": model}
        self._processor = processor
        self._extractor = processor.feature_extractor
        self._rate: int = self._extractor.sampling_rate

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        found: list[Mapping[str, Any]] = []
        for heard in clips(asked, self._rate):
            samples = np.pad(heard, (0, max(int(_SHORTEST_S * self._rate) - len(heard), 0)))
            pieces = [
                (begin / self._rate, features_of(self._extractor, samples[begin:end]))
                for begin, end in quiet_pieces(samples, self._rate, asked.get("window", PIECE_S))
            ]
            found.append({"timestamps": asked.get("timestamps", "segment"), "pieces": pieces})
        return found

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        texts: list[str] = []
        segments: list[Segment] = []
        for number, (begin_s, inputs) in enumerate(asked["pieces"], start=1):
            text, words = self._heard(bench, inputs)
            bench.progress(number, len(asked["pieces"]))
            texts += [text] if text else []
            if asked["timestamps"] == "none":
                continue
            groups = [[word] for word in words] if asked["timestamps"] == "word" else lines(words, _TICK_S)
            for group in groups:
                segment = segment_of(group, _TICK_S)
                segment = replace(segment, start_s=begin_s + segment.start_s, end_s=begin_s + segment.end_s)
                segments.append(segment)
                part = Transcript(text=segment.text, segments=(segment,))
                bench.emit(Media(bench.request_id, bench.index, "transcript", part, is_part=True))
        return Transcript(text=" ".join(texts), segments=tuple(segments))

    def _heard(self, bench: Bench, inputs: Mapping[str, Any]) -> tuple[str, list[Word]]:
        """What is said in a piece."""
        model = doubled(self.modules["model"], bench, _PARTS)
        model.__dict__["encoder"] = bench.model("encoder")  # equal calls of several requests are joined
        given = {
            name: inputs[name].to(bench.device, bench.dtype if inputs[name].is_floating_point() else None)
            for name in ("input_features", "attention_mask")
        }
        made = model.generate(**given, **self._limit(inputs["input_features"].shape[1]))
        texts, tokens = self._processor.decode(
            made.sequences.cpu(), durations=made.durations.cpu(), skip_special_tokens=True
        )
        return texts[0].strip(), _words(tokens[0])

    def _limit(self, frames: int) -> dict[str, int]:
        """The limit that `generate` finds by itself, and then warns of: no more than this is ever said."""
        model = self.modules["model"]
        settings = model.generation_config
        if settings.max_length is not None or settings.max_new_tokens is not None:
            return {}
        moments = int(model.encoder._get_subsampling_output_length(torch.tensor([frames])))
        return {"max_new_tokens": max(model.max_symbols_per_step * moments - 1, 1)}


def _words(tokens: Iterable[Mapping[str, Any]]) -> list[Word]:
    """Pieces of words with their times in seconds, together: a word begins with a space."""
    found: list[Word] = []
    for token in tokens:
        start, end = (round(token[name] / _TICK_S) for name in ("start", "end"))
        if found and not token["token"].startswith(" "):
            found[-1] = Word(found[-1].text + token["token"], found[-1].start, max(found[-1].end, end))
        else:
            found.append(Word(token["token"], start, end))
    return [replace(word, text=word.text.strip()) for word in found if word.text.strip()]
