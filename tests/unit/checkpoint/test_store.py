"""The store: what is in it is whole, what is not whole is not in it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kamado.checkpoint import digest
from kamado.checkpoint.digest import checkpoint_digests, file_digest, hash_file
from kamado.checkpoint.home import default_home
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.reference import HubReference, PypiReference
from kamado.checkpoint.store import Entry, Store, StoredFile, entry_id, find_by_id, make_entry, verify
from kamado.errors import KamadoError, ModelNotFound, UnsupportedCheckpoint

FILES = {"config.json": b"{}", "sub/a.txt": b"hello"}


def add(store: Store, name: str = "org/name", revision: str = "c" * 40) -> Entry:
    stage = store.partial(entry_id("hub", name, revision)) / "stage"
    for file, content in FILES.items():
        path = stage / "files" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    files = {n: StoredFile(sha256=hashlib.sha256(c).hexdigest(), size=len(c)) for n, c in FILES.items()}
    entry = make_entry(store, "hub", name, requested=("main",), revision=revision, target=".", files=files)
    return store.finish(stage, entry)


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.delenv("KAMADO_HOME")
    assert default_home().name == "kamado"
    assert default_home().is_absolute()


def test_opening_and_listing_writes_nothing(store: Store, home: Path) -> None:
    assert store.entries() == []
    assert store.find(HubReference("org/name")) is None
    assert not home.exists()


def test_find(store: Store) -> None:
    entry = add(store)
    for wanted in (HubReference("org/name"), HubReference("Org/Name", "main"), HubReference("org/name", "c" * 40)):
        assert store.find(wanted) == entry
    for other in (HubReference("org/name", "v2"), HubReference("org/other"), PypiReference("org-name")):
        assert store.find(other) is None
    assert store.entry_of(entry.path / "sub" / "a.txt") == entry
    assert store.entry_of(store.home) is None
    assert find_by_id(store, entry.id) == entry
    with pytest.raises(ModelNotFound):
        find_by_id(store, "none")
    assert entry.total_bytes == 7


def test_ids_are_portable_and_differ() -> None:
    ids = {entry_id("hub", name, "main") for name in ("a/b", "A/B", "a/B", "a-b", "../../x", "x" * 300)}
    assert len(ids) == 6
    assert all(len(text) <= 120 and not set(text) - set("abcdefghijklmnopqrstuvwxyz0123456789._-") for text in ids)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_bytes(b"{"), "has 1 bytes instead of 2"),
        (lambda p: p.write_bytes(b"[]"), "was changed"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["cut", "changed", "gone"],
)
def test_damage_is_found(damage: object, says: str, store: Store) -> None:
    entry = add(store)
    assert verify(entry) == []
    damage(entry.path / "config.json")  # type: ignore[operator]
    (fault,) = verify(entry)
    assert (fault.file, fault.problem) == ("config.json", says)
    assert (store.find(HubReference("org/name")) is None) == (says != "was changed")


def test_a_link_put_in_place_of_a_file_is_found(store: Store, tmp_path: Path) -> None:
    entry = add(store)
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (entry.path / "config.json").unlink()
    (entry.path / "config.json").symlink_to(tmp_path / "elsewhere")
    (fault,) = verify(entry)
    assert "link" in fault.problem
    assert store.find(HubReference("org/name")) is None


@pytest.mark.parametrize(
    "change",
    [
        *({"format": 2}, {"target": "../../x"}, {"target": 3}, {"source": None}, {"created_s": "yesterday"}),
        *({"requested": None}, {"requested": [1]}, {"files": []}, {"files": {"x": {"size": 1}}}),
        {"files": {"../x": {"sha256": "0" * 64, "size": 1}}},
        {"files": {"x": {"sha256": "short", "size": 1}}},
        {"files": {"x": {"sha256": "0" * 64, "size": "1"}}},
    ],
    ids=str,
)
def test_a_damaged_manifest_is_no_entry(change: dict[str, object], store: Store) -> None:
    entry = add(store)
    manifest = entry.folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    assert store.entries() == []


def test_files_without_a_manifest_are_no_entry(store: Store) -> None:
    entry = add(store)
    (entry.folder / "manifest.json").unlink()
    assert store.entries() == []
    again = add(store)
    assert store.entries() == [again]
    assert verify(again) == []
    assert list(store.partial_folder.iterdir()) == []


def test_a_branch_leads_to_one_commit(store: Store) -> None:
    add(store, revision="a" * 40)
    add(store, revision="b" * 40)
    add(store, name="org/other", revision="d" * 40)
    assert sorted(entry.reference for entry in store.entries()) == ["org/name", f"org/name@{'a' * 40}", "org/other"]
    found = store.find(HubReference("org/name"))
    assert found is not None
    assert found.revision == "b" * 40
    store.adopt(found, "v1")
    again = store.find(HubReference("org/name", "v1"))
    assert again is not None
    assert again.id == found.id


def test_remove(store: Store, home: Path) -> None:
    entry = add(store)
    other = add(store, name="org/other")
    store.remove(entry)
    assert store.entries() == [other]
    assert list((home / "partial").iterdir()) == []
    store.remove(entry)


def test_a_killed_removal_is_finished_later(store: Store) -> None:
    trash = store.partial_folder / "trash-1"
    trash.mkdir(parents=True)
    (trash / "big").write_bytes(bytes(100))
    add(store)
    assert not trash.exists()


def test_locks_keep_threads_apart(store: Store) -> None:
    order: list[str] = []
    held = threading.Event()

    def hold() -> None:
        with store.locked("x"):
            held.set()
            time.sleep(0.2)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with store.locked("x", waiting=lambda: order.append("waiting")):
        order.append("second")
    thread.join()
    assert order == ["waiting", "first", "second"]


COUNT = """
import sys
from pathlib import Path
from typing import Any
from kamado.checkpoint.store import Store
store, counter = Store(Path(sys.argv[1])), Path(sys.argv[2])
for _ in range(60):
    with store.locked("x"):
        number = int(counter.read_text())
        counter.write_text("")
        counter.write_text(str(number + 1))
"""


def test_locks_keep_processes_apart_and_leave_no_files(store: Store, tmp_path: Path) -> None:
    """Removing the file of a lock that others wait for, or are about to open, lets no two of them in."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(store.home), str(counter)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert counter.read_text() == "240"
    assert list(store.locks_folder.iterdir()) == []


def test_work_in_progress_without_files_goes_with_the_lock(store: Store) -> None:
    with store.locked("empty"):
        (store.partial("empty") / "stage" / "files").mkdir(parents=True)
    with store.locked("begun"):
        (store.partial("begun") / "part").write_bytes(b"1")
    assert [path.name for path in store.partial_folder.iterdir()] == ["begun"]


def test_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kamado.checkpoint.resolve import resolve

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(KamadoError, match="KAMADO_HOME"):
        resolve("pypi:tiny-model==1.0")


def test_digests_are_cached_until_the_file_changes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    known = file_digest(path)
    assert known == hashlib.sha256(b"abc").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(digest, "hash_file", lambda path, **_: pytest.fail("it was hashed again"))
        assert file_digest(path) == known
    path.write_bytes(b"abd")
    assert file_digest(path) == hashlib.sha256(b"abd").hexdigest()
    (home / "digests.json").write_text("nonsense")
    assert file_digest(path) == hash_file(path)
    with pytest.raises(UnsupportedCheckpoint):
        file_digest(tmp_path / "missing")


def test_no_digest_is_lost_to_another_writer(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have read the file before the first one writes it."""
    paths = [tmp_path / str(number) for number in range(8)]
    together = threading.Barrier(len(paths))

    def hashed(path: Path, **_: Any) -> str:
        together.wait(20)
        return hash_file(path)

    for path in paths:
        path.write_bytes(path.name.encode())
    monkeypatch.setattr(digest, "hash_file", hashed)
    threads = [threading.Thread(target=file_digest, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = digest.known_digests(paths)
    assert known is not None and known[str(paths[3])] == hashlib.sha256(b"3").hexdigest()
    assert not list((home / "locks").iterdir())


def test_of_many_digests_the_newest_are_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "MAX_CACHED", 3)
    for name in "zabcd":
        (tmp_path / name).write_bytes(name.encode())
        file_digest(tmp_path / name)
    file_digest(tmp_path / "z")
    monkeypatch.setattr(digest, "hash_file", lambda path, **_: f"hashed {path.name}")
    found = [file_digest(tmp_path / name) for name in "zdc"]
    assert found == [hashlib.sha256(name.encode()).hexdigest() for name in "zdc"]
    assert file_digest(tmp_path / "a") == "hashed a"


def test_what_was_hashed_before_an_error_or_ctrl_c_is_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())

    def hashed(path: Path, **_: Any) -> str:
        if path.name == "c":
            raise KeyboardInterrupt
        return hash_file(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(digest, "hash_file", hashed)
        digest.file_digests(paths)
    known = digest.known_digests(paths[:2])
    assert known == {str(path): hash_file(path) for path in paths[:2]} and digest.known_digests(paths) is None
    with pytest.raises(UnsupportedCheckpoint, match="missing"):
        digest.file_digests([paths[2], tmp_path / "missing"])
    assert digest.known_digests(paths) is not None


def test_digests_of_a_checkpoint(tmp_path: Path) -> None:
    from checkpoint_files import write_transformers

    root = write_transformers(tmp_path / "model")
    digests = checkpoint_digests(inspect(root))
    assert digests == {path.name: hash_file(path) for path in root.iterdir()}
