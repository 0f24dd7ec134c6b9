"""A checkpoint's own code: the name that allows it, what may be named as code, and that it comes along as data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_files import gguf_bytes, write_transformers
from fake_hub import FakeHub
from kamado.checkpoint import resolve
from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.fetch_hub import RemoteFile, RemoteModel, choose_files
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.own_code import (
    OwnClass,
    allowed_name,
    allowing_names,
    check_permission,
    code_is_whole,
    own_class,
    wishes,
)
from kamado.checkpoint.store import Store, verify
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint

AUTO_MAP = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}


def checkpoint(reference: str = "org/name", **config: Any) -> Checkpoint:
    """One that wants its code run, as `inspect` would return it."""
    values = {"auto_map": AUTO_MAP} | config
    return Checkpoint(
        reference=reference,
        root=Path("/nowhere"),
        layout="transformers",
        config=values,
        metadata={"wants_code": [f"config.json: auto_map = {values['auto_map']}"]},
        tensors={},
        files={},
        code={name: Path("/nowhere") / name for name in ("configuration_x.py", "modeling_x.py")},
    )


def write(root: Path, auto_map: Any = AUTO_MAP, *, code: bool = True) -> Path:
    write_transformers(root)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    for name in ("configuration_x.py", "modeling_x.py") if code else ():
        (root / name).write_text("raise AssertionError('this was run')\n")
    return root


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("org/name", "org/name"),
        ("org/name@v1.0", "org/name"),
        ("org/name@v1.0", "org/name@v1.0"),
        ("short:1b", "short:1b"),
        ("pypi:package==1.0", "pypi:package==1.0"),
    ],
)
def test_its_own_name_allows_it(reference: str, name: str) -> None:
    assert check_permission(checkpoint(reference), name) is True


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("org/name", None),
        ("org/name", "org/name@v1.0"),
        ("org/name", "org/Name"),
        ("org/name", "name"),
        ("org/name", "org"),
        ("org/name", "*"),
        ("org/name", "True"),
        ("org/name", "all"),
        ("org/name@v1.0", "org/name@v2.0"),
        ("org/name@v1.0", "org/name@"),
        ("pypi:package==1.0", "package"),
    ],
)
def test_another_name_does_not(reference: str, name: str | None) -> None:
    with pytest.raises(UnsafeCheckpoint) as caught:
        check_permission(checkpoint(reference), name)
    message = str(caught.value)
    assert f"--allow-code {reference} " in message and f"allow_code={reference!r}" in message
    assert "all your rights" in message and message.count("\n") == 1
    assert (repr(name) in message) == (name is not None)


@given(st.text(min_size=1, max_size=30))
def test_no_other_text_is_its_name(name: str) -> None:
    known = checkpoint("org/name@main")
    if name.rstrip("/") in ("org/name", "org/name@main"):
        assert check_permission(known, name)
        return
    with pytest.raises(UnsafeCheckpoint):
        check_permission(known, name)


def test_a_folder_is_allowed_as_typed_or_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "models" / "mine here")
    (tmp_path / "link").symlink_to(tmp_path / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "link")
    known = inspect("./mine here", offline=True)
    full = os.path.realpath(tmp_path / "models" / "mine here")
    assert set(allowing_names(known)) == {"./mine here", full}
    for name in ("./mine here", "./mine here/", full, f"{full}/"):
        assert check_permission(known, name)
    for name in ("mine here", "here", str(tmp_path / "models"), "/", "."):
        with pytest.raises(UnsafeCheckpoint, match=r"--allow-code '\./mine here'"):
            check_permission(known, name)


def test_a_permission_that_is_not_needed_does_no_harm(tmp_path: Path) -> None:
    known = inspect(write_transformers(tmp_path), reference="org/name")
    for name in (None, "org/name", "other/name"):
        assert check_permission(known, name) is False


def test_what_an_author_wrote_into_a_gguf_file_is_no_wish(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf_bytes((("general.architecture", "llama"), ("wants_code", 7))))
    known = inspect(tmp_path / "a.gguf")
    assert wishes(known) == [] and check_permission(known, None) is False


@pytest.mark.parametrize("value", [True, False, 1, "", b"org/name", ["org/name"]])
def test_only_a_name_can_allow(value: object) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        allowed_name(value)


def test_names_as_they_may_be_given() -> None:
    assert (allowed_name(None), allowed_name("org/name"), allowed_name(Path("/a/b"))) == (None, "org/name", "/a/b")


def test_where_its_classes_lie() -> None:
    known = checkpoint()
    assert own_class(known, "AutoConfig") == OwnClass("configuration_x.py", "XConfig")
    assert str(own_class(known, "AutoModelForCausalLM")) == "modeling_x.XForCausalLM"
    assert own_class(known, "AutoModelForSeq2SeqLM") is None
    for none in ({}, None, [], {"AutoConfig": None}, "configuration_x.XConfig"):
        assert own_class(checkpoint(auto_map=none), "AutoConfig") is None


@pytest.mark.parametrize(
    "value",
    [
        "other/repo--configuration_x.XConfig",
        "--configuration_x.XConfig",
        "../configuration_x.XConfig",
        "/etc/configuration_x.XConfig",
        "folder/configuration_x.XConfig",
        "os.path.join",
        "configuration_x",
        ".XConfig",
        "configuration_x.XConfig\n",
        "configuration_x.X()",
        ["configuration_x.XConfig"],
        {"a": 1},
        7,
    ],
)
def test_nothing_but_a_class_beside_the_configuration_is_followed(value: Any) -> None:
    with pytest.raises(UnsafeCheckpoint, match="AutoConfig"):
        own_class(checkpoint(auto_map={"AutoConfig": value}), "AutoConfig")


@given(st.text(max_size=40) | st.recursive(st.none() | st.integers() | st.text(), lambda kids: st.lists(kids)))
def test_any_value_is_a_file_that_is_there_or_an_error(value: Any) -> None:
    known = checkpoint(auto_map={"AutoConfig": value})
    try:
        found = own_class(known, "AutoConfig")
    except KamadoError:
        return
    assert found is None or (found.file in known.code and found.name.isidentifier())
    code_is_whole(known)


def test_code_of_another_repository_says_so() -> None:
    known = checkpoint(auto_map={"AutoConfig": "other/repo--configuration_x.XConfig"})
    with pytest.raises(UnsafeCheckpoint, match=r"another repository.*other/repo"):
        own_class(known, "AutoConfig")


def test_code_that_is_not_there_is_missed(tmp_path: Path) -> None:
    known = inspect(write(tmp_path, code=False), reference="org/name")
    with pytest.raises(UnsupportedCheckpoint, match=r"modeling_x\.py is not there"):
        own_class(known, "AutoModelForCausalLM")
    assert not code_is_whole(known)


def test_code_is_listed_and_hashed_where_it_is_wanted(tmp_path: Path, home: Path) -> None:
    known = inspect(write(tmp_path / "a"))
    assert sorted(known.code) == ["configuration_x.py", "modeling_x.py"] and code_is_whole(known)
    assert {"modeling_x.py", "config.json"} <= checkpoint_digests(known, home=home).keys()
    (write_transformers(tmp_path / "b") / "train.py").write_text("")
    assert inspect(tmp_path / "b").code == {}


def test_code_behind_a_link_that_leaves_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("")
    (write(tmp_path / "a") / "helper.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(UnsafeCheckpoint, match="leaves"):
        inspect(tmp_path / "a")


def _remote(*names: str) -> RemoteModel:
    files = [RemoteFile(name=name, size=10, sha256=None, git_sha1=None) for name in names]
    return RemoteModel(repository="org/name", revision="c" * 40, files=tuple(files))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("config.json", "model.safetensors", "modeling_x.py", "helper.py"), {"modeling_x.py", "helper.py"}),
        (("config.json", "model.safetensors", "training/run.py", ".hidden.py"), set()),
        (("model.safetensors", "modeling_x.py"), set()),
        (("config.json", "model.gguf", "modeling_x.py"), set()),
        (("model_index.json", "config.json", "unet/model.safetensors", "pipeline.py"), set()),
    ],
)
def test_code_comes_along_beside_a_configuration(names: tuple[str, ...], code: set[str]) -> None:
    chosen = {file.name for file in choose_files(_remote(*names))}
    assert {name for name in chosen if name.endswith(".py")} == code


def test_enormous_code_stays_away() -> None:
    model = _remote("config.json", "model.safetensors")
    large = RemoteFile(name="modeling_x.py", size=1 << 30, sha256=None, git_sha1=None)
    chosen = choose_files(RemoteModel(repository="org/name", revision="c" * 40, files=(*model.files, large)))
    assert "modeling_x.py" not in {file.name for file in chosen}


def test_pulled_code_is_verified_and_only_data(hub: FakeHub, store: Store) -> None:
    hub.files["config.json"] = json.dumps({"model_type": "x", "auto_map": AUTO_MAP}).encode()
    hub.files["modeling_x.py"] = hub.files["configuration_x.py"] = b"raise AssertionError('this was run')\n"
    path = resolve.resolve("org/name")
    known = inspect("org/name", offline=True)
    assert sorted(known.code) == ["configuration_x.py", "modeling_x.py"]
    assert check_permission(known, "org/name")
    (entry,) = store.entries()
    assert verify(entry) == []
    (path / "modeling_x.py").chmod(0o644)
    (path / "modeling_x.py").write_bytes(b"import os\n")
    assert [fault.file.rpartition("/")[2] for fault in verify(entry)] == ["modeling_x.py"]


def test_a_snapshot_of_other_programs_without_the_code_is_not_taken(hub: FakeHub, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub-cache" / "models--org--name" / "snapshots" / hub.commit
    write(snapshot, code=False)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(hub.commit)
    assert resolve.resolve("org/name") != snapshot
    other = tmp_path / "hub-cache" / "models--org--name" / "snapshots" / ("d" * 40)
    write(other)
    assert resolve.resolve(f"org/name@{'d' * 40}", offline=True) == other


@pytest.mark.parametrize("look", [inspect, lambda path: inspect(str(path), offline=True)])
def test_looking_runs_nothing(look: Callable[[Path], Checkpoint], tmp_path: Path) -> None:
    assert wishes(look(write(tmp_path)))
