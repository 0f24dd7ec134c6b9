"""Real-ESRGAN for real, out of ncnn's files: spandrel's own call over tensors that are read here in another way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import kamado
from kamado_models.adversarial.restore_spandrel import spandrel
from typed import typed

pytestmark = pytest.mark.slow
FILES = {
    "realesrgan:x4plus": ("realesrgan-x4plus", 23),
    "realesrgan:anime": ("realesrgan-x4plus-anime", 6),
    "realesrgan:video": ("realesr-animevideov3-x4", 0),
}


def _names(blocks: int) -> list[str]:
    """Of the published network's layers, in the order in which they run."""
    if not blocks:
        return [f"body.{number}" for number in range(35)]
    dense = [f"body.{n}.rdb{m}.conv{k}" for n in range(blocks) for m in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    return ["conv_first", *dense, "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]


def published(folder: Path, stem: str, blocks: int) -> dict[str, Tensor]:
    """The tensors, taken one after the other, in sizes that the lines of the graph name."""
    raw = (folder / f"{stem}.bin").read_bytes()
    lines = [line for line in (folder / f"{stem}.param").read_text().splitlines() if re.match("Conv|PReLU", line)]
    state, at = {}, 0
    for name, line in zip(_names(blocks), lines, strict=True):
        wide = int(re.findall(r" 0=(\d+)", line)[0])
        if line.startswith("Conv"):
            count = int(re.findall(r" 6=(\d+)", line)[0])
            assert raw[at : at + 4] == bytes.fromhex("476b3001")
            weight = numpy.frombuffer(raw, "<f2", count, at + 4).astype("f4")
            state[f"{name}.weight"] = torch.from_numpy(weight.reshape(wide, -1, 3, 3))
            at += 4 + 2 * count
        last = "bias" if line.startswith("Conv") else "weight"
        state[f"{name}.{last}"] = torch.from_numpy(numpy.frombuffer(raw, "<f4", wide, at).copy())
        at += 4 * wide
    assert at == len(raw)
    return state


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(
        device="cpu",
        memory="4GiB",
    ) as found:
        yield found


@pytest.fixture(scope="module")
def picture(runtime: kamado.Runtime) -> Image.Image:
    """Something that the picture model which comes along has drawn."""
    found: Image.Image = runtime.load("emoji-diffusion:64").generate("a red heart", seed=1, steps=8).images[0]
    return found.crop((4, 10, 60, 58))


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_those_of_the_published_network(
    name: str, runtime: kamado.Runtime, realesrgan: Path, picture: Image.Image
) -> None:
    theirs = spandrel().MAIN_REGISTRY.load(published(realesrgan, *FILES[name])).eval()
    given = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected = theirs(given)[0].permute(1, 2, 0).numpy()
    drawing = runtime.load("emoji-diffusion:64").submit("a green leaf", seed=2, steps=8)
    model = runtime.load(name)
    jobs = [model.submit(image=picture) for _ in range(2)]
    found = [each.result(timeout=120).pixels[0] for each in jobs]
    drawing.result(timeout=120)
    assert found[0].shape == (192, 224, 3)
    assert max(numpy.abs(each - expected).max() for each in found) < 1e-4
    # A picture that was enlarged is the one that went in, when it is made small again.
    small = numpy.asarray(Image.fromarray((found[0] * 255).astype("u1")).resize(picture.size, Image.Resampling.BOX))
    assert numpy.abs(small.astype(float) - numpy.asarray(picture)).mean() < 6


def test_the_command_line_enlarges(
    realesrgan: Path, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    picture.save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    done = typed(monkeypatch, capsys)(
        "run", "realesrgan:video", "--image", str(tmp_path / "in.png"), "-o", str(out), stdin=b""
    )
    assert done.status == 0 and Image.open(out).size == (224, 192)


def test_a_network_that_ends_otherwise_is_refused(runtime: kamado.Runtime, realesrgan: Path) -> None:
    """Those of the same package that make the picture smaller again."""
    with pytest.raises(kamado.UnsupportedCheckpoint, match="differs at its layer 'Resize_40'"):
        runtime.load(realesrgan / "realesr-animevideov3-x2.param")
    with pytest.raises(kamado.UnsupportedCheckpoint, match="several networks of ncnn"):
        runtime.load(realesrgan)
