"""No name out of a file leads out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamado.checkpoint.paths import below, check_name
from kamado.errors import UnsafeCheckpoint

HOSTILE = [
    "", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "a//b", "a/", "./a", "~", "~/x", "~root/x",
    "C:", "C:x", "C:\\x", "c:/x", "\\\\host\\share", "a\\b", "..\\x", "a\0b", "a\nb", "a\x7fb", "a:b", "a/.",
    "a./b", "a /b", "CON", "nul.json", "a/aux.txt", "com1", "x" * 1025, "é" * 600, "/".join("a" * 17), "\ud800", "file:///x",
]  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE, None, 3, ["a"], b"a"], ids=repr)
def test_hostile_name_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match="index"):
        below(tmp_path, name, where="index")


@pytest.mark.parametrize("name", ["a.json", "unet/config.json", "a b.txt", "é.bin", "..a", "a..b", ".hidden", "con-1"])
def test_plain_name_is_below(name: str, tmp_path: Path) -> None:
    assert below(tmp_path, name) == tmp_path / name


def test_links_must_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("x")
    (root / "file").write_text("x")
    (root / "sub" / "inside").symlink_to("../file")
    (root / "out").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "dangling").symlink_to("../nowhere")
    (root / "chain").symlink_to("out")
    (root / "top").symlink_to(".")
    assert below(root, "sub/inside").read_text() == "x"
    for name in ("out", "folder/secret", "folder/new", "dangling", "chain", "top"):
        with pytest.raises(UnsafeCheckpoint, match="leaves"):
            below(root, name)
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    assert below(alias, "file").read_text() == "x"


def test_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root-evil").mkdir()
    (tmp_path / "root" / "x").symlink_to(tmp_path / "root-evil")
    with pytest.raises(UnsafeCheckpoint):
        below(tmp_path / "root", "x")


def test_snapshots_of_a_hub_cache_link_to_their_blobs_only(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("x")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "bad.json").symlink_to("../../refs/main")
    assert below(snapshot, "config.json").read_text() == "x"
    with pytest.raises(UnsafeCheckpoint):
        below(snapshot, "bad.json")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(), st.lists(st.sampled_from(["..", ".", "a", "", "/", "\\", "~", "C:"])).map("/".join)))
def test_no_text_leads_outside(name: str, tmp_path: Path) -> None:
    try:
        path = below(tmp_path, name)
    except UnsafeCheckpoint:
        return
    assert check_name(name) == name
    real = os.path.realpath(path)
    assert real.startswith(os.path.realpath(tmp_path) + os.sep)
