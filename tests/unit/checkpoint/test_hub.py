"""Pulling from a hub: what is taken, what survives a broken line, a kill, a full disk, and two pulls at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import write_transformers
from fake_hub import FakeHub, use_hub
from kamado.checkpoint import fetch_hub, resolve
from kamado.checkpoint.fetch_hub import RemoteFile, RemoteModel, choose_files
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.reference import HubReference
from kamado.checkpoint.store import Store, verify
from kamado.errors import HubUnreachable, KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint

WEIGHTS = "model.safetensors"
PULL = "import sys; from kamado.checkpoint.resolve import resolve; print(resolve('org/name'))"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_hub, "_PAUSE_S", 0.0)


def start_pull() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PULL], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_whole(store: Store, hub: FakeHub) -> None:
    (entry,) = store.entries()
    assert verify(entry) == []
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        assert (entry.path / name).read_bytes() == hub.files[name]
    assert list(store.partial_folder.iterdir()) == []


def test_takes_what_it_can_use_and_no_more(hub: FakeHub, store: Store) -> None:
    seen: list[tuple[int, int]] = []
    path = resolve.resolve("org/name", progress=lambda done, total: seen.append((done, total)))
    assert sorted(p.name for p in path.rglob("*")) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert_whole(store, hub)
    (entry,) = store.entries()
    assert (entry.reference, entry.revision, entry.target) == ("org/name", hub.commit, ".")
    assert seen[-1][0] == seen[-1][1] == entry.total_bytes
    assert inspect("org/name").revision == hub.commit
    assert resolve.resolve("org/name", offline=True) == path
    assert resolve.resolve(f"org/name@{hub.commit}", offline=True) == path
    assert len(hub.requests) == 3, "what is here is not asked for again"


def test_a_branch_moves_only_when_asked(hub: FakeHub, store: Store) -> None:
    first = resolve.resolve("org/name")
    hub.commit, hub.files["config.json"] = "d" * 40, b'{"model_type": "other"}'
    assert resolve.resolve("org/name") == first
    second = resolve.resolve("org/name", update=True)
    assert second != first
    assert resolve.resolve("org/name") == second
    assert {entry.reference for entry in store.entries()} == {"org/name", f"org/name@{'c' * 40}"}
    hub.status = 503
    assert resolve.resolve("org/name", update=True) == second, "what is here is used if the hub is down"


def test_a_broken_line_goes_on_where_it_was(hub: FakeHub, store: Store) -> None:
    hub.cut_after[WEIGHTS] = 3 << 20
    resolve.resolve("org/name")
    starts = [start for name, start in hub.requests if name == WEIGHTS]
    assert starts[0] == 0
    assert 2 << 20 <= starts[1] <= 3 << 20
    assert_whole(store, hub)


def test_killed_while_it_pulls_goes_on_where_it_was(hub: FakeHub, store: Store) -> None:
    hub.stall_after[WEIGHTS] = 3 << 20
    process = start_pull()
    assert hub.stalled.wait(30)
    deadline = time.monotonic() + 10
    while not any(p.stat().st_size >= 2 << 20 for p in store.partial_folder.rglob("*.partial")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.released.set()
    assert store.entries() == []
    with pytest.raises(HubUnreachable):
        resolve.resolve("org/name", offline=True)
    resolve.resolve("org/name")
    assert [start for name, start in hub.requests if name == WEIGHTS][-1] >= 2 << 20
    assert_whole(store, hub)


def test_two_pulls_at_once_make_one_good_copy(hub: FakeHub, store: Store) -> None:
    hub.stall_after[WEIGHTS] = 1 << 20
    first, second = start_pull(), start_pull()
    assert hub.stalled.wait(30)
    time.sleep(1.0)  # the other one reaches the lock
    hub.released.set()
    answers = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert [name for name, _ in hub.requests].count(WEIGHTS) == 1
    assert_whole(store, hub)


def test_wrong_bytes_are_not_kept(hub: FakeHub, store: Store) -> None:
    hub.served[WEIGHTS] = bytes(len(hub.files[WEIGHTS]))
    with pytest.raises(UnsupportedCheckpoint, match="wrong hash"):
        resolve.resolve("org/name")
    assert store.entries() == []
    hub.served.clear()
    resolve.resolve("org/name")
    assert_whole(store, hub)


def test_longer_than_promised_is_not_kept(hub: FakeHub, store: Store) -> None:
    hub.served["config.json"] = hub.files["config.json"] + bytes(100)
    with pytest.raises(UnsupportedCheckpoint, match="longer"):
        resolve.resolve("org/name")
    assert store.entries() == []


def test_full_disk_says_so_and_goes_on_later(hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fetch_hub._request

    def full(model: RemoteModel, file: RemoteFile, part: Path, start: int, report: object) -> None:
        if file.name == WEIGHTS:
            part.write_bytes(hub.files[WEIGHTS][: 1 << 20])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(model, file, part, start, report)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fetch_hub, "_request", full)
        with pytest.raises(KamadoError, match=r"disk .* is full") as caught:
            resolve.resolve("org/name")
    assert type(caught.value) is KamadoError
    assert store.entries() == []
    resolve.resolve("org/name")
    assert [start for name, start in hub.requests if name == WEIGHTS] == [1 << 20]
    assert_whole(store, hub)


def test_too_small_a_disk_is_noticed_before_the_first_byte(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))  # type: ignore[attr-defined]
    with pytest.raises(KamadoError, match="full"):
        resolve.resolve("org/name")
    assert hub.requests == []


class Killed(BaseException):
    """Stands for a kill: nothing in the library may catch it."""


SEAMS = [
    *((os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree")),
    *((Path, "rename"), (Path, "replace"), (Path, "mkdir")),
]


def _pull_stopped_at(number: int, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Pull, and raise `failure` instead of the `number`-th operation on the disk. False if there were fewer."""
    calls = 0

    def seam(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise failure(errno.EIO, "injected")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in SEAMS:
            patch.setattr(owner, name, seam(getattr(owner, name)))
        with contextlib.suppress(Killed, KamadoError):
            resolve.resolve("org/name")
    return calls >= number


@pytest.mark.slow
@pytest.mark.parametrize("failure", [Killed, OSError], ids=["kill", "error"])
def test_stopped_at_every_seam(
    failure: type[BaseException], hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop the pull before its n-th operation on the disk, for every n: never something that only looks finished."""
    hub.files[WEIGHTS] = hub.files[WEIGHTS][: 8 + int.from_bytes(hub.files[WEIGHTS][:8], "little")]
    number = 1
    while _pull_stopped_at(number, failure, monkeypatch):
        assert all(verify(entry) == [] for entry in store.entries())
        resolve.resolve("org/name")
        (entry,) = store.entries()
        assert verify(entry) == []
        shutil.rmtree(store.home)
        number += 1
    assert number > 10


def test_no_network_fails_quickly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(HubUnreachable, match="check the network"):
        resolve.resolve("org/name")
    assert time.perf_counter() - started < 5


def test_silent_hub_fails_quickly(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_hub, "LOOK_UP_TIMEOUT_S", 0.2)
    monkeypatch.setattr(fetch_hub, "_ask", lambda reference: time.sleep(2))
    started = time.perf_counter()
    with pytest.raises(HubUnreachable, match="no answer"):
        fetch_hub.look_up(HubReference("org/name"))
    assert time.perf_counter() - started < 1.5


@pytest.mark.parametrize(("status", "kind"), [(500, HubUnreachable), (503, HubUnreachable), (401, ModelNotFound)])
def test_status_of_the_hub(status: int, kind: type[KamadoError], hub: FakeHub) -> None:
    hub.status = status
    with pytest.raises(kind):
        resolve.resolve("org/name")


def test_unknown_repository(hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="not on the hub") as caught:
        resolve.resolve("org/other")
    assert not isinstance(caught.value, HubUnreachable)


def test_a_whole_snapshot_of_the_users_own_cache_is_used(tmp_path: Path) -> None:
    repository = tmp_path / "hub-cache" / "models--org--name"
    snapshot = write_transformers(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert resolve.resolve("org/name", offline=True) == snapshot
    assert resolve.resolve("org/name@" + "a" * 40, offline=True) == snapshot
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(HubUnreachable):
        resolve.resolve("org/name", offline=True)


def _model(*names: str, size: int = 10) -> RemoteModel:
    files = tuple(RemoteFile(name=name, size=size, sha256=None, git_sha1="0" * 40) for name in names)
    return RemoteModel(repository="org/name", revision="c" * 40, files=files)


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
CHOICES = {
    "variants, pickles and code stay": (
        ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "tf_model.h5", "x.py", ".x/y.json"],
        ["model.safetensors"],
    ),
    "the plain name wins": (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
    "shards with their index": ([*SHARDS, "consolidated.safetensors"], SHARDS),
    "a lone file": (["other.safetensors"], ["other.safetensors"]),
    "an adapter": (
        ["pytorch_lora_weights.safetensors", "checkpoint-500.safetensors", "README.md", "pytorch_lora_weights.bin"],
        ["pytorch_lora_weights.safetensors"],
    ),
    "an adapter beside its settings": (
        ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"],
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
    "a lone GGUF": (["m.gguf", "config.json"], ["config.json", "m.gguf"]),
    "steps of a sentence model": (
        ["config.json", "model.safetensors", "modules.json", "2_Dense/model.safetensors", "2_Dense/config.json",
         "2_Dense/pytorch_model.bin", "onnx/model.safetensors"],
        ["config.json", "model.safetensors", "modules.json", "2_Dense/model.safetensors", "2_Dense/config.json"],
    ),
    "components of a pipeline": (
        ["model_index.json", "v1.safetensors", "unet/config.json", f"{UNET}.safetensors", f"{UNET}.fp16.safetensors",
         f"{VAE}.fp16.safetensors"],
        ["model_index.json", "unet/config.json", f"{UNET}.safetensors", f"{VAE}.fp16.safetensors"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("there", "taken"), CHOICES.values(), ids=CHOICES)
def test_chosen_files(there: list[str], taken: list[str]) -> None:
    assert sorted(file.name for file in choose_files(_model(*there))) == sorted(taken)


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (["pytorch_model.bin", "config.json"], UnsafeCheckpoint),
        (["a.gguf", "b.gguf"], UnsupportedCheckpoint),
        (["README.md"], UnsupportedCheckpoint),
        ([], UnsupportedCheckpoint),
        (["model.safetensors", "a/../x.json"], UnsafeCheckpoint),
        (["model.safetensors", "/etc/x.json"], UnsafeCheckpoint),
        (["model.safetensors", "a\\x.json"], UnsafeCheckpoint),
    ],
)
def test_refused_repositories(there: list[str], kind: type[KamadoError]) -> None:
    with pytest.raises(kind):
        choose_files(_model(*there))
