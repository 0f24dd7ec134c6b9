"""MIDI files, opened again by mido."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mido
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.media.notes import SLOWEST, open_score, save_score
from kamado.media.recipes import read_recipe
from kamado.outputs import Note, Score
from media_outputs import melody
from media_recipes import RECIPE, RECIPES

NOTES = st.builds(
    Note,
    start_s=st.integers(0, 20_000).map(lambda ticks: ticks / 1920),
    duration_s=st.integers(1, 4000).map(lambda ticks: ticks / 1920),
    pitch=st.integers(0, 127),
    velocity=st.integers(1, 127),
    program=st.integers(0, 127),
    is_drum=st.booleans(),
)


def test_another_program_reads_the_same_notes(tmp_path: Path) -> None:
    save_score(melody(), tmp_path / "x.mid", RECIPE)
    song = mido.MidiFile(tmp_path / "x.mid")
    assert (song.type, len(song.tracks), song.length) == (1, 4, pytest.approx(1.5))
    programs = {message.channel: message.program for message in song if message.type == "program_change"}
    assert programs == {0: 0, 1: 33}
    now, begins = 0.0, []
    for message in song:
        now += message.time
        if message.type == "note_on":
            begins.append((round(now, 3), message.channel, message.note, message.velocity))
    assert sorted(begins) == [(0.0, 0, 60, 90), (0.0, 9, 36, 127), (0.5, 0, 60, 70), (0.5, 1, 43, 1)]
    assert set(open_score(tmp_path / "x.mid").notes) == set(melody().notes)
    assert read_recipe(tmp_path / "x.mid") == RECIPE


def test_more_programs_than_channels(tmp_path: Path) -> None:
    notes = tuple(Note(start_s=number / 4, duration_s=0.25, pitch=60, program=number) for number in range(40))
    save_score(Score(notes=notes), tmp_path / "x.mid", None)
    assert open_score(tmp_path / "x.mid").notes == notes


def test_changes_of_tempo_are_heeded() -> None:
    song = mido.MidiFile(ticks_per_beat=100)
    on, off = mido.Message("note_on", note=60, time=100), mido.Message("note_on", note=60, velocity=0, time=100)
    song.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1_000_000), on, off]))
    out = io.BytesIO()
    song.save(file=out)
    (note,) = open_score(out.getvalue()).notes
    assert (note.start_s, note.duration_s, note.velocity) == (1.0, 1.0, 64)


@given(notes=st.lists(NOTES, min_size=1, max_size=30))
def test_notes_come_back(tmp_path_factory: pytest.TempPathFactory, notes: list[Note]) -> None:
    path = tmp_path_factory.getbasetemp() / "notes.mid"
    apart = {(note.start_s, note.pitch, note.program, note.is_drum): note for note in notes}
    save_score(Score(notes=tuple(apart.values())), path, None)
    begins = {(note.start_s, note.pitch) for note in notes}
    assert {(round(note.start_s * 1920) / 1920, note.pitch) for note in open_score(path).notes} <= begins


@given(recipe=RECIPES)
def test_any_recipe_survives(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.mid"
    save_score(melody(), path, recipe)
    assert read_recipe(path) == recipe


def test_a_long_recipe(tmp_path: Path) -> None:
    recipe = {"options": {"prompt": "\u00e4\u65e5\U0001d11e  \n" * 60_000}}
    save_score(melody(), tmp_path / "x.mid", recipe)
    assert read_recipe(tmp_path / "x.mid") == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"pitch": 128},
        {"velocity": 0},
        {"program": -1},
        {"start_s": -0.1},
        {"duration_s": float("nan")},
        {"start_s": 1e9},
    ],
)
def test_notes_that_midi_has_not(tmp_path: Path, change: Any) -> None:
    broken = Score(notes=(replace(melody().notes[0], **change),))
    with pytest.raises(GenerationFailed, match="no MIDI file has such a note"):
        save_score(broken, tmp_path / "x.mid", None)
    with pytest.raises(GenerationFailed, match="no notes"):
        save_score(Score(notes=()), tmp_path / "x.mid", None)
    assert list(tmp_path.iterdir()) == []


@given(data=st.binary(max_size=200), head=st.sampled_from([b"", b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk\0\0\0\xff"]))
def test_damaged_files_are_refused_in_one_line(data: bytes, head: bytes) -> None:
    try:
        assert open_score(head + data).notes
    except InvalidRequest as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("source", [b"Hello, this is text.\n", b"", None, 7])
def test_what_is_no_midi_file(source: Any) -> None:
    with pytest.raises(InvalidRequest):
        open_score(source)


def test_a_key_that_there_is_not() -> None:
    track = b"\x00\xff\x59\x02\x40\x05\x00\xff\x2f\x00"
    data = b"MThd\0\0\0\x06\0\x01\0\x01\x01\xe0MTrk" + len(track).to_bytes(4, "big") + track
    with pytest.raises(InvalidRequest, match=r"damaged: Could not decode key"):
        open_score(data)


def test_large_files_are_refused_at_once() -> None:
    body = b"\0\x90\x3c\x40" + b"\0\x3c\x40" * 3_000_000
    head = b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk" + len(body).to_bytes(4, "big")
    with pytest.raises(InvalidRequest, match=r"MIDI files up to 8\.00 MiB are read"):
        open_score(head + body)


def test_a_recipe_is_looked_for_before_the_notes(tmp_path: Path) -> None:
    song = mido.MidiFile()
    note = mido.Message("note_on", note=60, time=100)
    text = mido.MetaMessage("text", text='kamado:{"a":1}')
    song.tracks.append(mido.MidiTrack([mido.MetaMessage("track_name", name="x"), text, note]))
    song.save(tmp_path / "x.mid")
    assert read_recipe(tmp_path / "x.mid") == {"a": 1}
    song.tracks[0][:] = [note, text]
    song.save(tmp_path / "x.mid")
    with pytest.raises(InvalidRequest, match="carries no recipe"):
        read_recipe(tmp_path / "x.mid")


def midi(*events: bytes, ticks: int = 480, size: int | None = None) -> bytes:
    """A file of one track with these events."""
    body = b"".join(events)
    head = b"MThd\0\0\0\6\0\1\0\1" + ticks.to_bytes(2, "big")
    return head + b"MTrk" + (len(body) if size is None else size).to_bytes(4, "big") + body


ON, OFF, LATE = b"\0\x90\x3c\x40", b"\x60\x80\x3c\x40", b"\xff\xff\xff\x7f"
HOSTILE = {
    "a number without an end": (midi(b"\xff" * 400_000), "a number at byte 22 has no end"),
    "the same as the length of a text": (midi(ON, b"\0\xff\x01" + b"\xff" * 50), "has no end"),
    "the same behind a track that is too short": (midi(ON, b"\xff" * 400_000, size=3), "has no end"),
    "a data byte without a status": (midi(b"\0\x3c\x40"), "no event begins"),
    "one behind a system message": (midi(b"\0\xf0\x01\xf7", b"\0\x3c\x40"), "no event begins"),
    "many events": (midi(ON, b"\0\xf6" * 400_001), "more than 400000 events"),
    "beats without length": (midi(b"\0\xff\x51\x03\0\0\0", ON, OFF), "a tempo of 0"),
    "beats of a microsecond": (midi(b"\0\xff\x51\x03\0\0\1", ON, OFF), "must be 3.58 to 10000 beats a minute"),
    "a note in ten years": (midi(b"\0\xff\x51\x03\xff\xff\xff", LATE + ON[1:], OFF, ticks=1), "within a day"),
    "a note without an end": (midi(ON, LATE + b"\xff\x2f\0", ticks=1), "within a day"),
    "many tempos": (midi(*(b"\1\xff\x51\x03\7\xa1" + bytes([n % 2]) for n in range(10_002)), ON, OFF), "10000"),
    "half an event": (midi(b"\0\x90\x3c"), "damaged"),
    "frames as time": (midi(ON, OFF, ticks=0xE728), "frames as time"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_one_clear_error(tmp_path: Path, name: str) -> None:
    data, says = HOSTILE[name]
    (tmp_path / "x.mid").write_bytes(data)
    begun = time.perf_counter()
    with pytest.raises(InvalidRequest, match=says) as found:
        open_score(tmp_path / "x.mid")
    assert time.perf_counter() - begun < 10, "mido alone takes minutes over some of them"
    assert "x.mid" in str(found.value) and "\n" not in str(found.value) and len(str(found.value)) < 400


def test_a_pedal_that_is_never_lifted_and_a_note_that_never_ends() -> None:
    pedal = b"\0\xb0\x40\x7f"
    (one, other) = open_score(midi(pedal, ON, OFF, b"\0\x90\x40\x40", b"\x83\x60\xff\x2f\0")).notes
    assert (one.duration_s, other.pitch, other.duration_s) == (0.1, 64, 0.5)


TEMPOS = st.lists(st.tuples(st.integers(1, 5000), st.integers(4, 1000)), max_size=8).map(
    lambda pairs: ((0.0, 120.0), *((second / 10, float(tempo)) for second, tempo in sorted(dict(pairs).items())))
)


@given(notes=st.lists(NOTES, min_size=1, max_size=10), tempos=TEMPOS)
def test_tempos_come_back_and_leave_notes_where_they_are(
    tmp_path_factory: pytest.TempPathFactory, notes: list[Note], tempos: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "tempos.mid"
    apart = {note.pitch: note for note in notes}
    given_notes = sorted(apart.values(), key=lambda note: (note.start_s, note.is_drum, note.program, note.pitch))
    save_score(Score(notes=tuple(given_notes), tempos=tempos), path, None)
    found = open_score(path)
    tick = 60 / 4 / 960
    assert [note.pitch for note in sorted(found.notes, key=lambda note: note.pitch)] == sorted(apart)
    for note in found.notes:
        then = apart[note.pitch]
        assert abs(note.start_s - then.start_s) <= tick and abs(note.duration_s - then.duration_s) <= 2 * tick
    told = [(second, tempo) for (second, tempo), (_, last) in zip(tempos[1:], tempos, strict=False) if tempo != last]
    assert len(found.tempos) == 1 + len(told)
    for (second, tempo), (real_second, real) in zip(found.tempos[1:], told, strict=True):
        assert abs(second - real_second) <= tick and tempo == pytest.approx(real, rel=0.01)
    assert open_score(found) is found


def test_the_slowest_tempo_of_a_file_and_what_is_slower(tmp_path: Path) -> None:
    slow = Score(notes=melody().notes, tempos=((0.0, SLOWEST),))
    save_score(slow, tmp_path / "x.mid", None)
    assert open_score(tmp_path / "x.mid").tempos == ((0.0, pytest.approx(SLOWEST)),)
    with pytest.raises(GenerationFailed, match=r"a tempo must be 3.58 to 10000 beats a minute, not 3.5"):
        save_score(replace(slow, tempos=((0.0, 3.5),)), tmp_path / "y.mid", None)
    assert not (tmp_path / "y.mid").exists()


def test_tempos_that_change_within_a_tick(tmp_path: Path) -> None:
    note = Note(start_s=1.0, duration_s=0.5, pitch=60)
    tempos = ((0.0, 4.0), (0.0078, 10_000.0), (0.0079, 60.0), (0.01, 120.0))
    save_score(Score(notes=(note,), tempos=tempos), tmp_path / "x.mid", None)
    found = open_score(tmp_path / "x.mid")
    assert found.tempos[-1][1] == 120.0 and abs(found.tempos[-1][0] - 0.01) <= 60 / 4 / 960
    assert abs(found.notes[0].start_s - 1.0) <= 60 / 120 / 960


@given(notes=st.lists(NOTES, min_size=1, max_size=20))
def test_mido_agrees(tmp_path_factory: pytest.TempPathFactory, notes: list[Note]) -> None:
    path = tmp_path_factory.getbasetemp() / "agreed.mid"
    save_score(Score(notes=tuple(notes), tempos=((0.0, 90.0), (1.5, 33.0))), path, None)
    now, begins = 0.0, []
    for message in mido.MidiFile(path):
        now += message.time
        if message.type == "note_on":
            begins.append((message.note, now))
    found = sorted((note.pitch, note.start_s) for note in open_score(path).notes)
    assert [pitch for pitch, _ in found] == [pitch for pitch, _ in sorted(begins)]
    assert [second for _, second in found] == pytest.approx([second for _, second in sorted(begins)])


@pytest.mark.parametrize(
    "changes",
    [
        {"tempos": ()},
        {"tempos": ((1.0, 120.0),)},
        {"tempos": ((0.0, 120.0), (0.0, 90.0))},
        {"tempos": ((0.0, float("nan")),)},
        {"tempos": ((0.0, 0.0),)},
        {"tempos": ((0.0, 120.0), (1.0, 3.5))},
        {"notes": ()},
        {"notes": (Note(start_s=float("nan"), duration_s=1.0, pitch=60),)},
        {"notes": (Note(start_s=0.0, duration_s=float("inf"), pitch=60),)},
        {"notes": (Note(start_s=0.0, duration_s=1.0, pitch=600),)},
    ],
)
def test_notes_in_memory_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="cannot be used"):
        open_score(replace(melody(), **changes))
