"""Options that a folder recommends: numbers and words, nothing that names a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kamado.checkpoint.recommended import read_recommended
from kamado.errors import UnsupportedCheckpoint


def test_what_may_be_recommended(tmp_path: Path) -> None:
    told = {"steps": 25, "guidance": 1.5, "scheduler": "euler", "negative": "text", "tiling": True}
    (file := tmp_path / "kamado_defaults.json").write_text(json.dumps(told))
    assert read_recommended(file) == told


@pytest.mark.parametrize(
    "told",
    [
        {"image": "/etc/passwd"}, {"adapters": ["x"]}, {"steps": "many"}, {"steps": True}, {"tiling": 1},
        {"negative": 3}, {"negative": "x" * 3000}, {"guidance": [1.0]}, {"guidance": {"a": 1}},
    ],
)  # fmt: skip
def test_what_may_not(told: Any, tmp_path: Path) -> None:
    (file := tmp_path / "kamado_defaults.json").write_text(json.dumps(told))
    with pytest.raises(UnsupportedCheckpoint, match=r"is no option that may be recommended there"):
        read_recommended(file)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"guidance": NaN}', '{"guidance": 1e999}'])
def test_damaged_files(text: str, tmp_path: Path) -> None:
    (file := tmp_path / "kamado_defaults.json").write_text(text)
    with pytest.raises(UnsupportedCheckpoint):
        read_recommended(file)
