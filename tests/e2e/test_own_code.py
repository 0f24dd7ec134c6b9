"""A model with code of its own, as typed: refused, refused under another name, and run when it is allowed by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import own_code
from fake_hub import fake_hub, use_hub

from .conftest import Kamado

ASK = ("hi", "--raw", "--max-tokens", "4", "--temperature", "0", "--ignore-eos", "--device", "cpu")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, module_cache: Path) -> Path:
    root = tmp_path_factory.mktemp("own")
    return own_code.build("own", root / "model", root / "marker")


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands' copies of the code go."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "modules"


@pytest.fixture
def marker(built: Path) -> Iterator[Path]:
    """Written by the code when it runs."""
    path = built.parent / "marker"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_folder(kamado: Kamado, built: Path, marker: Path, modules: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a", "max_tokens": 2}\n')
    batch = ("batch", built, source, "-o", tmp_path / "out")
    for args in (("run", built, *ASK), batch, ("plan", built), ("run", built, *ASK, "--allow-code", "org/name")):
        done = kamado(*args)
        err = done.stderr.decode()
        assert (done.returncode, done.stdout) == (5, b""), err
        assert err.count("\n") == 2 and f"--allow-code {built}" in err and "all your rights" in err
    shown = kamado("show", built)
    assert shown.returncode == 0 and f"--allow-code {built}".encode() in shown.stdout
    assert json.loads(kamado("show", built, "--json").stdout)["wants_code"]
    assert not marker.exists() and not modules.exists()

    allowed = ("--allow-code", built)
    answer = kamado("run", built, *ASK, *allowed)
    assert (answer.returncode, answer.stderr) == (0, b"") and len(answer.stdout) > 1
    assert {"configuration_own", "modeling_own"} <= set(marker.read_text().split())
    assert list(modules.glob("transformers_modules/model/*/modeling_own.py"))
    plan = json.loads(kamado("plan", built, "--json", *allowed).stdout)
    assert plan["allow_code"] == str(built) and plan["kv_bytes_per_token"] == 384
    assert kamado(*batch, *allowed).returncode == 0


@pytest.mark.slow
def test_a_repository(
    kamado: Kamado, built: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    files: Mapping[str, bytes] = {path.name: path.read_bytes() for path in built.iterdir()}
    with fake_hub(files) as hub:
        use_hub(monkeypatch, hub.url)
        assert kamado("pull", "org/name").returncode == 0
        assert kamado("verify").returncode == 0
        listed = json.loads(kamado("show", "org/name", "--json").stdout)
        assert {file["name"] for file in listed["files"]} == set(files)
        assert kamado("plan", "org/name").returncode == 5
        assert kamado("run", "org/name", *ASK, "--allow-code", "org/other").returncode == 5
        assert not marker.exists()
    done = kamado("run", "org/name@main", *ASK, "--allow-code", "org/name", "--offline", "--json")
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["recipe"]["model"]
    assert model["allow_code"] == "org/name" and model["revision"] == hub.commit
    assert "modeling_own.py" in model["files"] and marker.exists()
