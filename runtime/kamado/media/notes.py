"""Standard MIDI files: notes saved with their recipe, and read from strangers. mido does the format."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import GenerationFailed, InvalidRequest, KamadoError
from ..files import replacing
from ..outputs import Note, Score
from .opening import check_target, library, opened_source, shown
from .tags import MAX_TAG_BYTES, tagged_lines, untagged_lines
from .tempo import Beats

WRITE_FORMATS = (".mid", ".midi")
MAX_FILE_BYTES = 1 << 23
MAX_NOTES = 150_000
MAX_EVENTS = 400_000
"""mido takes about ten microseconds for each."""
MAX_TEMPOS = 10_000
"""Changes of tempo."""
TICKS_PER_BEAT = 960
"""Of files that are written: at 120 beats a minute a tick is 1/1920 s."""
_USUAL_TEMPO = 500_000
"""Microseconds a beat, where a file does not say."""
_MINUTE = 60_000_000
SLOWEST, FASTEST = _MINUTE / ((1 << 24) - 1), 10_000.0
"""Beats a minute: a file has three bytes for the microseconds of a beat, which makes 3.58 the least."""
_DRUM_CHANNEL = 9
"""Channel 10, as people count them."""
_MELODIC = tuple(channel for channel in range(16) if channel != _DRUM_CHANNEL)
_MAX_SECONDS = 24 * 3600
_TEXT = 4000
_MAX_TEXTS_BYTES = MAX_TAG_BYTES + (1 << 20)
_INSTALL = "pip install mido"


def check_score_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a path to save notes to, in lower case. Raises InvalidRequest; ask before they are made."""
    return check_target(path, WRITE_FORMATS, "MIDI")


def save_score(score: Score, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None) -> None:
    """Write `score` to `path`, whole or not at all, with the recipe in text events; a file that is there is replaced.

    Type 1: a track for each program, drums on channel 10; times to 1/960 beat. More than 15 programs share channels,
    each named again before its notes. Raises GenerationFailed for a score without notes or with numbers that MIDI has
    not, InvalidRequest for a path that cannot be written, OSError when the disk fails.
    """
    check_score_path(path)
    mido = library("mido", "a MIDI file", _INSTALL)
    if fault := _fault(score):
        raise GenerationFailed(f"no MIDI file can be written: {fault}")
    song = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT)
    marks = list(_marks(score.tempos))
    head = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=marks[0].micros)])
    lines = [] if recipe is None else tagged_lines(recipe, _TEXT)
    head.extend(mido.MetaMessage("text", text=line) for line in lines)
    for before, mark in pairwise(marks):
        head.append(mido.MetaMessage("set_tempo", tempo=mark.micros, time=mark.tick - before.tick))
    song.tracks.append(head)
    beats = Beats([(mark.second, _MINUTE / mark.micros) for mark in marks])
    parts: dict[int | None, list[Note]] = {}
    for note in score.notes:
        parts.setdefault(None if note.is_drum else note.program, []).append(note)
    shares = len(parts) - (None in parts) > len(_MELODIC)
    melodic = iter(range(len(parts)))
    for program in sorted(parts, key=lambda program: -1 if program is None else program):
        channel = _DRUM_CHANNEL if program is None else _MELODIC[next(melodic) % len(_MELODIC)]
        song.tracks.append(_track(mido, parts[program], channel, program if shares else None, beats))
        if program is not None and not shares:
            song.tracks[-1].insert(0, mido.Message("program_change", channel=channel, program=program))
    out = io.BytesIO()
    song.save(file=out)
    try:
        with replacing(Path(path)) as file:
            file.write(out.getbuffer())
    except (PermissionError, ValueError) as error:
        raise InvalidRequest(f"{shown(path)} cannot be written: {error}") from error


def open_score(source: Any) -> Score:
    """Notes, by their beginning, from a path, the bytes of a MIDI file, a `data:` URL, or a Score. Changes of tempo are
    heeded; pedals, other controllers, bends and lyrics are left out. Raises InvalidRequest, also over MAX_NOTES,
    MAX_EVENTS, MAX_TEMPOS or a day."""
    if isinstance(source, Score):
        if fault := _fault(source):
            raise InvalidRequest(f"such notes cannot be used: {fault}")
        return source
    with opened_source(source, "MIDI file", "MIDI files", MAX_FILE_BYTES) as opened:
        if opened is None:
            raise InvalidRequest(f"notes must be a path, bytes or a data URL, not {type(source).__name__}")
        name = opened[1]
        song = _song(opened[0].read(), name)
        try:
            score = _score(song, name)
        except KamadoError:
            raise
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise InvalidRequest(f"{name} is damaged: {error}"[:240]) from error
    if not score.notes:
        raise InvalidRequest(f"{name} has no notes")
    if fault := _fault(score):
        raise InvalidRequest(f"{name} cannot be used: {fault}")
    return score


def read_score_recipe(file: BinaryIO) -> str | None:
    """The JSON text of the recipe in a MIDI file; None if there is none. Nothing of it is checked yet. It is looked for
    where `save_score` puts it: in the texts that begin the first track."""
    head = file.read(8)
    file.seek(8 + int.from_bytes(head[4:], "big"))
    chunk = file.read(8)
    if head[:4] != b"MThd" or chunk[:4] != b"MTrk":
        return None
    return untagged_lines(_first_texts(file.read(min(int.from_bytes(chunk[4:], "big"), _MAX_TEXTS_BYTES))))


def _first_texts(track: bytes) -> Iterator[str]:
    """The text events before the first event that is no meta event."""
    position = 0
    while position < len(track):
        _, position = _number(track, position)
        if track[position : position + 1] != b"\xff":
            return
        kind = track[position + 1 : position + 2]
        size, position = _number(track, position + 2)
        if kind == b"\x01":
            yield track[position : position + size].decode("ascii", "replace")
        position += size


def _number(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, as MIDI has them, and where it ends."""
    value = 0
    for byte in data[position : position + 4]:
        value, position = value << 7 | byte & 0x7F, position + 1
        if byte < 0x80:
            break
    return value, position


@dataclass(frozen=True, slots=True)
class _Mark:
    """A tempo of a file."""

    tick: int
    second: float
    """When that tick is."""
    micros: int
    """A beat."""


def _marks(tempos: Sequence[tuple[float, float]]) -> Iterator[_Mark]:
    """The tempos as a file can have them: each from a whole tick on, which moves no later one."""
    tick, begin, micros = 0, 0.0, _USUAL_TEMPO
    for second, tempo in tempos:
        # A tick of the tempo before may have ended behind this one's second.
        ticks = max(round((second - begin) * TICKS_PER_BEAT * 1_000_000 / micros), 0)
        tick, begin = tick + ticks, begin + ticks * micros / TICKS_PER_BEAT / 1_000_000
        micros = round(_MINUTE / tempo)
        yield _Mark(tick, begin, micros)


def _track(mido: Any, notes: list[Note], channel: int, program: int | None, beats: Beats) -> Any:
    """Note-offs come before note-ons of the same moment, so that a repeated note sounds again. `program`: named before
    each note."""
    events: list[tuple[int, int, Any]] = []
    for note in notes:
        begin, end = (
            round(beats.at(second) * TICKS_PER_BEAT) for second in (note.start_s, note.start_s + note.duration_s)
        )
        if program is not None:
            events.append((begin, 2, mido.Message("program_change", channel=channel, program=program)))
        events.append((begin, 3, mido.Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)))
        off = mido.Message("note_off", channel=channel, note=note.pitch, velocity=0)
        events.append((max(begin + 1, end), 1, off))
    track, now = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    return track


def _fault(score: Score) -> str:
    """Why notes are none of MIDI; empty where they are."""
    if not score.notes:
        return "there are no notes"
    for note in score.notes:
        is_right = 0 <= note.pitch <= 127 and 1 <= note.velocity <= 127 and 0 <= note.program <= 127
        is_timed = 0 <= note.start_s <= _MAX_SECONDS and 0 <= note.duration_s <= _MAX_SECONDS
        if not (is_right and is_timed):
            return f"no MIDI file has such a note within a day: {note}"
    seconds = [second for second, _ in score.tempos]
    if not seconds or seconds[0] != 0 or not all(one < other for one, other in pairwise(seconds)):
        return "tempos are (second, beats a minute), in order, the first at second 0"
    if len(seconds) > MAX_TEMPOS:
        return f"the tempo changes more than {MAX_TEMPOS} times"
    wrong = [tempo for _, tempo in score.tempos if not SLOWEST <= tempo <= FASTEST]
    return f"a tempo must be {SLOWEST:.3g} to {FASTEST:g} beats a minute, not {wrong[0]:g}" if wrong else ""


def _song(data: bytes, name: str) -> Any:
    mido = library("mido", "reading a MIDI file", _INSTALL)
    _check_events(data, name)
    try:
        return mido.MidiFile(file=io.BytesIO(data), clip=True)
    except Exception as error:  # whatever the reader makes of damaged files
        reason = str(error) or "it ends within an event"
        raise InvalidRequest(f"{name} is no MIDI file, or is damaged: {reason}"[:240]) from error


def _check_events(data: bytes, name: str) -> None:
    """Raise InvalidRequest for more events than are read, and for numbers without an end: mido would take them, and
    hours. What else is wrong it finds itself."""
    position, count = 8 + int.from_bytes(data[4:8], "big"), 0
    while data[position : position + 4] == b"MTrk":
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
        position, status = position + 8, 0
        while position < min(end, len(data)):
            position, status = _after_event(data, position, status, name)
            count += 1
            if count > MAX_EVENTS:
                raise InvalidRequest(f"{name} has more than {MAX_EVENTS} events, which is all that is read")
        if position > end:
            raise InvalidRequest(f"{name} is damaged: an event at byte {end} has no end")


def _after_event(data: bytes, position: int, status: int, name: str) -> tuple[int, int]:
    """Where the next event begins, and the status that it may leave out."""
    position = _after_number(data, position, name)
    first = data[position : position + 1] or b"\xff"
    if first[0] >= 0x80:
        position += 1
    if first == b"\xff" or first[0] in (0xF0, 0xF7):
        size_at = position + (first == b"\xff")
        _after_number(data, size_at, name)
        size, position = _number(data, size_at)
        return position + size, status if first == b"\xff" else first[0]
    status = first[0] if first[0] >= 0x80 else status
    if first[0] < 0x80 and not 0x80 <= status < 0xF0:
        raise InvalidRequest(f"{name} is no MIDI file, or is damaged: no event begins at byte {position}")
    return position + _DATA_BYTES.get(status if status >= 0xF0 else status & 0xF0, 0), status


_DATA_BYTES = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2, 0xF1: 1, 0xF2: 2, 0xF3: 1}
"""Behind the status of an event."""


def _after_number(data: bytes, position: int, name: str) -> int:
    for place in range(position, position + 4):
        if data[place : place + 1] < b"\x80":
            return place + 1
    raise InvalidRequest(f"{name} is damaged: a number at byte {position} has no end")


def _score(song: Any, name: str) -> Score:
    """Each note as it ends. One that is never switched off ends with the file; one that begins again ends there
    first."""
    if song.type == 2 or song.ticks_per_beat <= 0:
        raise InvalidRequest(f"{name} is a MIDI file of a kind that is not read: type {song.type}, or frames as time")
    listener = _Listener(song.ticks_per_beat, name)
    for listener.tick, message in sorted(_timed(song.tracks), key=lambda event: event[0]):
        listener.hear(message)
    for channel, pitch in list(listener.begun):
        listener.end(channel, pitch)
    notes = sorted(listener.notes, key=lambda note: (note.start_s, note.is_drum, note.program, note.pitch))
    return Score(notes=tuple(notes), tempos=tuple(listener.tempos()))


def _timed(tracks: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
    """The events of all tracks, and at which tick each is. mido's own `merged_track` copies each of them twice."""
    for track in tracks:
        yield from zip(accumulate(message.time for message in track), track, strict=True)


class _Listener:
    """Where reading has come to."""

    def __init__(self, ticks_per_beat: int, name: str) -> None:
        self.tick = 0
        self.notes: list[Note] = []
        self.begun: dict[tuple[int, int], tuple[float, int, int]] = {}
        """By channel and pitch: since which second, velocity, program."""
        self._per_beat = ticks_per_beat
        self._name = name
        self._marks = [_Mark(0, 0.0, _USUAL_TEMPO)]
        self._programs = [0] * 16
        self._num_begun = 0

    def hear(self, message: Any) -> None:
        """One event."""
        if message.type == "set_tempo":
            if not message.tempo:
                raise InvalidRequest(f"{self._name} is damaged: its beats last no time (a tempo of 0)")
            if message.tempo != self._marks[-1].micros:
                self._marks.append(_Mark(self.tick, self._now(), message.tempo))
        elif message.type == "program_change":
            self._programs[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            self.end(message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                self._num_begun += 1
                if self._num_begun > MAX_NOTES:
                    raise InvalidRequest(f"{self._name} has more than {MAX_NOTES} notes, which is all that is read")
                self.begun[message.channel, message.note] = (
                    self._now(),
                    message.velocity,
                    self._programs[message.channel],
                )

    def end(self, channel: int, pitch: int) -> None:
        """The note of this channel and pitch, if one sounds."""
        start = self.begun.pop((channel, pitch), None)
        if start is not None:
            self.notes.append(
                Note(
                    start_s=start[0],
                    duration_s=self._now() - start[0],
                    pitch=pitch,
                    velocity=start[1],
                    program=start[2],
                    is_drum=channel == _DRUM_CHANNEL,
                )
            )

    def tempos(self) -> Iterator[tuple[float, float]]:
        """See Score: of several at one moment the last holds."""
        for mark, after in zip_longest(self._marks, self._marks[1:]):
            if after is None or after.second > mark.second:
                yield mark.second, _MINUTE / mark.micros

    def _now(self) -> float:
        mark = self._marks[-1]
        return mark.second + (self.tick - mark.tick) * mark.micros / self._per_beat / 1_000_000
