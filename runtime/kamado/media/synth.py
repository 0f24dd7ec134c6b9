"""Notes as sound, for models that hear: a small additive synthesizer.

A note is the sum of six harmonics, the k-th with amplitude 1 / k^1.5, those above half the sample rate left out, in
equal temperament (a' is 440 Hz). It begins within 5 ms, dies away to a third in 1.5 s, and fades within its last 30 ms,
so that it ends when it says. A drum is a burst of noise, always the same, that dies away in 40 ms. How hard notes are
struck tells how loud they are beside each other; the loudest sample of the whole is 0.8. All programs sound alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..outputs import Audio, Note, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

PEAK = 0.8
MAX_SOUNDING_S = 20_000
"""Of all notes together."""
_HARMONICS = 6
_FALL = 1.5
_ATTACK_S, _DECAY_S, _RELEASE_S = 0.005, 1.5, 0.03
_DRUM_S, _DRUM_DECAY_S = 0.25, 0.04


def end_s(score: Score) -> float:
    """When the last note ends."""
    return max((note.start_s + note.duration_s for note in score.notes), default=0.0)


def sound_of(score: Score, rate: int, *, longest_s: float, drums: bool = True) -> Audio:
    """The notes as sound of one channel at `rate` Hz, from second 0 to the end of the last one: the same notes make the
    same samples. It is cut after `longest_s`. `drums`: whether they are heard. Raises InvalidRequest where notes are
    too many to be played (MAX_SOUNDING_S), or none is left to hear."""
    import numpy as np

    heard = [note for note in score.notes if note.start_s < longest_s and (drums or not note.is_drum)]
    if not heard:
        raise InvalidRequest("notes has none that can be heard" + ("" if drums else ": drums have no melody"))
    if sum(min(note.duration_s, longest_s) for note in heard) > MAX_SOUNDING_S:
        raise InvalidRequest(f"notes sounds for more than {MAX_SOUNDING_S} s in all; give fewer at once")
    total = max(round(min(end_s(Score(notes=tuple(heard))), longest_s) * rate), 1)
    samples = np.zeros(total)
    for pitch in sorted({note.pitch for note in heard if not note.is_drum}):
        alike = [note for note in heard if note.pitch == pitch and not note.is_drum]
        begin = min(_first(note, rate) for note in alike)
        loudness = _loudness(alike, rate, begin, total)
        sounding = np.flatnonzero(loudness)
        samples[begin + sounding] += loudness[sounding] * _wave(pitch, rate, begin + sounding)
    burst = _burst(rate)
    for note in heard:
        if note.is_drum:
            place = samples[_first(note, rate) :][: len(burst)]
            place += note.velocity / 127 * burst[: len(place)]
    peak = np.abs(samples).max()
    return Audio(samples=(samples * (PEAK / peak if peak else 0.0)).astype(np.float32)[None], sample_rate=rate)


def _first(note: Note, rate: int) -> int:
    return round(note.start_s * rate)


def _loudness(notes: Sequence[Note], rate: int, begin: int, total: int) -> NDArray[Any]:
    """Of all notes of one pitch, from sample `begin` on."""
    import numpy as np

    ends = [min(round((note.start_s + note.duration_s) * rate), total) for note in notes]
    loudness = np.zeros(max(max(ends) - begin, 0))
    longest = max(end - _first(note, rate) for note, end in zip(notes, ends, strict=True))
    time = np.arange(max(longest, 0)) / rate
    fall, rise = np.exp(-time / _DECAY_S), np.minimum(time / _ATTACK_S, 1.0)
    fade = np.minimum(time / _RELEASE_S, 1.0)  # from the end backwards
    for note, end in zip(notes, ends, strict=True):
        first = _first(note, rate)
        if (length := end - first) > 0:
            shape = fall[:length] * rise[:length] * fade[:length][::-1]
            loudness[first - begin : end - begin] += note.velocity / 127 * shape
    return loudness


def _wave(pitch: int, rate: int, places: NDArray[Any]) -> NDArray[Any]:
    """Of a note that always sounds, at these samples. sin kx = 2 cos x sin (k - 1)x - sin (k - 2)x."""
    import numpy as np

    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    angle = 2 * math.pi * hertz / rate * places
    twice, below, harmonic = 2 * np.cos(angle), np.zeros(len(places)), np.sin(angle)
    wave = np.zeros(len(places))
    for number in range(1, _HARMONICS + 1):
        if number * hertz < rate / 2:
            wave += harmonic / number**_FALL
            below, harmonic = harmonic, twice * harmonic - below
    return wave


def _burst(rate: int) -> NDArray[Any]:
    import numpy as np

    time = np.arange(round(_DRUM_S * rate)) / rate
    noise = np.random.default_rng(0).uniform(-1, 1, len(time))
    return np.asarray(noise * np.exp(-time / _DRUM_DECAY_S))
