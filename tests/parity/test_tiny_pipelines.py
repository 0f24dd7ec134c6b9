"""The tiny pipelines themselves: a comparison with them means something only if every input shows in the pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from tiny_pipelines import EXTRAS, PIPELINES, TOKEN, arguments, build, build_extra, call, load, oracle, picture

SIBLINGS = [(name, kind) for name, spec in PIPELINES.items() for kind in spec.siblings]
LARGEST_FOLDER = 2 * 2**20
CLEAR = 0.01
"""Mean difference on [0, 1] between pictures that must differ."""
ROUNDING = 2e-4
CONTENT = ("prompt", "image", "class_labels", "image_embeds")
DRAWS_ONCE = {"sd15-inpaint"}
"""Pipelines whose noise for the second picture of a call is not that of a call of its own: they encode a masked picture
once, with the first generator."""


def difference(left: numpy.ndarray, right: numpy.ndarray) -> float:
    return float(numpy.abs(left - right).mean())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_everything_matters(pipeline: Any, usual: dict[str, Any], other: dict[str, Any]) -> numpy.ndarray:
    pictures = call(pipeline, **usual)
    assert numpy.array_equal(pictures, call(pipeline, **usual)), "the same call says otherwise"
    assert difference(pictures, call(pipeline, seed=1, **usual)) > CLEAR, "seed"
    for name in CONTENT:
        if name in usual:
            assert difference(pictures, call(pipeline, **usual | {name: other[name]})) > CLEAR, name
    return pictures


@pytest.mark.parametrize("name", PIPELINES)
def test_the_folder_is_ordinary_and_always_the_same(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders[name]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[name].class_name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_FOLDER
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".jinja"}
    state = torch.random.get_rng_state()
    assert digests(build(name, tmp_path)) == digests(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_depend_on_all_inputs(name: str, folders: dict[str, Path]) -> None:
    pipeline = load(folders[name])
    usual = arguments(name)
    pictures = assert_everything_matters(pipeline, usual, arguments(name, prompt=1))
    assert pictures.dtype == numpy.float32
    assert pictures.shape[0] == 1 and pictures.shape[-1] == 3
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert ((pictures == 0) | (pictures == 1)).mean() < 0.4
    assert pictures.std() > 0.05
    assert numpy.array_equal(pictures, oracle(folders[name], **usual)), "a pipeline loaded anew says otherwise"
    more = usual | {"num_inference_steps": usual["num_inference_steps"] + 2}
    assert difference(pictures, call(pipeline, **more)) > CLEAR, "steps"


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in DRAWS_ONCE])
def test_two_pictures_in_a_call_are_those_of_two_calls(name: str, folders: dict[str, Path]) -> None:
    pipeline = load(folders[name])
    both = call(pipeline, seed=[3, 4], **arguments(name))
    assert len(both) == 2
    alone = [call(pipeline, seed=seed, **arguments(name))[0] for seed in (3, 4)]
    assert numpy.abs(both - numpy.stack(alone)).max() < ROUNDING


@pytest.mark.parametrize(("name", "kind"), SIBLINGS)
def test_siblings_load_from_the_same_folder(name: str, kind: str, folders: dict[str, Path]) -> None:
    from diffusers import ControlNetModel

    components = {}
    if "control" in kind:
        components["controlnet"] = ControlNetModel.from_pretrained(folders[f"controlnet-{name}"])
    pipeline = load(folders[name], pipeline_class=PIPELINES[name].siblings[kind], **components)
    usual, other = arguments(name, kind), arguments(name, kind, prompt=1)
    if "control" in kind:
        control = "control_image" if "control_image" in usual else "image"
        changed = call(pipeline, **usual | {control: picture(1)})
        assert difference(call(pipeline, **usual), changed) > CLEAR
        other = other if control == "control_image" else other | {"image": picture(2)}
    pictures = assert_everything_matters(pipeline, usual, other)
    assert pictures.shape == ((1, len(usual["video"]), 32, 32, 3) if kind == "video" else (1, 64, 64, 3))


@pytest.mark.parametrize("name", EXTRAS)
def test_extras_are_always_the_same(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    path = folders[name]
    build_extra(name, tmp_path)
    assert digests(tmp_path) == digests(path if path.is_dir() else path.parent)


@pytest.mark.parametrize("name", [name for name in EXTRAS if name.startswith("lora")])
def test_loras_show_and_can_be_taken_away(name: str, folders: dict[str, Path]) -> None:
    base, path = name.split("-")[1], folders[name]
    pipeline = load(folders[base])
    without = call(pipeline, **arguments(base))
    pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    pictures = call(pipeline, **arguments(base))
    assert difference(without, pictures) > CLEAR
    assert difference(pictures, call(pipeline, seed=1, **arguments(base))) > CLEAR
    pipeline.unload_lora_weights()
    assert numpy.array_equal(without, call(pipeline, **arguments(base)))


def test_the_safety_checker_blackens_some_pictures(folders: dict[str, Path]) -> None:
    pipeline = load(folders["sd15-checked"])
    black = [not call(pipeline, seed=seed, **arguments("sd15-checked")).any() for seed in range(6)]
    assert not black[0]
    assert any(black)


def test_the_textual_inversion_shows(folders: dict[str, Path]) -> None:
    usual = arguments("sd15") | {"prompt": f"{TOKEN} on a mat"}
    without = oracle(folders["sd15"], **usual)
    path = folders["embedding-sd15"]
    pictures = oracle(folders["sd15"], prepare=lambda pipeline: pipeline.load_textual_inversion(path), **usual)
    assert difference(without, pictures) > CLEAR


def test_the_ip_adapter_shows(folders: dict[str, Path]) -> None:
    pipeline = load(folders["sd15"])
    without = call(pipeline, **arguments("sd15"))
    pipeline.load_ip_adapter(
        str(folders["ip-adapter-sd15"]),
        subfolder="models",
        weight_name="ip-adapter_sd15.safetensors",
        local_files_only=True,
    )
    first, second = (call(pipeline, ip_adapter_image=picture(k), **arguments("sd15")) for k in (0, 1))
    assert difference(without, first) > CLEAR
    assert difference(first, second) > CLEAR
