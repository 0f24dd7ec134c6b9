"""Notes as tokens, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.outputs import Note, Score
from kamado_models.music.events import Grid, score_of
from kamado_models.music.writing import Writer

PITCHES, PROGRAMS = range(21, 109), (0, 33, 40)
_MIDITOK_STEPS = [f"{beats}.{part}.8" for beats in range(5) for part in range(8)][1:]
REMI = [
    "PAD_None", "BOS_None", "Bar_None", *(f"Position_{number}" for number in range(32)),
    *(f"Pitch_{number}" for number in PITCHES), *(f"PitchDrum_{number}" for number in range(27, 88)),
    *(f"Velocity_{number}" for number in range(4, 128, 4)), *(f"Duration_{step}" for step in _MIDITOK_STEPS),
    *(f"Tempo_{number}.0" for number in range(40, 250, 10)), "TimeSig_3/4", "TimeSig_4/4",
    *(f"Program_{number}" for number in (-1, *PROGRAMS)), *(f"Rest_{step}" for step in _MIDITOK_STEPS),
]  # fmt: skip
TSD = [
    "BOS_None", *(f"Pitch_{number}" for number in PITCHES), *(f"Velocity_{number}" for number in range(4, 128, 4)),
    *(f"TimeShift_{step}" for step in _MIDITOK_STEPS), *(f"Duration_{step}" for step in _MIDITOK_STEPS),
    *(f"Rest_{step}" for step in _MIDITOK_STEPS),
]  # fmt: skip
MIDI_LIKE = [
    *(f"NoteOn_{number}" for number in PITCHES), *(f"NoteOff_{number}" for number in PITCHES),
    *(f"Velocity_{number}" for number in range(4, 128, 4)), *(f"TimeShift_{step}" for step in _MIDITOK_STEPS),
    *(f"Program_{number}" for number in (-1, *PROGRAMS)), *(f"Tempo_{number}.0" for number in range(40, 250, 10)),
]  # fmt: skip
PERFORMANCE = [
    *(f"NOTE_ON_{number}" for number in PITCHES), *(f"NOTE_OFF_{number}" for number in PITCHES),
    *(f"VELOCITY_{number}" for number in range(4, 128, 4)), *(f"TIME_SHIFT_{number}" for number in range(1, 101)),
]  # fmt: skip
TRACKS = [
    "PIECE_START", "TRACK_START", "TRACK_END", "BAR_START", "BAR_END", "INST=DRUMS",
    *(f"INST={number}" for number in PROGRAMS), *(f"NOTE_ON={number}" for number in PITCHES),
    *(f"NOTE_OFF={number}" for number in PITCHES), *(f"TIME_DELTA={number}" for number in range(1, 17)),
]  # fmt: skip
VOCABULARIES = {
    # tokens, steps of a beat, whether they tell: velocity, instruments and drums, tempo, lengths to so many steps
    "remi": (REMI, 8, True, True, True, 39),
    "tsd": (TSD, 8, True, False, False, 39),
    "midi-like": (MIDI_LIKE, 8, True, True, True, 200),
    "performance": (PERFORMANCE, 50, True, False, False, 2000),
    "tracks": (TRACKS, 4, False, True, False, 200),
}


def writer_of(tokens: list[str]) -> Writer:
    return Writer(tokens, Grid.of(tokens))


def back(tokens: list[str], score: Score) -> Score:
    written = writer_of(tokens).written(score)
    assert written.left_out == written.played_by_others == 0
    said = list(written.tokens)
    assert set(said) <= set(tokens)
    return score_of(said, Grid.of(tokens), written.tempos)


def rounded(score: Score) -> list[tuple[Any, ...]]:
    return sorted(
        (round(n.start_s, 6), round(n.duration_s, 6), n.pitch, n.velocity, n.program, n.is_drum) for n in score.notes
    )


@st.composite
def on_the_grid(draw: st.DrawFn, name: str) -> Score:
    """Notes that the vocabulary can say as they are; none of a pitch and an instrument sounds with another such."""
    _, steps, has_velocity, has_programs, has_tempo, longest = VOCABULARIES[name]
    tempo = draw(st.sampled_from([40.0, 120.0, 170.0, 240.0])) if name != "performance" else 120.0
    last = draw(st.sampled_from([60.0, 120.0])) if has_tempo else None
    each = st.tuples(st.integers(0, 40 * steps), st.integers(1, longest), st.sampled_from([36, 60, 61, 79]))
    notes: list[Note] = []
    ends: dict[tuple[int, int, bool], int] = {}
    turn = 16 * 60 / tempo  # when the tempo changes, after four bars
    for begin, length, pitch in sorted(draw(st.lists(each, min_size=1, max_size=20))):
        program, is_drum = 0, False
        if has_programs:
            program, is_drum = draw(st.sampled_from([(0, False), (33, False), (40, False), (0, True)]))
        if begin < ends.get((pitch, program, is_drum), 0):
            continue
        ends[pitch, program, is_drum] = begin + length
        start, end = (
            beat * 60 / tempo if beat <= 16 or last is None else turn + (beat - 16) * 60 / last
            for beat in (begin / steps, (begin + length) / steps)
        )
        velocity = draw(st.sampled_from(range(4, 128, 4))) if has_velocity else 80
        note = Note(start_s=start, duration_s=end - start, pitch=pitch, velocity=velocity)
        notes.append(replace(note, program=program, is_drum=is_drum))
    tempos = ((0.0, tempo),) if last is None else ((0.0, tempo), (turn, last))
    return Score(notes=tuple(sorted(notes, key=lambda note: note.start_s)), tempos=tempos)


@pytest.mark.parametrize("name", VOCABULARIES)
@given(data=st.data())
def test_notes_that_can_be_said_come_back_as_they_are(name: str, data: st.DataObject) -> None:
    score = data.draw(on_the_grid(name))
    assert rounded(back(VOCABULARIES[name][0], score)) == rounded(score)


NOTES = st.builds(
    Note,
    start_s=st.floats(0, 60),
    duration_s=st.floats(0, 5),
    pitch=st.integers(0, 127),
    velocity=st.integers(1, 127),
    program=st.integers(0, 127),
    is_drum=st.booleans(),
)


@pytest.mark.parametrize("name", VOCABULARIES)
@given(notes=st.lists(NOTES, min_size=1, max_size=12), tempo=st.floats(20, 400))
def test_any_notes_come_back_nearly(name: str, notes: list[Note], tempo: float) -> None:
    """Each at the nearest step; those of a pitch that follow too closely may become one."""
    tokens, steps, *_ = VOCABULARIES[name]
    grid = Grid.of(tokens)
    score = Score(notes=tuple(sorted(notes, key=lambda note: note.start_s)), tempos=((0.0, tempo),))
    written = writer_of(tokens).written(score)
    found = score_of(written.tokens, grid, written.tempos)
    assert len(found.notes) <= len(notes) - written.left_out
    assert bool(found.notes) == (written.left_out < len(notes))
    told = found.tempos[0][1] if name in ("remi", "midi-like") else 120.0 if name == "performance" else tempo
    real = 120.0 if name == "performance" else tempo
    for note in found.notes:
        near = [abs(each.start_s * real - note.start_s * told) / 60 for each in notes if each.pitch == note.pitch]
        assert min(near) <= 0.5 / steps + 1e-6


def test_the_words_of_each_kind() -> None:
    notes = (
        Note(start_s=0.5, duration_s=0.5, pitch=60, velocity=81),
        Note(start_s=2.0, duration_s=0.25, pitch=64, velocity=81, program=33),
    )

    def said(tokens: list[str], *changed: Note) -> str:
        return " ".join(writer_of(tokens).written(Score(notes=changed or notes)).tokens)

    assert said(REMI) == (
        "Bar_None TimeSig_4/4 Position_0 Tempo_120.0 Position_8 Program_0 Pitch_60 Velocity_80 Duration_1.0.8 "
        "Bar_None TimeSig_4/4 Position_0 Program_33 Pitch_64 Velocity_80 Duration_0.4.8"
    )
    assert said(TSD) == (
        "TimeShift_1.0.8 Pitch_60 Velocity_80 Duration_1.0.8 TimeShift_3.0.8 Pitch_64 Velocity_80 Duration_0.4.8"
    )
    assert said(MIDI_LIKE) == (
        "Tempo_120.0 TimeShift_1.0.8 Program_0 NoteOn_60 Velocity_80 TimeShift_1.0.8 Program_0 NoteOff_60 "
        "TimeShift_2.0.8 Program_33 NoteOn_64 Velocity_80 TimeShift_0.4.8 Program_33 NoteOff_64"
    )
    assert said(PERFORMANCE) == (
        "TIME_SHIFT_50 VELOCITY_80 NOTE_ON_60 TIME_SHIFT_50 NOTE_OFF_60 TIME_SHIFT_100 NOTE_ON_64 TIME_SHIFT_25 "
        "NOTE_OFF_64"
    )
    drum = Note(start_s=2.0, duration_s=0.25, pitch=36, is_drum=True)
    assert said(TRACKS, notes[0], drum) == (
        "TRACK_START INST=DRUMS BAR_START BAR_END BAR_START NOTE_ON=36 TIME_DELTA=2 NOTE_OFF=36 BAR_END TRACK_END "
        "TRACK_START INST=0 BAR_START TIME_DELTA=4 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END BAR_START BAR_END"
    )


def test_what_a_vocabulary_has_not() -> None:
    low, drum = Note(start_s=0, duration_s=1, pitch=10), Note(start_s=0, duration_s=1, pitch=36, is_drum=True)
    violin, flute = (Note(start_s=1, duration_s=1, pitch=70, program=program) for program in (41, 73))
    score = Score(notes=(low, drum, violin, flute))
    written = writer_of(REMI).written(score)
    assert (written.left_out, written.played_by_others) == (1, 2)
    assert {note.program for note in score_of(written.tokens, Grid.of(REMI)).notes if not note.is_drum} == {40, 0}
    written = writer_of(TSD).written(score)
    assert (written.left_out, written.played_by_others) == (2, 2)
    assert not writer_of([*(f"Pitch_{number}" for number in range(60, 90)), "Position_0", "Velocity_4"]).can_write
    assert not writer_of([f"NOTE_ON={number}" for number in range(128)]).can_write
    assert all(writer_of(tokens).can_write for tokens, *_ in VOCABULARIES.values())


def test_positions_that_begin_with_one() -> None:
    tokens = ["Bar", *(f"Position_{number}" for number in range(1, 17)), *(f"Pitch_{n}" for n in PITCHES)]
    tokens += [f"Duration_{number}" for number in range(1, 65)]
    score = Score(notes=tuple(Note(start_s=each / 2, duration_s=0.5, pitch=60) for each in range(8)))
    assert list(writer_of(tokens).written(score).tokens)[:4] == ["Bar", "Position_1", "Pitch_60", "Duration_4"]
    assert back(tokens, score) == score


def test_bars_with_numbers() -> None:
    tokens = [*(f"Bar_{number}" for number in range(3)), "Position_0", *(f"Pitch_{n}" for n in PITCHES)]
    score = Score(notes=tuple(Note(start_s=2.0 * each, duration_s=0.5, pitch=60) for each in range(4)))
    said = list(writer_of(tokens).written(score).tokens)
    assert said == [word for bar in (0, 1, 2, 2) for word in (f"Bar_{bar}", "Position_0", "Pitch_60")]
    assert back(tokens, score) == score


BARS_WITH_ENDS = [
    "Bar_None", *(f"Position_{number}" for number in range(16)),
    *(f"NoteOn_{number}" for number in PITCHES), *(f"NoteOff_{number}" for number in PITCHES),
]  # fmt: skip


@pytest.mark.parametrize("tokens", [MIDI_LIKE, PERFORMANCE, TRACKS, BARS_WITH_ENDS])
def test_notes_that_follow_or_cover_each_other(tokens: list[str]) -> None:
    first = Note(start_s=0.0, duration_s=0.5, pitch=60)
    second = replace(first, start_s=0.5)
    apart = rounded(Score(notes=(first, second)))
    assert rounded(back(tokens, Score(notes=(first, second)))) == apart
    assert rounded(back(tokens, Score(notes=(replace(first, duration_s=0.75), second)))) == apart
    long = replace(first, duration_s=9.0, pitch=70)
    assert rounded(back(tokens, Score(notes=(long, second)))) == rounded(Score(notes=(long, second)))
