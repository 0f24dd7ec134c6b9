"""Generators, networks that restore pictures, and autoencoders by commands: run, replay, batch, plan, show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_autoencoders as tiny
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.media.recipes import read_recipe
from kamado.media.videos import open_video
from typed import Kamado, typed

from . import published, weights
from .restorers import authors_call, photo, restorer


@pytest.fixture
def kamado(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Kamado:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    weights.saved(weights.stylegan2(), tmp_path / "faces.safetensors")
    weights.saved(restorer("Compact"), tmp_path / "upscaler.safetensors")
    photo(12, 10, "RGBA").save("in.png")
    return typed(monkeypatch, capsys)


def test_a_generator(kamado: Kamado) -> None:
    done = kamado("run", "faces.safetensors", "--seed", "3", "--option", "truncation=0.7", "-o", "face.png")
    assert (done.status, done.out) == (0, "face.png\n"), done.err
    assert Image.open("face.png").size == (16, 16)
    recipe = read_recipe("face.png")
    assert recipe["options"] == {"seed": 3, "truncation": 0.7, "n": 1} and recipe["model"]["files"]
    again = kamado("replay", "face.png", "--json", "--model", "faces.safetensors")
    assert again.status == 0 and json.loads(again.out)["equal"] is True, again.out + again.err
    done = kamado(
        "run", "faces.safetensors", "--option", "interpolate=[1,2]", "--frames", "6", "--fps", "5", "-o", "w.mp4"
    )
    assert done.status == 0, done.err
    walk = open_video("w.mp4")
    assert walk.frames.shape == (6, 16, 16, 3) and walk.fps == 5
    assert read_recipe("w.mp4")["options"]["interpolate"] == [1, 2]
    shown = kamado("show", "faces.safetensors")
    assert "StyleGAN2" in shown.out and "unconditional-image-generation" in shown.out
    assert kamado("plan", "faces.safetensors").status == 0
    refused = kamado("run", "faces.safetensors", "--steps", "4", "-o", "no.png")
    assert refused.status == 2 and "--steps cannot be used" in refused.err and not Path("no.png").exists()


@pytest.mark.parametrize("command", [("run",), ("plan",), ("bench",)])
@pytest.mark.parametrize(
    ("typed_options", "says"),
    [
        (
            ("--compile", "off"),
            "--compile changes nothing for faces.safetensors, which makes image and video; leave it out",
        ),
        (("--speculation", "off"), "--speculation changes nothing for faces.safetensors"),
        (("--kv-dtype", "int8"), "--kv-tokens and --kv-dtype are for text models"),
        (("--kv-tokens", "9"), "--kv-tokens and --kv-dtype are for text models"),
        (("--draft", "faces.safetensors"), "no draft can guess for it"),
    ],
)
def test_ways_of_running_that_it_does_not_have(
    kamado: Kamado, command: tuple[str, ...], typed_options: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kamado_models.library.loading.load", None)  # nothing is loaded
    done = kamado(*command, "faces.safetensors", *typed_options)
    assert done.status == 2 and says in done.err, done.err


@pytest.mark.parametrize("model", ["faces.safetensors", "emoji-diffusion:64"])
def test_what_only_a_preset_says_is_no_error(kamado: Kamado, model: str) -> None:
    """Presets are for all kinds of models, and have tokens of attention state."""
    assert kamado("plan", model, "--config", "cpu").status == 0
    assert kamado("plan", model, "--config", "cpu", "--kv-tokens", "100").status == 2
    if model == "faces.safetensors":
        done = kamado("run", model, "--config", "cpu", "--seed", "3", "-o", "face.png")
        assert (done.status, done.out) == (0, "face.png\n"), done.err


def test_an_upscaler_keeps_transparency(kamado: Kamado) -> None:
    done = kamado("run", "upscaler.safetensors", "--image", "in.png", "-o", "out.png")
    assert done.status == 0, done.err
    assert Image.open("out.png").size == (24, 20) and Image.open("out.png").mode == "RGBA"
    assert "sha256" in read_recipe("out.png")["inputs"]["image"]
    again = kamado("replay", "out.png", "--json", "--model", "upscaler.safetensors", "--image", "in.png")
    assert again.status == 0 and json.loads(again.out)["equal"] is True, again.out + again.err
    Path("note.png").write_text("text")
    for arguments, says in (
        (("--image", "note.png"), "note.png is no picture"),
        (("--image", "none.png"), "none.png does not exist"),
        ((), "image"),
        (("--image", "in.png", "--mask", "in.png"), "--mask cannot be used"),
    ):
        done = kamado("run", "upscaler.safetensors", *arguments, "-o", "no.png")
        assert done.status == 2 and says in done.err and len(done.err.splitlines()) == 1
    assert not Path("no.png").exists()


def test_a_restorer_of_faces(kamado: Kamado, narrow: dict[str, Tensor]) -> None:
    weights.saved({f"params_ema.{name}": tensor for name, tensor in narrow.items()}, Path("GFPGAN.safetensors"))
    face = photo(512, 512)
    face.save("face.png")
    done = kamado("run", "GFPGAN.safetensors", "--image", "face.png", "--seed", "3", "-o", "out.png")
    assert (done.status, done.out) == (0, "out.png\n"), done.err
    expected = (authors_call(narrow, face, 3) * 255).round()
    assert numpy.abs(numpy.asarray(Image.open("out.png")) - expected).max() <= 1
    again = kamado("replay", "out.png", "--json", "--model", "GFPGAN.safetensors", "--image", "face.png")
    assert again.status == 0 and json.loads(again.out)["equal"] is True, again.out + again.err
    assert "GFPGAN" in kamado("show", "GFPGAN.safetensors").out
    lines = [{"id": "a", "image": "face.png", "seed": 3}, {"id": "b", "image": "in.png"}]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert kamado("batch", "GFPGAN.safetensors", "in.jsonl", "-o", "out").status == 1
    good, bad = (json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines())
    assert numpy.array_equal(Image.open(f"out/{good['files'][0]}"), Image.open("out.png"))
    assert bad["files"] == [] and "fills 512 x 512 pixels, and the image is 12 x 10" in bad["error"]
    done = kamado("run", "GFPGAN.safetensors", "--image", "in.png", "-o", "no.png")
    assert done.status == 2 and "cut the face out" in done.err and len(done.err.splitlines()) == 1
    assert not Path("no.png").exists()


def test_networks_that_are_not_free(kamado: Kamado) -> None:
    names = ("position_emb", "idx_pred_layer.1.weight", "quantize.embedding.weight")
    weights.saved({f"params_ema.{name}": torch.zeros(1) for name in names}, Path("codeformer.safetensors"))
    assert "CodeFormer networks are not run" in kamado("show", "codeformer.safetensors").out
    for command in (("plan",), ("run", "--image", "in.png", "-o", "no.png")):
        done = kamado(command[0], "codeformer.safetensors", *command[1:])
        assert done.status == 4 and "CodeFormer networks are not run" in done.err and len(done.err.splitlines()) == 1
    assert not Path("no.png").exists()


def test_batches(kamado: Kamado) -> None:
    lines = [{"id": "a", "seed": 1}, {"id": "b", "interpolate": [1, 2], "frames": 4}, {"id": "c", "steps": 3}]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = kamado("batch", "faces.safetensors", "in.jsonl", "-o", "out")
    found = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in found] == ["ok", "ok", "failed"] and done.status == 1
    assert ", 2 outputs, " in done.err
    assert [line["files"] for line in found] == [["media/a.png"], ["media/b.mp4"], []]
    assert "takes no steps" in found[2]["error"] and open_video("out/media/b.mp4").frames.shape[0] == 4
    Path("up.jsonl").write_text(json.dumps({"id": 1, "image": "in.png"}) + "\n")
    done = kamado("batch", "upscaler.safetensors", "up.jsonl", "-o", "up")
    assert done.status == 0 and ", 1 pictures, " in done.err, done.err
    assert Image.open("up/media/1.png").size == (24, 20)


def test_an_autoencoder(kamado: Kamado, tmp_path: Path) -> None:
    folder, _ = tiny.saved("AutoencoderKL", tmp_path)
    name, photo_size = str(folder), (12, 10)
    photo(*photo_size).save("in.png")
    assert kamado("run", name, "--image", "in.png", "-o", "again.png").status == 0
    done = kamado("run", name, "--image", "in.png", "--task", "encode", "-o", "code.safetensors")
    assert done.status == 0, done.err
    assert [entry.shape for entry in read_safetensors_header(Path("code.safetensors")).tensors.values()] == [
        (1, 4, 5, 6)
    ]
    done = kamado("run", name, "--option", 'latents="code.safetensors"', "-o", "decoded.png")
    assert done.status == 0, done.err
    one, two = (numpy.asarray(Image.open(file)).astype(int) for file in ("again.png", "decoded.png"))
    assert numpy.abs(one - two).max() <= 1
    done = kamado("run", name, "--image", "in.png", "--task", "score", "--json")
    (scores,) = json.loads(done.out)["outputs"]
    assert scores["scores"][0]["score"] > 0 and scores["scores"][0]["psnr_db"] < 40
    Path("in.jsonl").write_text(json.dumps({"id": "z", "latents": "code.safetensors"}) + "\n")
    assert kamado("batch", name, "in.jsonl", "-o", "out").status == 0
    assert Image.open("out/media/z.png").size == photo_size


def test_a_generator_with_other_names_says_what_it_lacks(kamado: Kamado) -> None:
    state = {f"main.{name}": tensor for name, tensor in published.dcgan().state_dict().items() if name != "1.bias"}
    weights.saved(state, Path("broken.safetensors"))
    done = kamado("run", "broken.safetensors", "-o", "x.png")
    assert done.status == 4 and "are in no known layout" in done.err
