"""Pictures as typed, with the model that comes along."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

import kamado as library
from kamado.media.pictures import open_picture, read_recipe, save_picture

from .conftest import PROGRAM, Kamado, PseudoTerminal, environment, hear_interrupts

MODEL = "emoji-diffusion:64"
PROMPT = "a red heart"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def mean_colour(path: str | Path) -> tuple[float, ...]:
    """Of the middle half of a picture: what the prompt asked for is there."""
    picture = open_picture(path).convert("RGB")
    width, height = picture.size
    middle = picture.crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    return tuple(ImageStat.Stat(middle).mean)


def test_a_picture_shows_what_was_asked_for_and_holds_its_recipe(kamado: Kamado, quick: Kamado) -> None:
    done = kamado("run", MODEL, PROMPT, "--offline", "--steps", "8", "--seed", "7", "-o", "x.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x.png\n", b"")
    red, green, blue = mean_colour("x.png")
    assert Image.open("x.png").size == (64, 64) and red > 180 and red > 2 * max(green, blue)
    recipe = read_recipe("x.png")
    assert recipe["options"]["prompt"] == PROMPT and recipe["options"]["seed"] == 7 and recipe["options"]["n"] == 1
    assert recipe["model"]["reference"] == MODEL and len(recipe["model"]["files"]) > 5

    again = quick("replay", "x.png", "--offline", "--json")
    document = json.loads(again.stdout)
    assert again.returncode == 0 and document["equal"] is True and document["differences"] == []
    assert open_picture("x-replay.png").tobytes() == open_picture("x.png").tobytes()

    edited = open_picture("x.png")
    edited.putpixel((1, 2), (0, 0, 0))
    save_picture(edited, "edited.png", recipe)
    other = quick("replay", "edited.png", "--offline", "-o", "y.webp")
    assert other.returncode == 1 and other.stdout == b"y.webp\n" and b"not equal: 1 pixel differs" in other.stderr
    edited.save("bare.png")
    bare = quick("replay", "bare.png")
    assert bare.returncode == 2 and bare.stderr == b"kamado: bare.png carries no recipe\n"


def test_several_pictures_and_json(quick: Kamado, folder: Path) -> None:
    done = quick("run", MODEL, PROMPT, "--offline", "--steps", "4", "--seed", "7", "--n", "2", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.count(b"\n") == 1
    assert document["files"] == ["a-red-heart-7.png", "a-red-heart-8.png"] and document["seeds"] == [7, 8]
    assert document["request"] == {"prompt": PROMPT, "seed": 7, "n": 2, "steps": 4}
    assert document["finish_reason"] == "complete" and document["timings"]["total_s"] > 0
    first, second = (open_picture(name) for name in document["files"])
    assert first.tobytes() != second.tobytes()
    alone = quick("run", MODEL, PROMPT, "--offline", "--steps", "4", "--seed", "8", "-o", "alone.webp")
    assert alone.returncode == 0 and open_picture("alone.webp").size == second.size
    previews = ("--steps", "4", "--preview", "previews", "--option", "preview_every=2", "-o", "p.jpg")
    assert quick("run", MODEL, PROMPT, "--offline", *previews).returncode == 0
    assert sorted(path.name for path in (folder / "previews").iterdir()) == ["preview-0002.png", "preview-0004.png"]
    assert Image.open("p.jpg").format == "JPEG" and Image.open("previews/preview-0004.png").size == (64, 64)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-o", "x.txt"), b"use .png"),
        (("--temperature", "1"), b"--temperature is for text models"),
        (("--width", "65"), b"the nearest are 64 and 72"),
        (("--scheduler", "magic"), b"no scheduler is called 'magic'"),
        (("--option", "class_labels=[1]"), b"takes no --option class_labels"),
        (("--kv-tokens", "5"), b"--kv-tokens"),
        (("--kv-dtype", "int8"), b"--kv-dtype"),
    ],
)
def test_bad_options_are_status_2(quick: Kamado, folder: Path, args: tuple[str, ...], words: bytes) -> None:
    done = quick("run", MODEL, PROMPT, "--offline", *args)
    assert done.returncode == 2 and words in done.stderr and done.stdout == b""
    assert 1 <= done.stderr.count(b"\n") <= 2 and list(folder.iterdir()) == []


def test_no_prompt(quick: Kamado) -> None:
    done = quick("run", MODEL, "--offline")
    assert done.returncode == 2 and b"give a prompt" in done.stderr
    piped = quick("run", MODEL, "--offline", "--steps", "2", "--seed", "1", stdin=b"a red heart\n")
    assert piped.stdout == b"a-red-heart-1.png\n"


def test_pipelines_without_a_prompt(quick: Kamado, folder: Path) -> None:
    import tiny_pipelines

    model = tiny_pipelines.build("dit", folder / "my-dit")
    args = ("run", model, "--offline", "--steps", "2", "--seed", "3", "--option", "class_labels=[1]")
    done = quick(*args)
    assert (done.returncode, done.stdout) == (0, b"my-dit-3.png\n"), done.stderr
    assert quick(*args[:-1], "class_labels=[2]", "-o", "two.png").returncode == 0
    assert open_picture("my-dit-3.png").tobytes() != open_picture("two.png").tobytes()
    assert str(folder) not in str(read_recipe("my-dit-3.png"))
    assert b"equal: every pixel" in quick("replay", "my-dit-3.png").stderr
    (folder / "my-dit").rename(folder / "hidden")
    lost = quick("replay", "my-dit-3.png")
    assert lost.returncode == 4 and b"'./my-dit', which is not here; say where it is (--model)" in lost.stderr
    assert lost.stderr.count(b"\n") == 1
    assert b"equal: every pixel" in quick("replay", "my-dit-3.png", "--model", "hidden").stderr


def test_a_terminal_shows_steps_and_a_picture_model_never_chats(
    terminal: Callable[..., PseudoTerminal], folder: Path
) -> None:
    typed = terminal("run", MODEL, PROMPT, "--offline", "--steps", "30", "--n", "3", "--seed", "7")
    typed.wait_for(r"\d+/90 steps")
    assert typed.wait() == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"a-red-heart-{seed}.png" for seed in (7, 8, 9)]
    silent = terminal("run", MODEL, "--offline")
    silent.wait_for("give a prompt")
    assert silent.wait() == 2


def test_ctrl_c_leaves_no_file(tmp_path: Path, folder: Path) -> None:
    args = [PROGRAM, "run", MODEL, PROMPT, "--offline", "--steps", "1000", "--preview", "previews"]
    with subprocess.Popen(
        args,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=environment(tmp_path),
        preexec_fn=hear_interrupts,  # noqa: PLW1509 - nothing but a signal is set in it
    ) as process:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and not list(folder.glob("previews/*.png")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert (process.returncode, out, err) == (130, b"", b"")
    assert [path.name for path in folder.iterdir()] == ["previews"]
    for preview in folder.glob("previews/*"):
        Image.open(preview).verify()


@pytest.mark.slow
def test_a_killed_batch_goes_on_and_ends_the_same(quick: Kamado, tmp_path: Path, folder: Path) -> None:
    Image.new("RGB", (64, 64), "yellow").save("in.png")
    lines: list[dict[str, Any]] = [
        {"id": "Heart/1", "prompt": PROMPT, "seed": 7},
        {"id": "pair", "prompt": "a green apple", "n": 2},
        {"id": "bad", "prompt": "a cat", "temperature": 1},
        {"prompt": "a yellow star", "image": "in.png", "strength": 0.9},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = ("batch", MODEL, "in.jsonl", "--offline", "--deterministic", "--concurrency", "1", "--steps", "12")
    calm = quick(*args, "-o", "calm")
    assert calm.returncode == 1 and b"1 of 4 lines failed" in calm.stderr

    journal = folder / "killed" / "journal.jsonl"
    with subprocess.Popen(
        [PROGRAM, *args, "-o", "killed"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(tmp_path / "home"),
    ) as process:  # fmt: skip
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (folder / "killed" / "results.jsonl").exists()
    assert b"going on after" in quick(*args, "-o", "killed").stderr

    found = [json.loads(line) for line in (folder / "killed" / "results.jsonl").read_text().splitlines()]
    assert (folder / "killed" / "results.jsonl").read_bytes() == (folder / "calm" / "results.jsonl").read_bytes()
    assert [result["status"] for result in found] == ["ok", "ok", "failed", "ok"]
    assert "temperature is for text models" in found[2]["error"] and found[3]["id"] == "line-4"
    assert found[0]["seeds"] == [7] and found[1]["files"] == ["media/pair.1.png", "media/pair.2.png"]
    names = sorted(name for result in found for name in result["files"])
    assert names == sorted(f"media/{path.name}" for path in (folder / "killed" / "media").iterdir())
    for name in names:
        killed, undisturbed = (open_picture(folder / run / name) for run in ("killed", "calm"))
        assert killed.tobytes() == undisturbed.tobytes() and killed.size == (64, 64)
    heart = quick("replay", folder / "killed" / found[0]["files"][0], "--offline", "-q")
    assert heart.returncode == 0 and b"heart-1." in heart.stdout


def test_replay_from_python(folder: Path) -> None:
    with library.Runtime(device="cpu") as runtime:
        model = runtime.load(MODEL, offline=True)
        model.generate(PROMPT, seed=7, steps=3, n=2).save(folder / "x.png")
        done = library.replay(folder / "x-2.png", folder / "again.png", runtime=runtime, offline=True)
        assert done.as_expected and done.comparison.within(1) and done.differences == ()
        assert done.rounding == 1 and read_recipe(folder / "x-2.png")["batched"] is True
        assert done.path == folder / "again.png" and done.result.seeds == (8,)
        assert list(runtime.stats()["models"]) == [model.owner]
    alone = library.replay(folder / "again.png", offline=True)
    assert alone.equal is True and alone.path.name == "again-replay.png" and alone.rounding == 0
