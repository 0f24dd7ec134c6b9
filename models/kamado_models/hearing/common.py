"""What all models that listen have in common: recordings, time stamps, lines of subtitles. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.media.sounds import open_sound
from kamado.options import Options, number
from kamado.outputs import Audio, Segment

from ..library.kinds import architecture_of, num_parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

TASK = "automatic-speech-recognition"
MAX_CLIPS = 1024
_LONGEST_PAUSE_S = 0.6
_MAX_LINE_CHARACTERS = 84
"""Two lines of 42, the most that subtitles show at once."""
_MAX_LINE_S = 7.0


@dataclass(frozen=True, slots=True)
class Word:
    """A word and the frames that it was heard in: from `start` up to, not including, `end`."""

    text: str
    start: int
    end: int


def recordings(name: str, value: Any) -> Any:
    """A check of options: one recording or several. They are opened later."""
    if isinstance(value, (list, tuple)) and not 0 < len(value) <= MAX_CLIPS:
        raise InvalidRequest(f"{name} must be 1 to {MAX_CLIPS} recordings, not {len(value)}")
    return value


def time_stamps(name: str, value: Any) -> str:
    """A check of options: "segment" (or true), "word", or "none" (or false)."""
    if isinstance(value, bool):
        return "segment" if value else "none"
    if value not in ("segment", "word", "none"):
        raise InvalidRequest(f"{name} must be true, false, segment, word or none, not {value!r:.80}")
    return str(value)


def clips(asked: Mapping[str, Any], rate: int) -> list[NDArray[Any]]:
    """The recordings of a request, float32 [samples] at `rate`. Raises InvalidRequest."""
    given = asked["audio"]
    sounds = given if isinstance(given, (list, tuple)) and not _is_samples(given) else (given,)
    return [open_sound(sound, rate=rate, channels=1).samples[0] for sound in sounds]


def lines(words: Iterable[Word], frame_s: float) -> list[list[Word]]:
    """Words as the lines of subtitles: a new one after a pause, and before one gets too long. Which words a line has
    does not depend on those after its end."""
    found: list[list[Word]] = []
    for word in words:
        line = found[-1] if found else []
        if line and _goes_on(line, word, frame_s):
            line.append(word)
        else:
            found.append([word])
    return found


def _goes_on(line: Sequence[Word], word: Word, frame_s: float) -> bool:
    pause_s = (word.start - line[-1].end) * frame_s
    length = sum(len(each.text) + 1 for each in line) + len(word.text)
    whole_s = (word.end - line[0].start) * frame_s
    return pause_s < _LONGEST_PAUSE_S and length <= _MAX_LINE_CHARACTERS and whole_s <= _MAX_LINE_S


def segment_of(words: Sequence[Word], frame_s: float) -> Segment:
    """A line, or a word, with its times."""
    text = " ".join(word.text for word in words)
    return Segment(start_s=words[0].start * frame_s, end_s=words[-1].end * frame_s, text=text)


def quiet_pieces(samples: NDArray[Any], rate: int, longest_s: float) -> list[tuple[int, int]]:
    """Where to cut a recording into pieces of at most `longest_s`: (first sample, end) of each, without gaps. A cut is
    in the middle of the quietest tenth of a second of the last third of a piece."""
    import numpy as np

    longest, width = int(longest_s * rate), max(rate // 10, 1)
    pieces, begin = [], 0
    while len(samples) - begin > longest:
        late = begin + longest * 2 // 3
        energy = np.cumsum(np.square(samples[late : begin + longest], dtype=np.float64))
        quietest = int(np.argmin(energy[width:] - energy[:-width])) + width // 2
        pieces.append((begin, late + quietest))
        begin = late + quietest
    return [*pieces, (begin, len(samples))]


def _is_samples(value: Sequence[Any]) -> bool:
    """Whether it is (samples, sample rate)."""
    return len(value) == 2 and isinstance(value[1], int) and not isinstance(value[0], Audio)


def window_options(what: str) -> Options:
    """Of kinds that hear windows of a recording: `audio`, `timestamps`, `window` (seconds)."""
    checks = {"audio": recordings, "timestamps": time_stamps, "window": number(1.0, 600.0)}
    return Options(
        what=f"a speech recognition model ({what})", checks=checks, inputs={"audio": "audio"}, needs=("audio",)
    )


def window_facts(checkpoint: Checkpoint, window_s: float) -> Mapping[str, Any]:
    """What `describe` says of them; windows in seconds, where nothing else is asked for."""
    return {
        "architecture": architecture_of(checkpoint),
        "parameters": num_parameters(checkpoint.tensors),
        "window_s": window_s,
        "word_timestamps": True,
    }
