"""Pictures of adversarial generators: equal to the published networks, in other formulations, with the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import kamado
from kamado.checkpoint.inspect import inspect
from kamado_models.adversarial.family import FAMILY

from . import published, published_others, weights

BIGGAN = {
    "z_dim": 4, "num_classes": 3, "channel_width": 8, "n_stats": 5, "eps": 1e-4, "attention_layer_position": 1,
    "layers": [[False, 16, 16], [True, 16, 8], [True, 8, 1]], "id2label": {"0": "cat, tabby", "1": "dog", "2": "hat"},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generators")


def pixels(made: Tensor) -> Any:
    """A picture of the oracle as pixels (height, width, channels)."""
    return ((made[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).detach().numpy()


def normal(seed: int, size: int) -> Tensor:
    return torch.from_numpy(numpy.random.RandomState(seed).randn(1, size)).float()


def close(one: Any, two: Any) -> bool:
    return bool(numpy.abs(one - two).max() < 1e-4)


def biggan(files: Path) -> tuple[Path, published.BigGan]:
    oracle = published.shaken(published.BigGan(BIGGAN))
    weights.saved(oracle.state_dict(), files / "biggan" / "model.safetensors")
    (files / "biggan" / "config.json").write_text(json.dumps(BIGGAN))
    return files / "biggan", oracle  # type: ignore[return-value]


def test_dcgan(runtime: kamado.Runtime, files: Path) -> None:
    oracle = published.shaken(published.dcgan())
    named = {f"main.{name}": tensor for name, tensor in oracle.state_dict().items()}
    model = runtime.load(weights.saved(named, files / "dcgan.safetensors"))
    found = model.generate(seed=3, n=2)
    for index in range(2):
        assert close(found.pixels[index], pixels(oracle(normal(3 + index, 6)[..., None, None])))
    assert found.images[0].size == (16, 16) and found.seeds == (3, 4)
    assert model.tasks == ("unconditional-image-generation",)


@pytest.mark.parametrize("truncation", [1.0, 0.5, 0.4])
def test_biggan(runtime: kamado.Runtime, files: Path, truncation: float) -> None:
    folder, oracle = biggan(files)
    model = runtime.load(folder)
    found = model.generate(seed=5, class_label="Tabby", truncation=truncation)
    z = torch.from_numpy(numpy.random.RandomState(5).uniform(size=(1, 4)))
    # The distribution function of the cut normal distribution at what was drawn gives the uniform numbers back.
    from kamado_models.adversarial.latent_draws import drawn_within

    latents = drawn_within(5, 4, truncation)
    low, high = torch.special.ndtr(torch.tensor([-2.0, 2.0]).double())
    assert torch.allclose((torch.special.ndtr(latents.double() / truncation) - low) / (high - low), z, atol=1e-5)
    assert close(found.pixels[0], pixels(oracle(latents, 0, truncation)))


@pytest.mark.parametrize("classes", [0, 3])
def test_stylegan2(runtime: kamado.Runtime, files: Path, classes: int) -> None:
    state = weights.stylegan2(classes=classes)
    model = runtime.load(weights.saved(state, files / f"stylegan2-{classes}.safetensors"))
    label = {"class_label": 1} if classes else {}
    chosen = torch.eye(3)[1:2] if classes else None
    w = published.style_of(state, normal(7, weights.Z), chosen)
    w = state["mapping.w_avg"] + 0.7 * (w - state["mapping.w_avg"])
    styles = w[:, None].repeat(1, 6, 1)
    found = model.generate(seed=7, truncation=0.7, **label)
    assert close(found.pixels[0], pixels(published.stylegan2(state, styles)))
    still = model.generate(seed=7, truncation=0.7, noise="none", **label)
    assert close(still.pixels[0], pixels(published.stylegan2(state, styles, noise=False)))
    assert not close(still.pixels[0], found.pixels[0])
    other = published.style_of(state, normal(8, weights.Z), chosen)
    mixed = styles.clone()
    mixed[:, [0, 5]] = state["mapping.w_avg"] + 0.7 * (other - state["mapping.w_avg"])
    found = model.generate(seed=7, truncation=0.7, mix=8, mix_layers=[0, 5], **label)
    assert close(found.pixels[0], pixels(published.stylegan2(state, mixed)))


@pytest.mark.parametrize("form", ["orig", "resnet"])
def test_other_forms_of_stylegan2(runtime: kamado.Runtime, files: Path, form: str) -> None:
    state = weights.stylegan2(form=form)
    model = runtime.load(weights.saved(state, files / f"stylegan2-{form}.safetensors"))
    one, two = (published.style_of(state, normal(seed, weights.Z))[:, None].repeat(1, 6, 1) for seed in (7, 8))
    assert close(model.generate(seed=7).pixels[0], pixels(published.stylegan2(state, one)))
    still = model.generate(seed=7, noise="none").pixels[0]
    assert close(still, pixels(published.stylegan2(state, one, noise=False)))
    mean = state["mapping.w_avg"]
    mixed = torch.cat((mean + 0.6 * (one[:, :2] - mean), one[:, 2:]), dim=1)
    mixed[:, [0, 3]] = torch.stack((mean + 0.6 * (two[0, 0] - mean), two[0, 3]))[None]
    oracle = pixels(published.stylegan2(state, mixed))
    found = model.generate(seed=7, truncation=0.6, truncation_layers=2, mix=8, mix_layers=[0, 3])
    assert close(found.pixels[0], oracle) and oracle.std() > 0.01
    crowd = model.generate(seed=7, n=3)
    assert close(crowd.pixels[0], pixels(published.stylegan2(state, one)))
    walk = model.generate(interpolate=[7, 8], frames=3).video
    assert numpy.abs(walk[2].astype(int) - numpy.asarray(model.generate(seed=8).images[0])).max() <= 1


def test_the_port_of_stylegan2_is_the_same_generator(runtime: kamado.Runtime, files: Path) -> None:
    state = weights.stylegan2()
    model = runtime.load(weights.saved(weights.ported(state), files / "port.safetensors"))
    own = runtime.load(weights.saved(state, files / "own.safetensors"))
    for options in ({"seed": 4}, {"seed": 4, "truncation": 0.5, "noise": "random"}):
        assert close(model.generate(**options).pixels[0], own.generate(**options).pixels[0])
    old = {name: tensor for name, tensor in weights.ported(state).items() if not name.startswith(("noises", "latent"))}
    model = runtime.load(weights.saved(old, files / "old.safetensors"))
    assert close(model.generate(seed=4, noise="random").pixels[0], own.generate(seed=4, noise="random").pixels[0])
    assert model.generate(seed=4, truncation=0.0).pixels[0].shape == (16, 16, 3)  # by a mean that is found out
    with pytest.raises(kamado.InvalidRequest, match="noise must be one of random, none"):
        model.generate(noise="const")


@pytest.mark.parametrize(("radial", "kernel"), [(False, 3), (True, 1)])
def test_stylegan3(runtime: kamado.Runtime, files: Path, radial: bool, kernel: int) -> None:
    state = published_others.stylegan3(radial=radial, kernel=kernel)
    model = runtime.load(weights.saved(state, files / f"stylegan3-{kernel}.safetensors"))
    w = published.style_of(state, normal(2, weights.Z))[:, None].repeat(1, 6, 1)
    oracle = pixels(published_others.stylegan3_picture(state, w))
    assert close(model.generate(seed=2).pixels[0], oracle)
    assert oracle.std() > 0.01


@pytest.mark.parametrize("form", ["uv", "plain"])
def test_fastgan(runtime: kamado.Runtime, files: Path, form: str) -> None:
    oracle = published.shaken(published_others.FastGan())
    path = files / f"fastgan-{form}.safetensors"
    state = {f"module.{name}": tensor for name, tensor in oracle.state_dict().items()}
    if form == "plain":
        for module in oracle.modules():
            if hasattr(module, "weight_orig"):
                torch.nn.utils.remove_spectral_norm(module)
        state = dict(oracle.state_dict())
    model = runtime.load(weights.saved(state, path))
    noisy = [module for module in oracle.modules() if isinstance(module, published_others._Noise)]
    assert close(model.generate(seed=1, noise="none").pixels[0], pixels(oracle(normal(1, 6))))
    generator = torch.Generator().manual_seed(1)
    for module, size in zip(noisy, (8, 8, 32, 32, 128, 128), strict=True):
        module.noise = torch.randn(1, 1, size, size, generator=generator)
    assert close(model.generate(seed=1).pixels[0], pixels(oracle(normal(1, 6))))


def walks(runtime: kamado.Runtime, files: Path) -> Mapping[str, kamado.Model]:
    dcgan = {f"main.{name}": tensor for name, tensor in published.shaken(published.dcgan()).state_dict().items()}
    return {
        "dcgan": runtime.load(weights.saved(dcgan, files / "dcgan.safetensors")),
        "stylegan2": runtime.load(weights.saved(weights.stylegan2(), files / "stylegan2-0.safetensors")),
    }


def test_a_walk_goes_through_the_pictures_of_its_seeds(runtime: kamado.Runtime, files: Path) -> None:
    for model in walks(runtime, files).values():
        found = model.generate(interpolate=[1, 2, 9], frames=41, fps=10)
        assert found.video.shape == (41, 16, 16, 3) and found.video.dtype == numpy.uint8 and found.fps == 10
        for frame, seed in ((0, 1), (20, 2), (40, 9)):
            still = numpy.asarray(model.generate(seed=seed).images[0])
            assert numpy.abs(found.video[frame].astype(int) - still).max() <= 1
        loop = model.generate(interpolate=[1, 2], frames=20, loop=True).video
        assert numpy.abs(loop[5].astype(int) - loop[15]).max() <= 1  # there and back
        steps = numpy.abs(numpy.diff(found.video.astype(int), axis=0)).mean(axis=(1, 2, 3))
        assert steps.max() < 12


def test_classes_change_on_a_walk(runtime: kamado.Runtime, files: Path) -> None:
    model = runtime.load(biggan(files)[0])
    found = model.generate(interpolate=[1, 1], class_label=["dog", 2], frames=3)
    for frame, label in ((0, 1), (2, 2)):
        still = numpy.asarray(model.generate(seed=1, class_label=label).images[0])
        assert numpy.abs(found.video[frame].astype(int) - still).max() <= 1
    assert "class" in model.generate(seed=1).notes[0]


def test_same_alone_and_beside_others(runtime: kamado.Runtime, files: Path) -> None:
    for model in walks(runtime, files).values():
        alone = [model.generate(seed=seed).pixels[0] for seed in range(5)]
        model.generate(seed=9, n=5)  # here it is found out whether rows can be joined
        crowd = model.generate(seed=0, n=5)
        assert all(close(one, many) for one, many in zip(alone, crowd.pixels, strict=True))
        assert any(crowd.batched)


def test_a_walk_that_no_memory_holds(runtime: kamado.Runtime, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = walks(runtime, files)["stylegan2"]
    few = SimpleNamespace(available_bytes=10_000)
    monkeypatch.setattr("kamado_models.pixels.host_memory", lambda: few)
    with pytest.raises(kamado.DoesNotFit, match=r"10000 frames of .* need .* of RAM, and .* are free; ask for fewer"):
        model.generate(interpolate=[1, 2], frames=10_000)


def test_a_walk_can_be_cancelled(runtime: kamado.Runtime, files: Path) -> None:
    job = walks(runtime, files)["stylegan2"].submit(interpolate=[1, 2], frames=10_000)
    for event in job.events():
        if isinstance(event, kamado.Progress):
            job.cancel()
    with pytest.raises(kamado.Cancelled):
        job.result()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 4}, "takes no steps"),
        ({"class_label": 1}, "takes no class_label"),
        ({"interpolate": [1]}, "two seeds at least"),
        ({"frames": 4}, "give interpolate"),
        ({"interpolate": [1, 2], "n": 2}, "n is for pictures"),
        ({"mix_layers": [1]}, "give that as mix"),
        ({"mix": 1, "mix_layers": [6]}, "from 0 to 5"),
        ({"truncation": 5.0}, "at most 2"),
        ({"truncation_layers": 2}, "give truncation too"),
        ({"noise": True}, "one of const, random, none"),
    ],
)
def test_bad_options(runtime: kamado.Runtime, files: Path, options: dict[str, Any], says: str) -> None:
    path = weights.saved(weights.stylegan2(), files / "stylegan2-0.safetensors")
    with pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(path).generate(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"class_label": 3}, "from 0 to 2"),
        ({"class_label": "boat"}, "no class of .*cat, tabby"),
        ({"class_label": "ta"}, "there are cat, tabby"),
        ({"class_label": [1, 2]}, "must be one, not 2"),
        ({"truncation": 0.0}, "above 0"),
        ({"noise": "none"}, "takes no noise"),
    ],
)
def test_bad_classes_are_found_before_loading(
    runtime: kamado.Runtime, files: Path, options: dict[str, Any], says: str
) -> None:
    folder, _ = biggan(files)
    with pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(folder, request=options)


def test_other_files_are_no_generators(files: Path) -> None:
    for number, state in enumerate(
        (
            {"main.0.weight": torch.zeros(4, 4, 3, 3)},
            {"main.0.weight": torch.zeros(4, 8, 4, 4), "main.3.weight": torch.zeros(9, 3, 4, 4)},
            {"synthesis.b4.const": torch.zeros(3, 4, 4)},
            {"synthesis.input.freqs": torch.zeros(3, 2), "synthesis.L0_9_3.weight": torch.zeros(3)},
            {"input.input": torch.zeros(1, 2, 4, 4), "style.x.weight": torch.zeros(2, 2)},
            {"init.init.0.weight": torch.zeros(2), "feat_x.1.weight": torch.zeros(2)},
            {"generator.conv_to_rgb.weight": torch.zeros(2)},
        )
    ):
        assert not FAMILY.claims(inspect(weights.saved(state, files / f"other-{number}.safetensors")))


def test_a_generator_that_lacks_a_tensor_is_named(runtime: kamado.Runtime, files: Path) -> None:
    state = weights.stylegan2()
    del state["synthesis.b16.conv0.bias"]
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"lacks b16\.conv0\.bias"):
        runtime.load(weights.saved(state, files / "lacks.safetensors"))
