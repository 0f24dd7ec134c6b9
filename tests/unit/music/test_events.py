"""Tokens of music as notes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.outputs import Note
from kamado_models.music.events import Grid, _Clock, event_of, is_music, score_of

REMI = [
    "BOS_None", "Bar_None", *(f"Position_{number}" for number in range(32)), *(f"Pitch_{n}" for n in range(21, 109)),
    *(f"Velocity_{number}" for number in range(4, 128, 4)), "Duration_0.4.8", "Duration_1.0.8", "Tempo_60.0",
    "TimeSig_4/4", "Program_0", "Program_40", "Program_-1", "PitchDrum_36",
]  # fmt: skip


def notes(text: str, grid: Grid | None = None) -> list[tuple[float, float, int, int, int, bool]]:
    score = score_of(text.split(), grid or Grid.of(REMI))
    return [
        (round(n.start_s, 4), round(n.duration_s, 4), n.pitch, n.velocity, n.program, n.is_drum) for n in score.notes
    ]


def test_notes_that_were_given_stay_as_they_are() -> None:
    """A model that tells a tempo for a place before their end."""
    given = ["Bar_None", "Position_8", "Pitch_60", "Velocity_80", "Duration_1.0.8"]
    new = ["Position_0", "Tempo_60.0", "Position_16", "Pitch_64", "Velocity_80", "Duration_1.0.8"]
    free, kept = (score_of([*given, *new], Grid.of(REMI), given=count) for count in (0, len(given)))
    alone = score_of(given, Grid.of(REMI)).notes
    assert alone[0] not in free.notes and set(alone) < set(kept.notes)
    assert [(round(at, 6), tempo) for at, tempo in kept.tempos] == [(0.0, 120.0), (1.0, 60.0)]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(4, 500)), max_size=12),
    st.lists(st.integers(-1, 25), min_size=1, max_size=5),
)
def test_a_tempo_holds_from_its_beat_until_what_was_told_later(turns: list[tuple[int, int]], beats: list[int]) -> None:
    """Tracks begin at once, so a tempo may be told for a beat before that of the last one."""
    clock = _Clock()
    for beat, tempo in turns:
        clock.beat = float(beat)
        clock.turn(float(tempo))
    for beat in beats:
        told = [each for each in reversed(clock.since) if each[0] <= beat]
        start, second, held = told[0] if told else clock.since[0]
        assert clock.seconds(beat) == second + (beat - start) * 60.0 / held


def test_many_tempos_take_no_time_for_each_note() -> None:
    place = "Position_{0} Tempo_{1} Pitch_60 Velocity_80 Duration_1.0.8"
    bar = " ".join(["Bar_None", *(place.format(number, 100 + number) for number in range(32))])
    tokens = [token for _ in range(300) for token in bar.split()]
    began = time.process_time()
    score = score_of(tokens, Grid.of(REMI))
    assert len(score.notes) == len(score.tempos) == 9600
    assert time.process_time() - began < 3.0  # a walk over all tempos, for each note, takes ten times as long


def test_what_comes_after_the_last_beat_that_is_kept_is_left_out() -> None:
    text = " ".join(f"Bar_None Position_0 Pitch_{60 + n % 2} Velocity_80 Duration_1.0.8" for n in range(2510))
    score = score_of(text.split(), Grid.of(REMI))
    assert len(score.notes) == 2501 and {note.velocity for note in score.notes} == {80}


def test_bars_and_positions() -> None:
    assert Grid.of(REMI).per_beat == 8
    text = (
        "BOS_None Bar_None Position_0 Pitch_60 Velocity_100 Duration_1.0.8 Position_8 Program_40 Pitch_64 Velocity_50 "
        "Duration_0.4.8 Bar_None Position_16 PitchDrum_36 Velocity_90 Duration_0.4.8"
    )
    assert notes(text) == [
        (0.0, 0.5, 60, 100, 0, False), (0.5, 0.25, 64, 50, 40, False), (3.0, 0.25, 36, 90, 0, True),
    ]  # fmt: skip


def test_tempo_and_meter() -> None:
    text = "Bar_None Tempo_60.0 Position_8 Pitch_60 Duration_1.0.8 TimeSig_3/4 Bar_None Pitch_61 Duration_1.0.8"
    assert [(n[0], n[1]) for n in notes(text)] == [(1.0, 1.0), (3.0, 1.0)]


def test_midi_like_and_tracks() -> None:
    assert notes("NoteOn_60 TIME_SHIFT_50 NoteOn_64 TIME_SHIFT_25 NoteOff_60 TimeShift_1.0.8 NoteOff_64") == [
        (0.0, 0.75, 60, 80, 0, False), (0.5, 0.75, 64, 80, 0, False),
    ]  # fmt: skip
    text = (
        "PIECE_START TRACK_START INST=33 BAR_START NOTE_ON=40 TIME_DELTA=4 NOTE_OFF=40 BAR_END BAR_START NOTE_ON=41 "
        "TIME_DELTA=2 NOTE_OFF=41 BAR_END TRACK_END TRACK_START INST=DRUMS BAR_START NOTE_ON=36 TIME_DELTA=4 "
        "NOTE_OFF=36"
    )
    assert notes(text) == [
        (0.0, 0.5, 36, 80, 0, True), (0.0, 0.5, 40, 80, 33, False), (2.0, 0.25, 41, 80, 33, False),
    ]  # fmt: skip


def test_which_vocabularies_are_music() -> None:
    assert is_music(REMI)
    assert is_music([*(f"NOTE_ON={n}" for n in range(128)), "TIME_DELTA=1"])
    assert not is_music(["the", "pitch", "Bar", "Position_1", "note", "Pitch_60"])
    assert not is_music(f"Pitch_{number}" for number in range(128))


_WORDS = ["Bar_None", "Position", "Pitch", "NoteOn", "NoteOff", "Velocity", "Duration", "TimeShift", "TIME_DELTA",
          "Tempo", "TimeSig", "Program", "INST", "TRACK_START", "PitchDrum"]  # fmt: skip
_VALUES = st.one_of(
    st.integers(-5, 10**7).map(str), st.sampled_from(["None", "1.4.8", "3/4", "0/0", "0.0.0", "DRUMS", "60.5", "9/1."])
)


@given(st.lists(st.one_of(st.tuples(st.sampled_from(_WORDS), _VALUES).map("_".join), st.text(max_size=8)), max_size=60))
def test_any_tokens_make_a_score(tokens: list[str]) -> None:
    score = score_of(tokens, Grid.of(tokens))
    starts = [note.start_s for note in score.notes]
    assert starts == sorted(starts)
    for note in score.notes:
        assert isinstance(note, Note) and note.start_s >= 0 and note.duration_s > 0
        assert 0 <= note.pitch <= 127 and 1 <= note.velocity <= 127 and 0 <= note.program <= 127


@pytest.mark.parametrize("token", ["", "<pad>", "Pitch", "Pitch_x", "TrackEnd_1", "_", "Bar None 3 4"])
def test_tokens_without_a_number(token: str) -> None:
    event = event_of(token)
    assert event is None or event.value is None
