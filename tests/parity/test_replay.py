"""Pictures made again from their files, by models that lie in folders: bit for bit, if they were made alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from adapter_files import Files
from kamado.media.pictures import open_picture, read_recipe, save_picture

FEW: dict[str, Any] = {"prompt": tiny.PROMPTS[0], "steps": 3, "seed": 7}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("sd15", {"guidance": 2.0}),
    "draws": ("sd15", {"scheduler": "dpm++-sde", "steps": 4}),
    "image": ("sd15", {"image": tiny.picture(1), "strength": 0.8}),
    "two passes": ("sd15", {"hires": 1.5, "tiling": True}),
    "cache": ("sd15", {"steps": 8, "step_cache": 10.0}),
    "transformer": ("flux", {}),
}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Of the options those that a recipe knows by their hashes."""
    return {name: options[name] for name in ("image",) if name in options}


@pytest.mark.parametrize("kind", KINDS)
def test_alone_every_bit_is_the_same(
    kind: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: kamado.Runtime
) -> None:
    name, options = KINDS[kind]
    model = runtime.load(files[name])
    result = model.generate(**{**FEW, **options})
    (path,) = result.save(tmp_path / "x.png")
    model.unload()
    recipe = read_recipe(path)
    assert result.batched == (False,) and "batched" not in recipe
    assert recipe["model"]["reference"] == f"./{files[name].name}" and str(files[name].parent) not in str(recipe)
    monkeypatch.chdir(files[name].parent)
    with kamado.Runtime(device="cpu", memory="2GiB") as other:
        done = kamado.replay(path, runtime=other, **given(options))
    assert done.differences == () and done.rounding == 0
    assert done.equal is True and done.as_expected
    assert numpy.array_equal(done.result.pixels[0], result.pixels[0])


def test_pictures_of_one_request_share_forwards_and_say_so(
    files: Files, tmp_path: Path, runtime: kamado.Runtime
) -> None:
    model = runtime.load(files["sd15"])
    result = model.generate(**FEW, n=3)
    paths = result.save(tmp_path / "x.png")
    assert result.batched == (True, True, True) and "batched" not in result.recipe
    assert all(read_recipe(path)["batched"] is True for path in paths)
    done = kamado.replay(paths[1], tmp_path / "again.png", model=files["sd15"], runtime=runtime)
    assert done.rounding == 1 and done.as_expected and done.differences == ()
    assert done.result.batched == (False,) and "batched" not in read_recipe(done.path)
    edited = open_picture(paths[1])
    edited.putpixel((3, 3), tuple(255 - value for value in edited.getpixel((3, 3))))  # type: ignore[union-attr]
    save_picture(edited, paths[1], read_recipe(paths[1]))
    assert not kamado.replay(paths[1], tmp_path / "b.png", model=files["sd15"], runtime=runtime).as_expected


def test_requests_of_one_model_share_forwards_and_those_of_two_do_not(files: Files, runtime: kamado.Runtime) -> None:
    model, other = runtime.load(files["sd15"]), runtime.load(files["flux"])
    together = model.generate_many([{**FEW, "seed": seed} for seed in range(2)])
    assert [result.batched for result in together] == [(True,), (True,)]
    jobs = [each.submit(**FEW) for each in (model, other)]
    assert [job.result().batched for job in jobs] == [(False,), (False,)]


def test_deterministic_pictures_are_made_alone(files: Files) -> None:
    with kamado.Runtime(device="cpu", memory="2GiB", deterministic=True) as runtime:
        model = runtime.load(files["sd15"])
        results = [*model.generate_many([FEW, {**FEW, "seed": 8}]), model.generate(**FEW, n=2)]
        assert [result.batched for result in results] == [(False,), (False,), (False, False)]
        assert numpy.array_equal(results[0].pixels[0], results[2].pixels[0])


def test_adapters_components_and_base_are_found_by_their_names(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: kamado.Runtime
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    lora = shutil.copy(files["lora-sd15"], home / "style.safetensors")
    shutil.copytree(files["sd15"] / "vae", home / "my-vae")
    shutil.copytree(files["sd15"], home / "model")
    monkeypatch.chdir(elsewhere)
    options = {**FEW, "adapters": [f"{lora}:0.7"]}
    model = runtime.load(home / "model", components={"vae": home / "my-vae", "safety_checker": None})
    (path,) = model.generate(**options).save(elsewhere / "x.png")
    recipe = read_recipe(path)
    assert str(tmp_path) not in str(recipe)
    assert recipe["adapters"][0]["reference"] == "./style.safetensors"
    assert recipe["components"]["vae"]["reference"] == "./my-vae"

    with pytest.raises(kamado.ModelNotFound, match=r"the adapter './style.safetensors', which is not here"):
        kamado.replay(path, model=home / "model", components={"vae": home / "my-vae"}, runtime=runtime)
    places = {"model": home / "model", "components": {"vae": home / "my-vae"}, "adapters": [lora]}
    assert kamado.replay(path, elsewhere / "a.png", runtime=runtime, **places).equal is True
    monkeypatch.chdir(home)
    assert kamado.replay(path, elsewhere / "b.png", runtime=runtime).equal is True
    monkeypatch.chdir(tmp_path)
    moved = shutil.copy(path, home / "x.png")
    done = kamado.replay(moved, runtime=runtime)
    assert done.equal is True and done.path == home / "x-replay.png"
