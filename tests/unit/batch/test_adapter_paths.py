"""Paths in a line start where the input file lies: those of adapters like those of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kamado.batch.pictures import PictureAnswers
from kamado.picture_requests import parse_adapter


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PictureAnswers:
    inputs, elsewhere = tmp_path / "inputs", tmp_path / "elsewhere"
    for folder in (inputs / "folder", inputs / "org" / "name", elsewhere):
        folder.mkdir(parents=True)
    for name in ("style.safetensors", "odd:2", "folder/inner.safetensors"):
        (inputs / name).touch()
    monkeypatch.chdir(elsewhere)
    return PictureAnswers(tmp_path / "out", inputs)


@pytest.mark.parametrize(
    ("given", "reference", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.5", "style.safetensors", 0.5),
        ("./folder/inner.safetensors:-1", "folder/inner.safetensors", -1.0),
        ("folder:2", "folder", 2.0),
        ("odd:2", "odd:2", 1.0),
        ("org/name", "org/name", 1.0),
        ("missing.safetensors", "missing.safetensors", 1.0),
        ({"reference": "style.safetensors", "weight": 0.25}, "style.safetensors", 0.25),
    ],
)
def test_paths(answers: PictureAnswers, tmp_path: Path, given: Any, reference: str, weight: float) -> None:
    options = answers.options({"id": 1, "prompt": "a", "adapters": [given]})
    (value,) = options["adapters"]
    use = parse_adapter(value)
    assert Path(use.reference) == tmp_path / "inputs" / reference
    assert use.weight == weight
    alone = answers.options({"id": 1, "prompt": "a", "adapters": given})
    assert alone["adapters"] == value


@pytest.mark.parametrize(
    "given",
    ["other/name", "other/name@main:0.5", "pypi:package", "pypi:package:0.5", "~/style.safetensors", 5, None, ""],
)
def test_what_is_no_path_here_stays(answers: PictureAnswers, given: Any) -> None:
    assert answers.options({"id": 1, "prompt": "a", "adapters": [given]})["adapters"] == [given]


def test_absolute_paths_stay(answers: PictureAnswers, tmp_path: Path) -> None:
    path = str(tmp_path / "elsewhere" / "x.safetensors")
    assert answers.options({"id": 1, "adapters": [path]})["adapters"] == [path]
