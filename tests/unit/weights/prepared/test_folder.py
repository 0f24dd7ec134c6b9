"""Which prepared weights stay, who writes them, and when."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kamado.checkpoint.store import Store
from kamado.errors import InvalidRequest
from kamado.weights.prepared import folder as folder_module
from kamado.weights.prepared import keeping as keeping_module
from kamado.weights.prepared.folder import DEFAULT_LIMIT, LIMIT, PreparedFolder, limit_bytes, room_bytes
from kamado.weights.prepared.keeping import Keeping


def put(folder: PreparedFolder, name: int, nbytes: int) -> Path:
    path = folder.path({"name": name})
    with folder.writing(path, nbytes) as file:
        if file is not None:
            file.write(bytes(nbytes))
    return path


def test_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "2500")
    folder = PreparedFolder(tmp_path)
    first, second = put(folder, 1, 1000), put(folder, 2, 1000)
    for age, path in enumerate((second, first)):
        os.utime(path, (1000 - age,) * 2)
    folder.note_use(first)
    third = put(folder, 3, 1000)
    assert [entry.path for entry in folder.entries()] == [first, third]
    assert put(folder, 4, 2600).exists() is False, "more than there may be"
    assert [entry.path for entry in folder.entries()] == [first, third], "and nothing left for it"
    assert folder.clear() == 2000
    assert folder.entries() == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PreparedFolder(tmp_path)
    first = put(folder, 1, 1000)
    monkeypatch.setattr(folder_module, "room_bytes", lambda path: 500)
    second = put(folder, 2, 1000)
    assert [entry.path for entry in folder.entries()] == [second], f"{first} made room"
    assert not put(folder, 3, 2000).exists()


@pytest.mark.parametrize(
    ("total", "free", "room"), [(20_000, 1500, 500), (1 << 40, 6 << 30, 2 << 30), (252 << 30, 3 << 30, -(1 << 30))]
)
def test_what_stays_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: int, free: int, room: int) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert room_bytes(tmp_path) == room


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LIMIT, raising=False)
    assert limit_bytes() == DEFAULT_LIMIT
    monkeypatch.setenv(LIMIT, "3GiB")
    assert limit_bytes() == 3 << 30 and Keeping(tmp_path).is_on
    monkeypatch.setenv(LIMIT, "0")
    assert not Keeping(tmp_path).is_on
    monkeypatch.setenv(LIMIT, "plenty")
    with pytest.raises(InvalidRequest, match=LIMIT):
        limit_bytes()


def test_one_process_writes(tmp_path: Path) -> None:
    folder = PreparedFolder(tmp_path)
    path = folder.path({"name": 1})
    with Store(tmp_path).locked(f"prepared-{path.stem}"), folder.writing(path, 10) as file:
        assert file is None
    put(folder, 1, 10)
    with folder.writing(path, 10) as file:
        assert file is None, "it is there"
    assert not list((tmp_path / "locks").iterdir())


def test_what_was_killed_or_failed_leaves_nothing(tmp_path: Path) -> None:
    folder = PreparedFolder(tmp_path)
    path = folder.path({"name": 1})
    with pytest.raises(RuntimeError), folder.writing(path, 10) as file:
        assert file is not None
        file.write(b"half")
        raise RuntimeError
    assert list(folder.folder.iterdir()) == []
    (folder.folder / f".{path.name[:40]}.{'0' * 16}.part").write_bytes(b"killed")
    others = [folder.folder / f".{number * 10}{path.name[10:40]}.{'0' * 16}.part" for number in "12"]
    for other in others:
        other.write_bytes(b"killed")
    os.utime(others[0], (1000, 1000))
    put(folder, 1, 10)
    assert sorted(folder.folder.iterdir()) == sorted([others[1], path])
    folder.clear()
    assert list(folder.folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    folder = PreparedFolder(blocked)
    folder.note_use(folder.path({}))
    folder.remove(folder.path({}))
    assert folder.entries() == []
    keeping, raised = Keeping(blocked), threading.Event()

    def write(going_on: Callable[[], bool]) -> None:
        raised.set()
        with folder.writing(folder.path({}), 10):
            pass

    keeping.later(write).begin()
    keeping.finish()
    assert raised.is_set()


def test_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping = Keeping(tmp_path)
    calls: list[str] = []

    def write(name: str) -> Callable[[Callable[[], bool]], None]:
        return lambda going_on: calls.append(f"{name} {going_on()}")

    waiting, told = keeping.later(write("waiting")), keeping.later(write("told"))
    told.begin()
    told.wait()
    assert calls == ["told True"]
    keeping.later(write("abandoned")).abandon()
    keeping.finish()
    waiting.wait()
    assert calls == ["told True", "waiting True"]
    monkeypatch.setattr(keeping_module, "IDLE_S", 0.01)
    keeping.later(write("idle")).wait()
    assert calls[2:] == ["idle True"]
    started = threading.Event()

    def slow(going_on: Callable[[], bool]) -> None:
        started.set()
        while going_on():
            pass
        calls.append("stopped")

    keeping.later(slow).begin()
    assert started.wait(10)
    keeping.abandon()
    assert calls[3:] == ["stopped"]
    keeping.finish()
