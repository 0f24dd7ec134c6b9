"""The tiny pipelines themselves: a comparison with them means something only if every input shows in the pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import pytest

import tiny_pipelines
from tiny_pipelines import PIPELINES, arguments, build, call, load

SIBLINGS = [(name, kind) for name, spec in PIPELINES.items() for kind in spec.siblings if "control" not in kind]
LARGEST_FOLDER = 2_000_000
CLEAR = 0.01
"""Mean difference on [0, 1] between pictures that must differ."""
ROUNDING = 1e-4
DRAWS_ONCE = {"sd15-inpaint"}
"""Pipelines whose noise for the second picture of a call is not that of a call of its own: they encode a masked picture
once, with the first generator."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders built so far. Written to by `folder`."""
    return {}


@pytest.fixture
def folder_of(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = build(name, tmp_path_factory.mktemp("pipelines") / name)
        return folders[name]

    return get


def difference(left: numpy.ndarray, right: numpy.ndarray) -> float:
    return float(numpy.abs(left - right).mean())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_folder_is_ordinary_and_always_the_same(name: str, folder_of: Any, tmp_path: Path) -> None:
    folder = folder_of(name)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[name].class_name
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_FOLDER
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".jinja"}
    assert digests(build(name, tmp_path)) == digests(folder)


@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_depend_on_all_inputs(name: str, folder_of: Any) -> None:
    folder = folder_of(name)
    pipeline = load(folder)
    usual = arguments(name)
    pictures = call(pipeline, **usual)
    assert pictures.dtype == numpy.float32
    assert pictures.shape[0] == 1 and pictures.shape[-1] == 3
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert ((pictures == 0) | (pictures == 1)).mean() < 0.4
    assert pictures.std() > 0.05
    assert numpy.array_equal(pictures, tiny_pipelines.oracle(folder, **usual)), "a pipeline loaded anew says otherwise"
    assert difference(pictures, call(pipeline, seed=1, **usual)) > CLEAR
    more = usual | {"num_inference_steps": usual["num_inference_steps"] + 2}
    assert difference(pictures, call(pipeline, **more)) > CLEAR
    if PIPELINES[name].takes & {"prompt", "class"}:
        other = {key: arguments(name, prompt=1)[key] for key in ("prompt", "class_labels") if key in usual}
        assert difference(pictures, call(pipeline, **usual | other)) > CLEAR
    if "image" in PIPELINES[name].takes:
        other = {"image": arguments(name, prompt=1)["image"]}
        assert difference(pictures, call(pipeline, **usual | other)) > CLEAR


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in DRAWS_ONCE])
def test_two_pictures_in_a_call_are_those_of_two_calls(name: str, folder_of: Any) -> None:
    pipeline = load(folder_of(name))
    both = call(pipeline, seed=[3, 4], **arguments(name))
    assert len(both) == 2
    alone = [call(pipeline, seed=seed, **arguments(name))[0] for seed in (3, 4)]
    assert numpy.abs(both - numpy.stack(alone)).max() < ROUNDING


@pytest.mark.parametrize(("name", "kind"), SIBLINGS)
def test_siblings_load_from_the_same_folder(name: str, kind: str, folder_of: Any) -> None:
    pipeline = load(folder_of(name), pipeline_class=PIPELINES[name].siblings[kind])
    usual, other = arguments(name, kind), arguments(name, kind, prompt=1)
    pictures = call(pipeline, **usual)
    assert pictures.shape == (1, 64, 64, 3)
    assert numpy.array_equal(pictures, call(pipeline, **usual))
    assert difference(pictures, call(pipeline, seed=1, **usual)) > CLEAR
    assert difference(pictures, call(pipeline, **usual | {"image": other["image"]})) > CLEAR
    assert difference(pictures, call(pipeline, **usual | {"prompt": other["prompt"]})) > CLEAR
