"""Music as tokens: events of MIDI and of bars, as REMI, MIDI-like, TSD and multi-track (MMM) vocabularies have them,
into notes.

    REMI         Bar_None Position_8 Program_0 Pitch_60 Velocity_80 Duration_1.0.8      (MidiTok; also Tempo, TimeSig)
    TSD          TimeShift_0.4.8 Pitch_60 Velocity_80 Duration_1.0.8
    MIDI-like    NoteOn_60 TimeShift_0.4.8 NoteOff_60, or TIME_SHIFT_50 in hundredths of a second
    multi-track  TRACK_START INST=0 BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END TRACK_END

Names: https://miditok.readthedocs.io/en/latest/tokenizations.html and "MMM: Exploring Conditional Multi-Track Music
Generation with the Transformer" (Ens, Pasquier 2020).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from kamado.media.notes import SLOWEST
from kamado.media.tempo import Beats
from kamado.outputs import Note, Score

_TOKEN = re.compile(r"<?(?P<name>[A-Za-z][A-Za-z_ -]*?)(?:[_=:-](?P<value>-?\d[\d./]*|None|DRUMS|drums))?>?")
_ALIKE = {
    "noteon": "on", "noteoff": "off", "pitch": "pitch", "pitchdrum": "drum", "note": "pitch",
    "velocity": "velocity", "vel": "velocity", "duration": "duration", "dur": "duration",
    "timeshift": "shift", "timedelta": "delta", "rest": "shift", "bar": "bar", "barstart": "bar",
    "position": "position", "pos": "position", "tempo": "tempo", "bpm": "tempo", "program": "program",
    "inst": "program", "instrument": "program", "timesig": "meter", "timesignature": "meter", "trackstart": "track",
}  # fmt: skip
_NEEDED = 12
"""Tokens of pitches without which a vocabulary is none of music."""
USUAL_TEMPO, _USUAL_VELOCITY = 120.0, 80
USUAL_TEMPOS = ((0.0, USUAL_TEMPO),)
DRUMS = 128
"""The program that stands for drums in many vocabularies."""
_FASTEST = 1000.0
_LONGEST_BEATS = 10_000.0
_LEAST_S = 0.01


@dataclass(frozen=True, slots=True)
class Event:
    """What a token says."""

    name: str
    """One of the values of `_ALIKE`."""
    value: str | None


def event_of(token: str) -> Event | None:
    """What the token says; None: nothing that sounds."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    name = _ALIKE.get(re.sub(r"[^a-z]", "", match["name"].lower()))
    value = match["value"]
    return None if name is None else Event(name, None if value == "None" else value)


def is_music(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary is one of music: it has pitches, and a way to say when they sound."""
    events = [event for event in map(event_of, tokens) if event is not None]
    pitches = {event.value for event in events if event.name in {"on", "pitch"}}
    return len(pitches) >= _NEEDED and any(event.name in {"position", "shift", "delta"} for event in events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a vocabulary as a whole says of its numbers."""

    per_beat: float = 4.0
    """Positions of a beat, of those that count them in a bar."""
    first: int = 0
    """The position where a bar begins."""
    velocity_follows: bool = False
    """Whether the velocity of a note that is switched on comes behind it, as MidiTok has it; others put it before."""

    @classmethod
    def of(cls, tokens: Iterable[str]) -> Grid:
        """Bars have as many positions as the longest of them needs."""
        events = [event for event in map(event_of, tokens) if event is not None]
        follows = any(event.name == "shift" and beats_of(event.value) is not None for event in events)
        positions = [
            whole for event in events if event.name == "position" and (whole := whole_of(event.value)) is not None
        ]
        if not positions:
            return cls(velocity_follows=follows)
        beats = max((beats_of_bar(event.value) for event in events if event.name == "meter"), default=4.0)
        first = 0 if 0 in positions else 1
        return cls(per_beat=max((max(positions) + 1 - first) / beats, 0.25), first=first, velocity_follows=follows)


@dataclass(slots=True)
class _Clock:
    """Beats into seconds, as the tempo changes."""

    beat: float = 0.0
    tempo: float = USUAL_TEMPO
    since: list[tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, USUAL_TEMPO)])
    """From which beat, at which second, which tempo."""
    given_until: float = 0.0
    """The beat before which the tempo stays what it is: there are notes that were given."""
    _holding: list[tuple[float, float, float]] = field(init=False)
    """Those of `since` that still hold for some beat, in order: what is told later holds from its beat on."""

    @classmethod
    def of(cls, tempos: Sequence[tuple[float, float]]) -> _Clock:
        """`tempos`: see Score."""
        since = [(beat, *tempo) for beat, tempo in zip(Beats(tempos).beats, tempos, strict=True)]
        return cls(tempo=tempos[0][1], since=since)

    def __post_init__(self) -> None:
        self._holding = list(self.since)

    def turn(self, tempo: float) -> None:
        """Another tempo from here on."""
        beat = max(self.beat, self.given_until)
        told = (beat, self.seconds(beat), tempo)
        self.since.append(told)
        while self._holding and self._holding[-1][0] >= beat:
            self._holding.pop()
        self._holding.append(told)
        self.tempo = tempo

    def seconds(self, beat: float) -> float:
        """When a beat is."""
        place = bisect_right(self._holding, beat, key=lambda told: told[0])
        start, second, tempo = self._holding[place - 1] if place else self.since[0]
        return second + (beat - start) * 60.0 / tempo

    def tempos(self) -> tuple[tuple[float, float], ...]:
        """See Score. Tracks, which begin at once, may each tell them."""
        told = sorted({second: tempo for _, second, tempo in self.since}.items())
        return (told[0], *(after for before, after in pairwise(told) if after[1] != before[1]))


@dataclass(slots=True)
class _Reader:
    """Where reading has come to."""

    grid: Grid
    clock: _Clock = field(default_factory=_Clock)
    notes: list[tuple[float, float, int, int, int, bool]] = field(default_factory=list)
    """Beat, beats, pitch, velocity, program, whether a drum."""
    bar: float = -1.0
    """Beat at which the bar begins; negative: before the first one."""
    bar_beats: float = 4.0
    velocity: int = _USUAL_VELOCITY
    program: int = 0
    pending: list[int] = field(default_factory=list)
    """Places in `notes` of the notes whose duration is still to come."""
    sounding: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    """By pitch and program: since which beat, velocity."""
    begun: tuple[int, int] | None = None
    """The note that was just switched on, where its velocity is still to come."""

    def take(self, event: Event) -> None:
        """One event."""
        getattr(self, f"_{event.name}")(event.value)

    def end(self) -> None:
        """What still sounds ends."""
        for key in list(self.sounding):
            self._stop(key)

    def _bar(self, value: str | None) -> None:
        self.bar = 0.0 if self.bar < 0 else self.bar + self.bar_beats
        self.clock.beat = self.bar

    def _track(self, value: str | None) -> None:
        """Tracks follow each other in the text, and begin at once."""
        self.end()
        self.bar, self.clock.beat, self.program = -1.0, 0.0, 0

    def _position(self, value: str | None) -> None:
        place = whole_of(value)
        if place is not None:
            self.clock.beat = max(self.bar, 0.0) + max(place - self.grid.first, 0) / self.grid.per_beat

    def _shift(self, value: str | None) -> None:
        beats = beats_of(value)
        if beats is None:  # hundredths of a second
            beats = (whole_of(value) or 0) / 100 * self.clock.tempo / 60
        self._go(beats)

    def _delta(self, value: str | None) -> None:
        beats = beats_of(value)
        self._go((whole_of(value) or 0) / 4 if beats is None else beats)

    def _go(self, beats: float) -> None:
        self.clock.beat = min(self.clock.beat + beats, _LONGEST_BEATS)

    def _tempo(self, value: str | None) -> None:
        tempo = real_of(value)
        if tempo is not None:
            self.clock.turn(min(max(tempo, SLOWEST), _FASTEST))

    def _meter(self, value: str | None) -> None:
        self.bar_beats = beats_of_bar(value)

    def _program(self, value: str | None) -> None:
        program = whole_of(value)
        self.program = DRUMS if value in {"DRUMS", "drums"} or (program is not None and program < 0) else program or 0

    def _velocity(self, value: str | None) -> None:
        velocity = whole_of(value)
        if velocity is not None:
            self.velocity = min(max(velocity, 1), 127)
            if self.begun is not None and self.begun in self.sounding:
                self.sounding[self.begun] = (self.sounding[self.begun][0], self.velocity)
            for place in self.pending:
                self.notes[place] = (*self.notes[place][:3], self.velocity, *self.notes[place][4:])

    def _pitch(self, value: str | None) -> None:
        self._note(value, self.program >= DRUMS)

    def _drum(self, value: str | None) -> None:
        self._note(value, True)

    def _note(self, value: str | None, is_drum: bool) -> None:
        pitch = pitch_of(value)
        if pitch is not None:
            before = len(self.notes)
            self._add(self.clock.beat, 1.0, pitch, self.velocity, self.program, is_drum)
            self.pending = list(range(before, len(self.notes)))

    def _duration(self, value: str | None) -> None:
        beats = beats_of(value)
        if beats is None:
            beats = (whole_of(value) or 0) / self.grid.per_beat
        for place in self.pending:
            beat, _, *rest = self.notes[place]
            self.notes[place] = (beat, min(beats, _LONGEST_BEATS), *rest)  # type: ignore[assignment]
        self.pending = []

    def _on(self, value: str | None) -> None:
        pitch = pitch_of(value)
        if pitch is not None:
            key = (pitch, self.program)
            self._stop(key)
            self.sounding[key] = (self.clock.beat, self.velocity)
            self.begun = key if self.grid.velocity_follows else None

    def _off(self, value: str | None) -> None:
        """Of the program that plays; where that has no such note, of any: many vocabularies do not say whose."""
        pitch = pitch_of(value)
        if pitch is not None:
            own = (pitch, self.program)
            self._stop(own if own in self.sounding else next((key for key in self.sounding if key[0] == pitch), own))

    def _stop(self, key: tuple[int, int]) -> None:
        if key in self.sounding:
            pitch, program = key
            beat, velocity = self.sounding.pop(key)
            self._add(beat, self.clock.beat - beat, pitch, velocity, program, program >= DRUMS)

    def _add(self, beat: float, beats: float, pitch: int, velocity: int, program: int, is_drum: bool) -> None:
        if beat <= _LONGEST_BEATS:
            self.notes.append((beat, beats, pitch, velocity, 0 if is_drum else min(program, 127), is_drum))


def score_of(
    tokens: Iterable[str], grid: Grid, tempos: Sequence[tuple[float, float]] = USUAL_TEMPOS, given: int = 0
) -> Score:
    """The notes that tokens say, at these tempos unless they say others. What makes no sense (a note's end without its
    beginning, unknown tokens) is passed over: models write such. Tempos that come behind the first `given` tokens hold
    from the end of what those say."""
    reader = _Reader(grid, _Clock.of(tempos))
    for number, token in enumerate(tokens, 1):
        event = event_of(token)
        if event is not None:
            reader.take(event)
        if number == given:
            reader.clock.given_until = max((beat + beats for beat, beats, *_ in reader.notes), default=0.0)
    reader.end()
    notes = sorted(_notes(reader), key=lambda note: (note.start_s, note.pitch, note.program))
    return Score(notes=tuple(notes), tempos=reader.clock.tempos())


def _notes(reader: _Reader) -> Iterator[Note]:
    for beat, beats, pitch, velocity, program, is_drum in reader.notes:
        start = reader.clock.seconds(beat)
        end = reader.clock.seconds(beat + beats)
        yield Note(
            start_s=start,
            duration_s=max(end - start, _LEAST_S),
            pitch=pitch,
            velocity=velocity,
            program=program,
            is_drum=is_drum,
        )


def ids_of(vocabulary: Mapping[str, int]) -> dict[int, str]:
    """Tokens by number."""
    return {number: token for token, number in vocabulary.items()}


def whole_of(value: str | None) -> int | None:
    """A whole number."""
    return int(value) if value is not None and re.fullmatch(r"-?\d{1,6}", value) else None


def real_of(value: str | None) -> float | None:
    """A number that is not negative."""
    return float(value) if value is not None and re.fullmatch(r"\d{1,6}(\.\d{1,6})?", value) else None


def pitch_of(value: str | None) -> int | None:
    """A number of MIDI's."""
    pitch = whole_of(value)
    return pitch if pitch is not None and 0 <= pitch <= 127 else None


def beats_of(value: str | None) -> float | None:
    """MidiTok's beats.positions.resolution; None where it is none."""
    match = re.fullmatch(r"(\d{1,5})\.(\d{1,5})\.(\d{1,5})", value or "")
    return None if match is None else int(match[1]) + int(match[2]) / max(int(match[3]), 1)


def beats_of_bar(value: str | None) -> float:
    """Of a time signature."""
    match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", value or "")
    return 4.0 if match is None or not int(match[1]) or not int(match[2]) else int(match[1]) * 4 / int(match[2])
