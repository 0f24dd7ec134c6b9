"""Notes as tokens: what `events.score_of` reads, so that a model goes on from music that it is given.

Notes go to the nearest place that the vocabulary can say, and so do their ends, velocities and tempos. Bars have four
beats: notes do not tell another meter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from kamado.media.tempo import Beats
from kamado.outputs import Note, Score

from .events import DRUMS, USUAL_TEMPO, USUAL_TEMPOS, Event, Grid, beats_of, event_of, pitch_of, real_of, whole_of

_BAR = 4.0
"""Beats."""
_NEAR = 1e-6
"""Beats that are rounding."""
_FAMILY = 8
"""Programs of General MIDI that are alike."""
_OFF, _TURN, _ON = range(3)
"""What comes first of what is at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of notes."""

    tokens: Iterator[str]
    """Made as they are asked for: notes may lie hours apart."""
    tempos: tuple[tuple[float, float], ...]
    """At which they are read again: see `score_of`."""
    left_out: int
    """How many notes the vocabulary has no token for."""
    played_by_others: int
    """How many of the rest have an instrument that it has not."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A note as it will be told."""

    begin: float
    """Beat."""
    end: float
    pitch: int
    velocity: int
    program: int
    """DRUMS: one of them."""


@dataclass(frozen=True, slots=True)
class _Act:
    """Tokens of one moment."""

    beat: float
    order: int
    words: tuple[str, ...]
    velocity: str | None = None
    """A token that is told before them, unless it was the last of its kind."""


@dataclass(slots=True)
class _Place:
    """Where telling has come to."""

    bar: int = -1
    word: str | None = None
    """The position."""
    beat: float = 0.0


class Writer:
    """Tells notes in the tokens of one vocabulary."""

    def __init__(self, vocabulary: Iterable[str], grid: Grid) -> None:
        self._grid = grid
        self._words = words = _words_of(vocabulary, grid)
        self._has_tracks = {"track", "bar", "delta"} <= words.keys()
        self._has_bars = {"bar", "position"} <= words.keys() and not self._has_tracks
        self._has_ends = {"on", "off"} <= words.keys() and "pitch" not in words
        self._pitches = words.get("on" if self._has_ends else "pitch", {})
        if self._has_ends:
            self._pitches = {pitch: word for pitch, word in self._pitches.items() if pitch in words["off"]}
        self._programs: list[int] = sorted(each for each in words.get("program", {}) if each != DRUMS)
        steps = words.get("delta" if self._has_tracks or "shift" not in words else "shift", {})
        self._steps = [(size, steps[size]) for size in sorted(steps)]
        self._in_seconds = "seconds" in words and not (self._has_tracks or self._has_bars)
        self._tells_tempos = "tempo" in words and not (self._has_tracks or self._in_seconds)
        places = [((place - grid.first) / grid.per_beat, word) for place, word in words.get("position", {}).items()]
        self._positions = sorted(each for each in places if 0 <= each[0] < _BAR)

    @property
    def can_write(self) -> bool:
        """Whether the vocabulary has what it takes to tell notes."""
        is_timed = bool(self._positions if self._has_bars else self._steps)
        return is_timed and bool(self._pitches) and (self._has_ends or not self._has_tracks)

    def written(self, score: Score) -> Written:
        """The tokens of notes. Of tracks, which are told one after the other, the last is left open."""
        tempos = USUAL_TEMPOS if self._in_seconds else score.tempos
        beats = Beats(tempos)
        pairs = [(note, each) for note in score.notes if (each := self._told(note, beats)) is not None]
        told = sorted((each for _, each in pairs), key=_order)
        if self._has_ends:
            told = _apart(told, 1 / self._grid.per_beat if self._has_bars else self._steps[0][0])
        turns = [(beat, tempo) for beat, (_, tempo) in zip(beats.beats, tempos, strict=True)]
        return Written(
            tokens=self._tracks(told) if self._has_tracks else self._line(told, turns),
            tempos=USUAL_TEMPOS if self._tells_tempos else tempos,
            left_out=len(score.notes) - len(pairs),
            played_by_others=sum(not note.is_drum and each.program != note.program for note, each in pairs),
        )

    def _told(self, note: Note, beats: Beats) -> _Told | None:
        program = DRUMS if note.is_drum else self._program(note.program)
        if self._pitch_word(note.pitch, program) is None:
            return None
        begin, end = beats.at(note.start_s), beats.at(note.start_s + note.duration_s)
        return _Told(begin, end, note.pitch, note.velocity, program)

    def _pitch_word(self, pitch: int, program: int) -> str | None:
        if program != DRUMS:
            return self._pitches.get(pitch)
        found = None if self._has_ends else self._words.get("drum", {}).get(pitch)
        return found or (self._pitches.get(pitch) if DRUMS in self._words.get("program", {}) else None)

    def _program(self, program: int) -> int:
        """The one that plays what `program` should."""
        if program in self._programs or not self._programs:
            return program if self._programs else 0
        alike = (each for each in self._programs if each // _FAMILY == program // _FAMILY)
        return next(alike, self._programs[0])

    def _line(self, told: Sequence[_Told], turns: Sequence[tuple[float, float]]) -> Iterator[str]:
        """All instruments together, as time goes on."""
        acts = [*self._acts(told, with_programs=True), *(self._turns(turns) if self._tells_tempos else ())]
        place, velocity = _Place(), None
        for act in sorted(acts, key=lambda act: (act.beat, act.order)):
            yield from self._to_position(place, act.beat) if self._has_bars else self._by_steps(place, act.beat)
            if act.velocity not in (None, velocity):
                velocity = act.velocity
                yield str(velocity)
            yield from act.words

    def _tracks(self, told: Sequence[_Told]) -> Iterator[str]:
        """One instrument after the other, drums first, each with all bars."""
        parts: dict[int, list[_Told]] = {}
        for each in told:
            parts.setdefault(each.program, []).append(each)
        num_bars = max((_bar_of(_OFF, each.end) for each in told), default=0) + 1
        for number, program in enumerate(sorted(parts, key=lambda program: -1 if program == DRUMS else program)):
            if number:
                yield from self._words.get("trackend", {}).values()
            yield self._words["track"][0]
            yield from filter(None, [self._words.get("program", {}).get(program)])
            bars: dict[int, list[_Act]] = {}
            for act in self._acts(parts[program], with_programs=False):
                bars.setdefault(_bar_of(act.order, act.beat), []).append(act)
            for bar in range(num_bars):
                yield self._bar_word(bar)
                place = _Place()
                for act in sorted(bars.get(bar, ()), key=lambda act: (act.beat, act.order)):
                    yield from self._by_steps(place, act.beat - bar * _BAR)
                    yield from filter(None, [act.velocity])
                    yield from act.words
                yield from self._words.get("barend", {}).values()

    def _acts(self, told: Iterable[_Told], *, with_programs: bool) -> Iterator[_Act]:
        programs = self._words.get("program", {}) if with_programs else {}
        for each in told:
            who = (programs[each.program],) if each.program in programs else ()
            pitch = str(self._pitch_word(each.pitch, each.program))
            velocity = _nearest(self._words.get("velocity", {}), each.velocity)
            loud = () if velocity is None else (velocity,)
            if not self._has_ends:
                length = _nearest(self._words.get("duration", {}), each.end - each.begin)
                yield _Act(each.begin, _ON, (*who, pitch, *loud, *(() if length is None else (length,))))
                continue
            if self._grid.velocity_follows:
                yield _Act(each.begin, _ON, (*who, pitch, *loud))
            else:
                yield _Act(each.begin, _ON, (*who, pitch), velocity)
            yield _Act(each.end, _OFF, (*who, self._words["off"][each.pitch]))

    def _turns(self, turns: Iterable[tuple[float, float]]) -> Iterator[_Act]:
        last = None
        for beat, tempo in turns:
            word = _nearest(self._words["tempo"], tempo)
            if word is not None and word != last:
                last = word
                yield _Act(beat, _TURN, (word,))

    def _to_position(self, place: _Place, beat: float) -> Iterator[str]:
        """Bars, and a position in the last one."""
        bar = int(beat // _BAR)
        rest = beat - bar * _BAR
        away, word = min((abs(each - rest), word) for each, word in self._positions)
        if abs(_BAR + self._positions[0][0] - rest) < away:
            bar, word = bar + 1, self._positions[0][1]
        while place.bar < bar:
            place.bar, place.word = place.bar + 1, None
            yield self._bar_word(place.bar)
            yield from filter(None, [self._words.get("meter", {}).get("4/4")])
        if word != place.word:
            place.word = word
            yield word

    def _by_steps(self, place: _Place, beat: float) -> Iterator[str]:
        """Steps as long as they can be."""
        while (gap := beat - place.beat) >= self._steps[0][0] / 2 - _NEAR:
            fitting = [each for each in self._steps if each[0] <= gap + _NEAR]
            size, word = fitting[-1] if fitting else self._steps[0]
            place.beat += size
            yield word

    def _bar_word(self, bar: int) -> str:
        """The bars of some vocabularies have numbers."""
        words = self._words["bar"]
        first = min(words)
        return words.get(first + bar, words[max(words)]) if first >= 0 else words[first]


def _bar_of(order: int, beat: float) -> int:
    """Notes end in the bar before the line, and begin behind it."""
    return max(math.ceil(beat / _BAR - _NEAR) - 1, 0) if order == _OFF else math.floor(beat / _BAR + _NEAR)


def _apart(told: Sequence[_Told], step: float) -> list[_Told]:
    """On whole steps; each ends before the next one of its pitch and program begins, as its end could be taken for
    that one's. Of several that begin at once the last one sounds."""
    alike: dict[tuple[int, int], dict[float, _Told]] = {}
    for each in told:
        begin = round(each.begin / step) * step
        end = max(round(each.end / step) * step, begin + step)
        alike.setdefault((each.pitch, each.program), {})[begin] = replace(each, begin=begin, end=end)
    found: list[_Told] = []
    for by_begin in alike.values():
        line = sorted(by_begin.values(), key=lambda each: each.begin)
        found += [replace(one, end=min(one.end, after.begin)) for one, after in pairwise(line)]
        found.append(line[-1])
    return sorted(found, key=_order)


def _order(told: _Told) -> tuple[float, int, int]:
    return told.begin, told.program, told.pitch


def _nearest(words: Mapping[float, str], value: float) -> str | None:
    return min(words.items(), key=lambda each: abs(each[0] - value))[1] if words else None


def _words_of(vocabulary: Iterable[str], grid: Grid) -> dict[str, dict[Any, str]]:
    """The tokens by what they say and the number that they say it with. Rests, which are pauses too, count where there
    are no other ones. `seconds` is there where pauses are hundredths of seconds."""
    found: dict[str, dict[Any, str]] = {}
    for word in sorted(vocabulary, key=lambda word: "rest" in word.lower()):
        plain, event = re.sub(r"[^a-z]", "", word.lower()), event_of(word)
        if plain in ("barend", "trackend"):
            found.setdefault(plain, {}).setdefault(0, word)
        elif event is not None and (value := _value(event, grid)) is not None:
            found.setdefault(event.name, {}).setdefault(value, word)
            if event.name == "shift" and beats_of(event.value) is None:
                found.setdefault("seconds", {})[0] = word
    return found


def _value(event: Event, grid: Grid) -> float | str | None:
    """The number of a token, times in beats; None: it says nothing that is needed."""
    number = whole_of(event.value)
    match event.name:
        case "on" | "off" | "pitch" | "drum":
            return pitch_of(event.value)
        case "velocity":
            return number if number is not None and 1 <= number <= 127 else None
        case "program":
            is_drums = event.value in ("DRUMS", "drums") or (number is not None and not 0 <= number < DRUMS)
            return DRUMS if is_drums else number
        case "shift" | "delta" | "duration":
            in_beats = beats_of(event.value)
            per_beat = {"shift": 100 * 60 / USUAL_TEMPO, "delta": 4.0, "duration": grid.per_beat}[event.name]
            beats = in_beats if in_beats is not None else (number or 0) / per_beat
            return beats if beats > 0 else None
        case "tempo":
            return real_of(event.value)
        case "bar":
            return -1 if number is None else number
        case "track":
            return 0
        case "meter":
            return event.value
        case _:
            return number
