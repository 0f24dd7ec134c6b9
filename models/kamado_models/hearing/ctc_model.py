"""Models that spell what they hear frame by frame, loaded. Long recordings are heard in windows that overlap; of each,
the middle counts, as in transformers' pipeline (https://huggingface.co/blog/asr-chunking)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers

from kamado.checkpoint.types import Checkpoint
from kamado.events import Media
from kamado.outputs import Output, Transcript

from ..library.kinds import Bench, architecture_of
from ..library.loading import Loader
from .common import Word, clips, lines, segment_of
from .ctc import WINDOW_S
from .loading import features_of, library_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHORTEST_S = 0.1
"""Shorter recordings are filled up with silence: convolutions need that much."""
_SHORTEST_OF = {"lasr_ctc": 0.25}
"""The same, of model types that need more."""
_WORD_BEGINS = "\u2581"
"""What pieces of words begin with, in SentencePiece, at the beginning of a word."""


def build(checkpoint: Checkpoint, loader: Loader) -> CtcModel:
    """See Kind."""
    extractor = loader.folder_call(transformers.AutoFeatureExtractor.from_pretrained, what="feature extractor")
    tokenizer = loader.folder_call(transformers.AutoTokenizer.from_pretrained, what="tokenizer")
    model_class = getattr(transformers, architecture_of(checkpoint))
    model = loader.pretrained("network", model_class, library_config(loader), checkpoint.tensors)
    return CtcModel(model, extractor, tokenizer)


class CtcModel:
    """See Generator."""

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        self.modules: Mapping[str, Any] = {"network": model}
        self._input_name: str = model.main_input_name
        self._extractor = extractor
        self._tokenizer = tokenizer
        self._rate: int = extractor.sampling_rate
        self._samples_per_frame = _samples_per_frame(model.config, extractor)
        self._skips = model.config.model_type == "lasr_ctc"
        """Whether it writes special tokens, which are no text."""
        self._shortest = int(_SHORTEST_OF.get(model.config.model_type, _SHORTEST_S) * self._rate)

    def prepare(self, asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """See Generator."""
        given = {"timestamps": asked.get("timestamps", "segment")}
        window_s = asked.get("window", WINDOW_S)
        return [{**given, "windows": list(self._windows(samples, window_s))} for samples in clips(asked, self._rate)]

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        stamps, frames = asked["timestamps"], []
        words = _Words(self._tokenizer, self._samples_per_frame / self._rate, each=stamps == "word", skips=self._skips)
        for number, (inputs, (total, left, right)) in enumerate(asked["windows"], start=1):
            given = {
                name: tensor.to(bench.device, bench.dtype if tensor.is_floating_point() else None)
                for name, tensor in inputs.items()
            }
            logits = bench.model("network")(**given).logits
            heard = logits.argmax(dim=-1)[0].cpu().numpy()[left : total - right]
            frames.append(heard)
            bench.progress(number, len(asked["windows"]))
            if stamps == "none":
                continue
            for segment in words.add(heard, is_last=number == len(asked["windows"])):
                part = Transcript(text=segment.text, segments=(segment,))
                bench.emit(Media(bench.request_id, bench.index, "transcript", part, is_part=True))
        text = self._tokenizer.decode(np.concatenate(frames), skip_special_tokens=self._skips).strip()
        return Transcript(text=text, segments=tuple(words.segments))

    def _windows(self, samples: NDArray[Any], window_s: float) -> Iterator[tuple[dict[str, Any], tuple[int, int, int]]]:
        """The inputs of each forward, with (frames, those at the left, those at the right that do not count)."""
        samples = np.pad(samples, (0, max(self._shortest - len(samples), 0)))
        unit = self._samples_per_frame
        length = round(window_s * self._rate / unit) * unit
        side = round(window_s / 6 * self._rate / unit) * unit
        if len(samples) <= length:
            yield self._inputs(samples), (len(samples), 0, 0)  # all frames: there are never more than samples
            return
        for begin in range(0, len(samples), length - 2 * side):
            piece = samples[begin : begin + length]
            is_last = begin + length >= len(samples)
            frames = round(len(piece) / unit)
            sides = (side if begin else 0, 0 if is_last else side)
            left, right = (round(each / len(piece) * frames) for each in sides)
            if len(piece) > sides[0]:
                yield self._inputs(piece), (frames, left, right)
            if is_last:
                break

    def _inputs(self, samples: NDArray[Any]) -> dict[str, Any]:
        made = features_of(self._extractor, samples)
        return {name: made[name] for name in (self._input_name, "attention_mask")}


class _Words:
    """Frames into words, lines and times, window by window."""

    def __init__(self, tokenizer: Any, frame_s: float, *, each: bool, skips: bool) -> None:
        """`each`: one segment a word. `skips`: special tokens are no text."""
        self.segments: list[Any] = []
        self._tokenizer = tokenizer
        self._frame_s = frame_s
        self._each = each
        self._skips = skips
        self._open: NDArray[Any] = np.zeros(0, np.int64)
        """Frames of the line that is not ended."""
        self._begin = 0
        """Which frame the first of them is."""

    def add(self, frames: NDArray[Any], *, is_last: bool) -> Sequence[Any]:
        """More frames; returns the segments that are certain with them."""
        self._open = np.concatenate([self._open, frames])
        found = lines(self._words(), self._frame_s)
        done = found if is_last else found[:-1]
        groups = [[word] for line in done for word in line] if self._each else done
        new = [segment_of(group, self._frame_s) for group in groups]
        if not is_last and found:
            first = found[-1][0].start
            self._open, self._begin = self._open[first - self._begin :], first
        self.segments += new
        return new

    def _words(self) -> list[Word]:
        found = self._by_letters() if hasattr(self._tokenizer, "_get_word_offsets") else self._by_pieces()
        return [Word(word.text, word.start + self._begin, word.end + self._begin) for word in found]

    def _by_letters(self) -> list[Word]:
        """With the library's own account of letters."""
        spelled = self._tokenizer.decode(self._open, skip_special_tokens=False, output_char_offsets=True)
        delimiter = self._tokenizer.replace_word_delimiter_char
        words = self._tokenizer._get_word_offsets(spelled["char_offsets"], delimiter)
        return [Word(word["word"], int(word["start_offset"]), int(word["end_offset"])) for word in words]

    def _by_pieces(self) -> list[Word]:
        """Of pieces of words: a piece lasts as long as frames repeat it; the blank is the padding token."""
        groups: list[tuple[list[int], int, int]] = []
        place = 0
        for token, run in itertools.groupby(self._open.tolist()):
            begin, place = place, place + len(list(run))
            if token == self._tokenizer.pad_token_id:
                continue
            piece = self._tokenizer.convert_ids_to_tokens(token)
            if groups and not piece.startswith(_WORD_BEGINS):
                groups[-1] = ([*groups[-1][0], token], groups[-1][1], place)
            else:
                groups.append(([token], begin, place))
        found = [
            Word(
                self._tokenizer.decode(tokens, group_tokens=False, skip_special_tokens=self._skips).strip(), begin, end
            )
            for tokens, begin, end in groups
        ]
        return [word for word in found if word.text]


def _samples_per_frame(config: Any, extractor: Any) -> int:
    ratio = getattr(config, "inputs_to_logits_ratio", None)
    if ratio is not None:  # LASR counts those of its spectrogram
        return int(ratio * extractor.hop_length if config.model_type == "lasr_ctc" else ratio)
    inner = getattr(config, "encoder_config", config)
    return int(inner.subsampling_factor * extractor.hop_length)
