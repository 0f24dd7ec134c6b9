"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kamado.files import remove_leftovers, replacing, write_json


def test_json_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for value in ({"b": [1, "é"], "a": None}, {}):
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value
    assert os.listdir(tmp_path) == ["x.json"]


def test_what_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"good": 1, "bad": object()})
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text(encoding="utf-8")) == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    write_json(real, 1)
    assert real.stat().st_mode & 0o777 == 0o644
    real.chmod(0o600)
    link.symlink_to(real)
    write_json(link, 2)
    assert link.is_symlink()
    assert real.read_text() == "2"
    assert real.stat().st_mode & 0o777 == 0o600


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    with replacing(tmp_path / "x.json"):
        (leftover,) = os.listdir(tmp_path)
    (tmp_path / leftover).touch()
    (tmp_path / leftover.replace("x.json", "y.json")).touch()
    remove_leftovers(tmp_path / "x.json")
    assert sorted(os.listdir(tmp_path)) == [leftover.replace("x.json", "y.json"), "x.json"]
