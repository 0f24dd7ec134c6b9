"""Language models that write notes, equal to the library's own `generate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mido
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import kamado
from kamado.bench.options import BenchOptions
from kamado.bench.run import bench
from kamado.media.notes import open_score, save_score
from kamado.outputs import Note, Score
from kamado_models.music.events import Grid, score_of
from media_outputs import melody

from .test_events import REMI
from .tiny_music import write_words


def write_composer(folder: Path, *, midi_tok: bool = False) -> tuple[Path, GPT2LMHeadModel]:
    """A GPT-2 with events as tokens, and the model that it is."""
    words = ("<pad>", "</s>", "<unk>", *REMI)
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=1
    )
    torch.manual_seed(9)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    if midi_tok:
        vocabulary = {word: number for number, word in enumerate(words)}
        (folder / "tokenizer.json").write_text(json.dumps({"tokenization": "REMI", "_vocab_base": vocabulary}))
    else:
        write_words(folder, words)
    return folder, model


@pytest.mark.parametrize("midi_tok", [False, True])
def test_it_writes_what_the_library_writes(runtime: kamado.Runtime, tmp_path: Path, midi_tok: bool) -> None:
    folder, own = write_composer(tmp_path / "composer", midi_tok=midi_tok)
    model = runtime.load(folder)
    assert (model.tasks, model.capabilities) == (("symbolic-music-generation",), ("score",))
    words = ["<pad>", "</s>", "<unk>", *REMI]

    def written(given: list[str], seed: int, new: int, **kwargs: object) -> Score:
        torch.manual_seed(seed)
        tokens = own.generate(torch.tensor([[words.index(word) for word in given]]), max_new_tokens=new, **kwargs)
        return score_of((words[number] for number in tokens[0].tolist()), Grid.of(words))

    before = torch.get_rng_state()
    free = model.generate(seed=3, max_tokens=40)
    led = model.generate("Bar_None Position_4 Pitch_60 Duration_1.0.8", seed=4, max_tokens=30, temperature=0.9, top_k=9)
    assert torch.equal(before, torch.get_rng_state())
    assert free.outputs == (written(["BOS_None"], 3, 40, do_sample=True),)
    given = ["Bar_None", "Position_4", "Pitch_60", "Duration_1.0.8"]
    assert led.outputs == (written(given, 4, 30, do_sample=True, temperature=0.9, top_k=9),)
    assert isinstance(led.outputs[0], Score) and led.outputs[0].notes
    several = model.generate_many([{"seed": 3, "max_tokens": 40}, {"seed": 5}])
    assert several[0].outputs == free.outputs
    led.save(tmp_path / "led.mid")
    pitches = [message.note for message in mido.MidiFile(tmp_path / "led.mid") if message.type == "note_on"]
    assert 60 in pitches


def test_limits(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_composer(tmp_path / "composer")[0])
    assert model.generate(seed=1, max_tokens=500).notes == ("it ended after 63 tokens: the model can hold 64",)
    with pytest.raises(kamado.InvalidRequest, match="'Pitch_7' is no token of"):
        model.generate("Pitch_7")
    with pytest.raises(kamado.ContextOverflow, match="70 tokens"):
        model.generate("Bar_None " * 70)


def test_models_of_words_are_left_alone(tmp_path: Path) -> None:
    from kamado.checkpoint.inspect import inspect
    from kamado_models.music.family import FAMILY

    folder = tmp_path / "words"
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    write_words(folder)
    assert not FAMILY.claims(inspect(folder))


def test_it_is_measured_without_words_that_it_does_not_know(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, _ = write_composer(tmp_path / "composer", midi_tok=True)
    told = bench(runtime, str(folder), BenchOptions(batches=(1,), reps=1, picture={"max_tokens": 8}))
    assert [row["test"] for row in told.rows] == ["score"]


GIVEN = Score(
    notes=(
        Note(start_s=1.0, duration_s=1.0, pitch=60, velocity=80),
        Note(start_s=2.0, duration_s=0.5, pitch=64, velocity=100),
    ),
    tempos=((0.0, 60.0),),
)
TOLD = (
    "BOS_None Bar_None TimeSig_4/4 Position_0 Tempo_60.0 Position_8 Program_0 Pitch_60 Velocity_80 Duration_1.0.8 "
    "Position_16 Program_0 Pitch_64 Velocity_100 Duration_0.4.8"
)


def test_it_goes_on_from_notes(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder, own = write_composer(tmp_path / "composer")
    words = ["<pad>", "</s>", "<unk>", *REMI]
    torch.manual_seed(7)
    ids = torch.tensor([[words.index(word) for word in TOLD.split()]])
    tokens = own.generate(ids, max_new_tokens=40, do_sample=True)[0].tolist()
    expected = score_of((words[number] for number in tokens), Grid.of(words))
    model = runtime.load(folder)
    result = model.generate(notes=GIVEN, seed=7, max_tokens=40)
    (score,) = result.outputs
    assert score == expected and result.notes == ()
    assert set(GIVEN.notes) < set(score.notes) and score.tempos[0] == (0.0, 60.0)
    save_score(GIVEN, tmp_path / "given.mid", None)
    path = tmp_path / "given.mid"
    forms = [path, str(path), path.read_bytes()]
    crowd = model.generate_many(
        [{"notes": form, "seed": 7, "max_tokens": 40} for form in forms] + [{"seed": 3}, {"notes": melody(), "seed": 1}]
    )
    assert [each.outputs for each in crowd[:3]] == [(expected,)] * 3
    assert {each.recipe["inputs"]["notes"]["sha256"] for each in crowd[:3]} == {
        result.recipe["inputs"]["notes"]["sha256"]
    }
    assert crowd[4].notes == ("1 of 4 notes are played by another instrument: the model has not theirs",)
    result.save(tmp_path / "on.mid")
    assert set(GIVEN.notes) < set(open_score(tmp_path / "on.mid").notes)


def test_notes_that_it_cannot_take(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_composer(tmp_path / "composer")[0]
    with pytest.raises(kamado.InvalidRequest, match=r"none\.mid does not exist"):
        runtime.check(folder, [{"notes": GIVEN}, {"notes": tmp_path / "none.mid"}])
    model = runtime.load(folder)
    long = Score(notes=tuple(Note(start_s=each / 2, duration_s=0.5, pitch=60) for each in range(20)))
    low = Score(notes=(Note(start_s=0, duration_s=1, pitch=3),))
    (tmp_path / "text.mid").write_text("these are no notes")
    for notes, says in (
        (low, "has tokens for none of the 1 notes"),
        (tmp_path / "text.mid", r"text\.mid is no MIDI file"),
        (tmp_path / "none.mid", r"none\.mid does not exist"),
        ([GIVEN], "notes must be a path, bytes or a data URL, not list"),
        (replace(GIVEN, notes=()), "there are no notes"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(notes=notes)
    with pytest.raises(kamado.InvalidRequest, match="not both"):
        model.generate("Bar_None", notes=GIVEN)
    with pytest.raises(kamado.ContextOverflow, match="the 20 notes take 64 tokens or more"):
        model.generate(notes=long)
    mixed = Score(notes=(*GIVEN.notes, *low.notes))
    assert model.generate(notes=mixed, max_tokens=4).notes == (
        "1 of 3 notes are left out: the model has no tokens for them",
    )
