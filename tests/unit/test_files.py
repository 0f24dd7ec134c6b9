"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kamado import files
from kamado.errors import InvalidRequest
from kamado.files import check_place, check_writable, make_folder, remove_leftovers, replacing, write_json, write_new


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
    (tmp_path / "usual").touch()
    write_json(real, 1)
    assert real.stat().st_mode == (tmp_path / "usual").stat().st_mode
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
    others = [leftover.replace("x.json", name) for name in ("y.json", "x.json.gz", "x.json.0123456789abcdef", "xxjson")]
    others += [".x.json.part", ".x.json.0123.part", leftover.replace(".part", ".partly")]
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "x.json")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "x.json"])


@pytest.mark.skipif(os.name != "posix", reason="there is no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    script = f"""
import os, pathlib, kamado.files
os.umask({umask})
kamado.files.write_json(pathlib.Path("new"), 1)
kamado.files.write_new(pathlib.Path("newer"), lambda file: kamado.files.write_json(file, 1))
pathlib.Path("old").touch()
os.chmod("old", 0o646)
kamado.files.write_json(pathlib.Path("old"), 2)
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)  # the umask is the whole process's
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert found == {"new": mode, "newer": mode, "old": 0o646}


def test_ctrl_c_while_the_file_is_being_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def interrupted(*args: Any) -> int:
        os.close(real(*args))
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.json"):
        pytest.fail("it was not opened")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_new_file_replaces_nothing(tmp_path: Path) -> None:
    for end in ("", "-2", "-3"):
        path = write_new(tmp_path / "a.b.png", lambda file: write_json(file, 1))
        assert path.name == f"a.b{end}.png" and path.read_text() == "1" and path.stat().st_nlink == 1
    (tmp_path / "c.png").mkdir()
    assert write_new(tmp_path / "c.png", lambda file: write_json(file, 2)).name == "c-2.png"

    def fails(file: Path) -> None:
        write_json(file, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "a.b.png", fails)
    assert sorted(os.listdir(tmp_path)) == ["a.b-2.png", "a.b-3.png", "a.b.png", "c-2.png", "c.png"]


def test_a_new_file_where_files_cannot_have_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refused)
    names = [write_new(tmp_path / "x.png", lambda file: write_json(file, 1)).name for _ in range(3)]
    assert names == ["x.png", "x-2.png", "x-3.png"] and sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "picture.png"
    with pytest.raises(OSError, match="No space") as caught, replacing(target) as file:
        file.write(b"x")
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_to_write_to_is_made_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "c" / "d"):
        with pytest.raises(InvalidRequest, match="file is a file; name another folder"):
            make_folder(folder)
    check_writable(tmp_path / "new" / "newer")
    real = os.open

    def locked(path: str, *rest: Any, **more: Any) -> int:  # tests may run as root
        if Path(path).parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", locked)
    with pytest.raises(InvalidRequest, match=f"the folder {tmp_path} cannot be written to: Permission denied; name"):
        check_writable(tmp_path / "new" / "newer")
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: os.open(tmp_path / "none" / "x", os.O_RDONLY))
    with pytest.raises(InvalidRequest, match="cannot be made: No such file or directory"):
        make_folder(tmp_path / "a" / "c")
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_place_that_takes_no_files_is_refused_with_its_cause(tmp_path: Path) -> None:
    """Root has every permission in /proc, and can make no file there."""
    for check in (lambda: check_place(Path("/proc/x.png")), lambda: check_writable(Path("/proc"))):
        with pytest.raises(InvalidRequest, match=r"the folder /proc cannot be written to: [A-Z][a-z ]+; name"):
            check()
    check_place(Path("/dev/null"))  # is written to as it is
    check_place(tmp_path / "x.png")
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
