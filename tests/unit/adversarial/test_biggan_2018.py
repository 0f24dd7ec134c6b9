"""BigGAN of 2018: pictures equal to the published network, in another formulation, with the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import kamado
from kamado.media.recipes import read_recipe
from kamado_models.adversarial.latent_draws import drawn_within
from typed import typed

from . import published_2018 as published
from . import weights
from .test_generators import close, pixels


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kamado.Runtime]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAMADO_HOME", str(tmp_path_factory.mktemp("home")))
        with kamado.Runtime(device="cpu", memory="2GiB") as found:
            yield found


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"split": False},
        {"shared": 0, "split": False},
        {"spectral": False, "attention": ()},
        {"own_norm": True, "attention": (0, 1)},
    ],
)
def test_pictures(runtime: kamado.Runtime, tmp_path: Path, form: dict[str, Any]) -> None:
    state = published.state(**form)
    model = runtime.load(weights.saved(state, tmp_path / "model.safetensors"))
    size = published.PART * (3 if form.get("split", True) else 1)
    for truncation in (1.0, 0.4):
        found = model.generate(seed=5, class_label=2, truncation=truncation)
        oracle = pixels(published.picture(state, drawn_within(5, size, truncation), 2))
        assert close(found.pixels[0], oracle) and oracle.std() > 0.05
    other = model.generate(seed=5, class_label=1, truncation=0.4)
    assert not close(other.pixels[0], oracle)
    assert found.images[0].size == (16, 16)


def test_sizes_follow_from_the_weights(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = published.state()
    state |= {
        name.replace("blocks.0.0", f"blocks.{place}.0"): tensor
        for place in (2, 3, 4)
        for name, tensor in state.items()
        if name.startswith("blocks.0.0")
    }
    # As in the layouts for 128 pixels: 16, 16, 16, 16, 8.
    last = {name.replace("blocks.1", "blocks.4"): tensor for name, tensor in state.items() if "blocks.1" in name}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("blocks.1", "blocks.4"))} | last
    state |= {name.replace("blocks.0", "blocks.1"): state[name] for name in list(state) if name.startswith("blocks.0")}
    model = runtime.load(weights.saved(state, tmp_path / "large.safetensors"))
    assert model.generate(seed=1, class_label=0).images[0].size == (128, 128)


@pytest.mark.parametrize(("config", "has_values", "eps"), [({}, False, 1e-4), ({"BN_eps": 0.01}, True, 0.01)])
def test_epsilon(runtime: kamado.Runtime, tmp_path: Path, config: dict[str, Any], has_values: bool, eps: float) -> None:
    """Weights that the release's scripts converted lack singular values, and were trained with a larger epsilon."""
    state = published.state()
    for name in list(state):
        if name.endswith("stored_var"):
            state[name] *= 1e-3  # so that it shows
        if name.endswith("sv0") and not has_values:
            del state[name]
    state["blocks.1.1.gamma"] = torch.full((1,), 0.7)
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    weights.saved(named, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = runtime.load(tmp_path).generate(seed=2, class_label=1).pixels[0]
    latents = drawn_within(2, 12, 1.0)
    assert close(found, pixels(published.picture(state, latents, 1, eps)))
    assert not close(found, pixels(published.picture(state, latents, 1, 1e-5)))


def test_walks_and_crowds(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(weights.saved(published.state(), tmp_path / "model.safetensors"))
    alone = [model.generate(seed=seed, class_label=0, truncation=share).pixels[0] for seed, share in ((1, 0.5), (2, 1))]
    model.generate(seed=9, n=4)  # here it is found out whether rows can be joined
    jobs = [model.submit(seed=seed, class_label=0, truncation=share) for seed, share in ((1, 0.5), (2, 1))]
    assert all(close(one, job.result(timeout=60).pixels[0]) for one, job in zip(alone, jobs, strict=True))
    crowd = model.generate(seed=1, n=4, class_label=0, truncation=0.5)
    assert close(crowd.pixels[0], alone[0]) and any(crowd.batched)
    walk = model.generate(interpolate=[1, 1], class_label=[0, 2], frames=3).video
    for frame, label in ((0, 0), (2, 2)):
        still = numpy.asarray(model.generate(seed=1, class_label=label).images[0])
        assert numpy.abs(walk[frame].astype(int) - still).max() <= 1
    assert "class" in model.generate(seed=1).notes[0]


def test_quantized(runtime: kamado.Runtime, tmp_path: Path) -> None:
    path = weights.saved(published.state(shared=252), tmp_path / "model.safetensors")
    whole = runtime.load(path).generate(seed=1, class_label=0).pixels[0]
    found = runtime.load(path, quant="int8").generate(seed=1, class_label=0).pixels[0]
    assert 0 < numpy.abs(whole - found).mean() < 0.05
    small = weights.saved(published.state(), tmp_path / "small.safetensors")
    with pytest.raises(kamado.InvalidRequest, match="none of its weights can be held in that form"):
        runtime.load(small, quant="int8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_label": 3}, "from 0 to 2"),
        ({"class_label": "dog"}, "names no classes"),
        ({"truncation": 1.5}, "at most 1"),
        ({"noise": "none"}, "takes no noise"),
        ({"mix": 1}, "takes no mix"),
    ],
)
def test_bad_options(runtime: kamado.Runtime, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    path = weights.saved(published.state(), tmp_path / "model.safetensors")
    with pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(path, request=options)


def test_what_lacks_is_named(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = published.state()
    del state["blocks.1.0.bn2.stored_var"]
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"lacks blocks\.1\.0\.bn2\.stored_var"):
        runtime.load(weights.saved(state, tmp_path / "model.safetensors"))
    state = published.state() | {"blocks.0.0.conv3.weight": torch.zeros(1)}
    with pytest.raises(kamado.UnsupportedCheckpoint, match="known layout"):
        runtime.load(weights.saved(state, tmp_path / "deep.safetensors"))


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    kamado = typed(monkeypatch, capsys)
    weights.saved(published.state(), Path("dogs.safetensors"))
    done = kamado("run", "dogs.safetensors", "--option", "class_label=1", "--option", "truncation=0.5", "-o", "dog.png")
    assert done.status == 0, done.err
    assert Image.open("dog.png").size == (16, 16) and read_recipe("dog.png")["options"]["class_label"] == [1]
    assert "BigGAN" in kamado("show", "dogs.safetensors").out
    Path("in.jsonl").write_text('{"id": "a", "seed": 1, "class_label": 2}\n{"id": "b", "class_label": 9}\n')
    done = kamado("batch", "dogs.safetensors", "in.jsonl", "-o", "out")
    found = [json.loads(line) for line in Path("out/results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in found] == ["ok", "failed"] and "from 0 to 2" in found[1]["error"]
