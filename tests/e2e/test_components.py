"""Single files and components from elsewhere, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

import original_files
import tiny_pipelines as tiny

from .conftest import Kamado


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline, the same as one file, and a ControlNet."""
    root = tmp_path_factory.mktemp("components")
    original_files.single_file(tiny.load(folders["sd15"]), "sd15", root / "x.safetensors")
    (root / "sd15").symlink_to(folders["sd15"])
    (root / "edges").symlink_to(folders["controlnet-sd15"])
    tiny.picture(7).save(root / "drawing.png")
    return root


def test_a_single_file_with_a_controlnet(kamado: Kamado, quick: Kamado, folder: Path, tmp_path: Path) -> None:
    model = (folder / "x.safetensors", "--base", folder / "sd15", "--component", f"controlnet={folder / 'edges'}")
    plan = quick("plan", *model, "--json")
    assert plan.returncode == 0, plan.stderr
    assert [lane["lane"] for lane in json.loads(plan.stdout)["lanes"]] == ["controlnet", "text_encoder", "unet", "vae"]
    request = (
        "a red cat",
        "--steps",
        "3",
        "--seed",
        "5",
        "--control",
        folder / "drawing.png",
        "--control-scale",
        "0.5",
    )
    made = kamado("run", *model, *request, "-o", tmp_path / "a.png")
    assert made.returncode == 0, made.stderr
    replay = ("replay", tmp_path / "a.png", "--control", folder / "drawing.png", "--json")
    lost = quick(*replay)
    assert lost.returncode == 4 and b"which is not here; say where it is" in lost.stderr
    again = quick(*replay, "--model", *model)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["equal"] is True
    whole = ("run", folder / "sd15", *model[3:], *request, "-o", tmp_path / "b.png")
    assert quick(*whole).returncode == 0
    apart = ImageChops.difference(*(Image.open(tmp_path / name).convert("RGB") for name in ("a.png", "b.png")))
    assert max(high for _, high in apart.getextrema()) <= 1


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (("HERE/x.safetensors", "--offline"), 4, "holds no tokenizer"),
        (("HERE/x.ckpt", "--base", "HERE/sd15"), 5, "kamado convert-pickle"),
        (("HERE/sd15/vae/diffusion_pytorch_model.safetensors",), 4, "in no known layout"),
        (("HERE/sd15", "--component", "vae=HERE/edges"), 4, "is a ControlNetModel; the vae must be a AutoencoderKL"),
    ],
)
def test_errors(args: tuple[str, ...], status: int, text: str, quick: Kamado, folder: Path, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, folder / "x.ckpt")
    model, *rest = (arg.replace("HERE", str(folder)) for arg in args)
    done = quick("run", model, "a red cat", *rest, "-o", tmp_path / "x.png")
    assert done.returncode == status, done.stderr
    assert text in done.stderr.decode() and len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "x.png").exists()
