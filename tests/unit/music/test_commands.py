"""Notes as an input of commands: run, batch, replay, chain."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

import kamado as library
from kamado.media.notes import open_score, save_score
from kamado.media.recipes import read_recipe
from kamado.outputs import Score
from typed import Kamado, typed

from .test_musicgen import TUNE
from .test_symbolic import GIVEN, write_composer
from .tiny_music import RATE, write_musicgen


@pytest.fixture
def kamado(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Kamado:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    write_composer(tmp_path / "composer")
    save_score(GIVEN, "given.mid", None)
    capsys.readouterr()  # what transformers says as it saves
    return typed(monkeypatch, capsys)


def test_run_and_replay(kamado: Kamado) -> None:
    done = kamado("run", "./composer", "--notes", "given.mid", "--seed", "7", "--max-tokens", "40", "-o", "on.mid")
    assert (done.status, done.out) == (0, "on.mid\n"), done.err
    assert set(GIVEN.notes) < set(open_score("on.mid").notes)
    recipe = read_recipe("on.mid")
    assert set(recipe["inputs"]) == {"notes"} and recipe["options"] == {"max_tokens": 40, "seed": 7, "n": 1}
    again = kamado("replay", "on.mid", "--input", "notes=given.mid", "--json")
    assert again.status == 0 and json.loads(again.out)["equal"] is True, again.out + again.err
    save_score(TUNE, "tune.mid", None)
    other = kamado("replay", "on.mid", "--input", "notes=tune.mid")
    assert other.status == 2 and "the input (notes) is not the one" in other.err
    missing = kamado("replay", "on.mid")
    assert missing.status == 2 and "give it (--input notes=FILE)" in missing.err


def test_what_is_wrong_is_found_before_loading(kamado: Kamado) -> None:
    Path("text.mid").write_text("la la la")
    for arguments, says in (
        (("--notes", "text.mid"), "text.mid is no MIDI file"),
        (("--notes", "none.mid"), "none.mid does not exist"),
        (("--notes", "given.mid", "Bar_None"), "not both"),
        (("--audio", "given.mid"), "--audio cannot be used"),
    ):
        done = kamado("run", "./composer", *arguments, "-o", "no.mid")
        assert done.status == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err
    assert not Path("no.mid").exists()


def test_batches(kamado: Kamado) -> None:
    Path("lists").mkdir()
    Path("given.mid").rename("lists/given.mid")
    lines = [{"id": "a", "notes": "given.mid", "max_tokens": 9}, {"id": "b", "notes": "none.mid"}, {"id": "c"}]
    Path("lists/in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = kamado("batch", "./composer", "lists/in.jsonl", "-o", "out")
    found = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert {line["id"]: line["status"] for line in found} == {"a": "ok", "b": "failed", "c": "ok"}, done.err
    (line,) = (line for line in found if line["id"] == "a")
    assert line["files"] == ["media/a.mid"] and set(line["recipe"]["inputs"]) == {"notes"}
    assert set(GIVEN.notes) <= set(open_score("out/media/a.mid").notes)


def test_notes_of_one_model_are_the_melody_of_another(runtime: library.Runtime, tmp_path: Path) -> None:
    composer, _ = write_composer(tmp_path / "composer")
    player, _ = write_musicgen(tmp_path / "music")
    steps = [
        library.ChainStep("tune", str(composer), notes="{start}", max_tokens=1, seed=3),
        library.ChainStep("song", str(player), prompt="a tune", notes="{tune}", seconds=0.1, seed=1),
    ]
    result = library.Chain(steps).run(runtime, start=replace(TUNE, tempos=GIVEN.tempos))
    (score,) = result["tune"].outputs
    assert isinstance(score, Score)
    plain = runtime.load(player).generate("a tune", notes=score, seconds=0.1, seed=1)
    assert result["song"].recipe["inputs"] == plain.recipe["inputs"]
    result["song"].save(tmp_path / "song.wav")
    assert soundfile.info(tmp_path / "song.wav").samplerate == RATE
