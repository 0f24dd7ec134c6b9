"""The seed decides everything that is drawn, and nothing is taken from the host program's random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado_models.diffusion.draws import seed_noise
from kamado_models.diffusion.pipelines import call_arguments, own_containers


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency model of ten classes."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            num_class_embeds=10,
        )
    folder = tmp_path_factory.mktemp("consistency")
    pipeline: Any = diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler())
    pipeline.save_pretrained(folder)
    return folder


def test_a_class_that_was_not_given_comes_from_the_seed(classes: Path, runtime: kamado.Runtime) -> None:
    model = runtime.load(classes)
    before = torch.get_rng_state()
    first, second = (model.generate(seed=7, steps=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert numpy.array_equal(first.pixels[0], second.pixels[0])
    (label,) = first.recipe["options"]["class_labels"]
    assert any(f"[{label}]" in note for note in first.notes)
    given = model.generate(**first.recipe["options"])
    assert numpy.array_equal(given.pixels[0], first.pixels[0])
    several = model.generate(seed=6, n=2, steps=2)
    assert "class_labels" not in several.recipe["options"]
    assert numpy.abs(several.pixels[1] - first.pixels[0]).max() < 1e-4
    labels = {tuple(model.generate(seed=seed, steps=1).recipe["options"]["class_labels"]) for seed in range(6)}
    assert len(labels) > 1


def test_noise_of_a_schedulers_own_comes_from_the_seed() -> None:
    class Scheduler:
        noise_sampler_seed: int | None = None

    class Pipeline:
        scheduler = Scheduler()

    pipeline = Pipeline()
    seed_noise(pipeline, 5)
    assert pipeline.scheduler.noise_sampler_seed == 5
    seed_noise(pipeline, 6)
    assert pipeline.scheduler.noise_sampler_seed == 5, "what the checkpoint says holds"
    seed_noise(object(), 5)


def test_what_the_library_draws_without_any_seed_is_refused() -> None:
    import diffusers

    from kamado.picture_requests import resolve_picture_options

    asked = {"prompt": "a", "gligen_phrases": ["a"], "gligen_boxes": [[0, 0, 1, 1]]}
    kind = diffusers.StableDiffusionGLIGENPipeline
    call_arguments(kind, resolve_picture_options(asked))
    with pytest.raises(kamado.InvalidRequest, match="without the seed"):
        call_arguments(kind, resolve_picture_options({**asked, "gligen_inpaint_image": object()}))


def test_containers_are_a_requests_own(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    tensor = torch.zeros(1)
    inner = {"b": [tensor, (1, 2)]}
    given = {"a": inner}
    found = own_containers(given)
    assert found == given
    assert found["a"] is not inner and found["a"]["b"] is not inner["b"]
    assert found["a"]["b"][0] is tensor

    model = runtime.load(folders["sd15"])
    asked: dict[str, Any] = {"x": [1]}
    tasks = model.loaded.prepare("x", {"prompt": "a", "cross_attention_kwargs": asked, "steps": 1, "n": 2}, 0.0)
    asked["x"].append(2)
    for task in tasks:
        assert task.described()["cross_attention_kwargs"] == {"x": [1]}  # type: ignore[attr-defined]


def test_what_a_recipe_cannot_hold_is_named(folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path) -> None:
    from kamado.replaying import replay

    model = runtime.load(folders["sd15"])
    request = {**tiny.arguments("sd15"), "num_inference_steps": 1, "seed": 1}
    plain = model.generate(**request)
    assert "unrecorded" not in plain.recipe
    scale = 2 ** (len(model.loaded.direct_pipeline().vae.config.block_out_channels) - 1)
    side = request.get("width", 64) // scale
    latents = torch.ones(1, 4, side, side)
    made = model.generate(**request, latents=latents)
    assert made.recipe["unrecorded"] == ["latents"]
    assert any("latents" in note for note in made.notes)
    path = tmp_path / "picture.png"
    made.save(path)
    with pytest.raises(kamado.InvalidRequest, match="latents"):
        replay(path, runtime=runtime)
