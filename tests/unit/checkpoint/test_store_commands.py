"""`kamado pull`, `list`, `show`, `rm`, `verify`, `convert-pickle` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoint_files import write_transformers
from fake_hub import FakeHub, use_hub
from kamado.checkpoint import catalog
from kamado.checkpoint.catalog import parse_catalog
from kamado.checkpoint.store import Store
from kamado.cli.main import main
from kamado.units import format_bytes
from kamado.weights.prepared.folder import PreparedFolder

TINY = '[models."tiny:1"]\ndescription = "A tiny one"\nsources = [{reference = "org/name"}]'


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    models = parse_catalog(TINY, where="test")
    monkeypatch.setattr(catalog, "models", lambda: models)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    status, out, err = run(capsys, *args, "--json")
    assert status == 0, err
    return json.loads(out)


def test_life_of_a_model(hub: FakeHub, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "list") == {
        "home": str(store.home), "models": [], "total_bytes": 0, "unfinished_bytes": 0,
        "prepared_bytes": 0, "available": ["tiny:1"],
    }  # fmt: skip
    pulled = run_json(capsys, "pull", "tiny:1")
    (entry,) = store.entries()
    assert pulled == {
        "model": "tiny:1", "path": str(entry.path), "reference": "org/name", "id": entry.id,
        "revision": hub.commit, "bytes": entry.total_bytes,
    }  # fmt: skip
    status, out, err = run(capsys, "pull", "org/name")
    assert (status, out, err) == (0, f"{entry.path}\n", "")
    (listed,) = run_json(capsys, "list")["models"]
    assert (listed["reference"], listed["names"], listed["bytes"]) == ("org/name", ["tiny:1"], entry.total_bytes)
    assert "tiny:1, org/name" in run(capsys, "list")[1]
    assert run_json(capsys, "verify")["ok"] is True
    assert run_json(capsys, "rm", "tiny:1")["removed"][0]["id"] == entry.id
    assert store.entries() == []
    status, out, err = run(capsys, "rm", "tiny:1")
    assert (status, out) == (4, "")
    assert "not in the store" in err


def test_rm_of_unfinished_pulls(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("busy", "left"):
        (store.partial(name) / "x.partial").write_bytes(bytes(2048))
    assert "4.00 KiB  of unfinished pulls" in run(capsys, "list")[1]
    with store.locked("busy"):
        assert run_json(capsys, "rm", "--unfinished") == {
            "removed": [], "unfinished_bytes": 2048, "prepared_bytes": 0,
        }  # fmt: skip
    assert store.unfinished() == {"busy": 2048}
    assert run(capsys, "rm")[0] == 2


def test_rm_of_prepared_weights(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    folder = PreparedFolder(store.home)
    with folder.writing(folder.path({}), 2048) as file:
        assert file is not None
        file.write(bytes(2048))
    assert "2.00 KiB  of prepared weights" in run(capsys, "list")[1]
    assert run_json(capsys, "list")["prepared_bytes"] == 2048
    assert run(capsys, "rm", "--prepared")[1] == "removed 2.00 KiB of prepared weights\n"
    assert run_json(capsys, "rm", "--prepared")["prepared_bytes"] == 0


def test_rm_by_id_and_never_what_is_not_in_the_store(
    hub: FakeHub, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "pull", "org/name")
    own = write_transformers(tmp_path / "own")
    assert run(capsys, "rm", str(own))[0] == 4
    assert (own / "config.json").exists()
    assert run(capsys, "rm", store.entries()[0].id)[0] == 0
    assert store.entries() == []


def test_rm_of_one_of_several_names_of_a_package_takes_no_other_with_it(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = '[models."x:{0}"]\nsources = [{{reference = "org/name", file = "{1}"}}]\n'
    files = [("a", "config.json"), ("alias", "config.json"), ("b", "model.safetensors")]
    listed = parse_catalog("".join(file.format(*each) for each in files), where="test")
    monkeypatch.setattr(catalog, "models", lambda: listed)
    run(capsys, "pull", "x:a")
    (entry,) = store.entries()
    for names, others in ((["x:a"], "x:b"), (["x:b"], "x:a and x:alias"), (["x:a", "x:alias"], "x:b")):
        status, out, err = run(capsys, "rm", *names)
        assert (status, out) == (2, "") and f"came in one package with {others}, which would go with it" in err
        assert "name these too, or the package: org/name" in err
    assert store.entries() == [entry]
    assert run(capsys, "rm", "x:a", "x:b")[:2] == (0, f"removed org/name ({format_bytes(entry.total_bytes)})\n")
    run(capsys, "pull", "x:a")
    assert run(capsys, "rm", "org/name")[0] == 0 and store.entries() == []


def test_verify_reports_damage_and_fails(hub: FakeHub, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "pull", "org/name")
    (store.entries()[0].path / "config.json").write_bytes(b"x")
    status, out, err = run(capsys, "verify", "--json")
    assert status == 4
    (row,) = json.loads(out)["models"]
    assert row["faults"][0]["file"] == "config.json"
    assert "damaged: org/name" in err


def test_show_of_something_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_transformers(tmp_path / "own")
    facts = run_json(capsys, "show", str(root))
    assert (facts["layout"], facts["parameters"], facts["weight_bytes"]) == ("transformers", 10, 32)
    assert {file["name"] for file in facts["files"]} == {path.name for path in root.iterdir()}
    status, out, _ = run(capsys, "show", str(root))
    assert status == 0
    assert "model.safetensors" in out


def test_show_downloads_no_weights(hub: FakeHub, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_json(capsys, "show", "org/name")
    assert facts["path"] is None
    assert facts["revision"] == hub.commit
    assert {file["name"] for file in facts["files"]} == {"config.json", "tokenizer.json", "model.safetensors"}
    facts = run_json(capsys, "show", "tiny:1")
    assert (facts["description"], facts["sources"]) == ("A tiny one", ["org/name"])
    assert hub.requests == []
    assert not store.home.exists()


def test_errors_are_one_line_with_the_right_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x02")
    for args, status in [
        (("pull", "org/name"), 4), (("pull", "no such thing"), 2), (("pull", "other:1"), 4), (("show", "./missing"), 4),
        (("show", str(tmp_path / "m.ckpt")), 5), (("verify", "org/name"), 4), (("show", "pypi:none"), 4),
    ]:  # fmt: skip
        found, out, err = run(capsys, *args)
        assert (found, out) == (status, ""), args
        assert 1 <= len(err.strip().splitlines()) <= 2, err


def test_convert_pickle_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt")
    status, out, err = run(capsys, "convert-pickle", str(tmp_path / "m.pt"), str(tmp_path / "out"), "--json")
    assert status == 0, err
    assert json.loads(out)["files"][0]["tensors"] == 1
    assert "warning" in err
    assert (tmp_path / "out" / "m.safetensors").is_file()
