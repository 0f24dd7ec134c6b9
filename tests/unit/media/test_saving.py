"""Any output as a file, by its suffix, and the recipe back by its content."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from kamado.errors import InvalidRequest
from kamado.media import meshes, notes, pictures, sounds, transcripts, vectors, videos
from kamado.media.reading import kind_of_file
from kamado.media.recipes import read_recipe
from kamado.media.saving import check_libraries, default_suffix, save_output, suffixes_of, suffixes_of_kind
from kamado.outputs import KINDS, Embedding, Picture, Segment, Transcript
from media_outputs import clip, melody, tetrahedron, tone
from media_recipes import RECIPE

OUTPUTS: list[Any] = [
    Picture(image=Image.new("RGB", (8, 8), "red")),
    tone(),
    clip(3),
    tetrahedron(),
    melody(),
    Transcript(text="Hello", segments=(Segment(start_s=0, end_s=1, text="Hello"),)),
    Embedding(vectors=np.ones((1, 3), np.float32)),
]
EACH = [(output, suffix) for output in OUTPUTS for suffix in suffixes_of(type(output))]


@pytest.mark.parametrize(
    ("output", "suffix"), EACH, ids=[f"{type(output).__name__}{suffix}" for output, suffix in EACH]
)
def test_each_suffix(tmp_path: Path, output: Any, suffix: str) -> None:
    path = tmp_path / f"a b:%d{suffix.upper()}"
    save_output(output, path, RECIPE)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    if suffix in (".txt", ".srt", ".npy"):
        return
    shutil.copy(path, tmp_path / "misnamed.bin")
    assert read_recipe(tmp_path / "misnamed.bin") == RECIPE
    save_output(output, path, {"another": 1})
    assert read_recipe(path) == {"another": 1}
    save_output(output, path, None)
    with pytest.raises(InvalidRequest, match="carries no recipe"):
        read_recipe(path)


def test_the_suffixes_are_those_of_the_formats() -> None:
    assert set(suffixes_of_kind("image")) == set(pictures.WRITE_FORMATS)
    for kind, module in {
        "audio": sounds,
        "video": videos,
        "mesh": meshes,
        "score": notes,
        "transcript": transcripts,
        "embedding": vectors,
    }.items():
        assert suffixes_of_kind(kind) == tuple(module.WRITE_FORMATS)
    assert all(suffixes_of(output) for output in KINDS)


@pytest.mark.parametrize("output", OUTPUTS, ids=[type(output).__name__ for output in OUTPUTS])
def test_what_cannot_be_written(tmp_path: Path, output: Any) -> None:
    suffix = default_suffix(output)
    with pytest.raises(InvalidRequest, match=rf"files? .*{suffix}"):
        save_output(output, tmp_path / "x.exe", RECIPE)
    (tmp_path / f"folder{suffix}").mkdir()
    if not isinstance(output, Embedding):
        with pytest.raises(InvalidRequest, match="is a folder"):
            save_output(output, tmp_path / f"folder{suffix}", RECIPE)
        with pytest.raises(InvalidRequest, match="does not exist"):
            save_output(output, tmp_path / "none" / f"x{suffix}", RECIPE)
    assert [each.name for each in tmp_path.iterdir()] == [f"folder{suffix}"]


def test_a_missing_library_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    check_libraries("video", ".gif")
    with pytest.raises(InvalidRequest, match=r"pip install 'kamado\[video\]'"):
        check_libraries("video", ".mp4")


@pytest.mark.parametrize("data", [b"", b"Hello\n", b"\0" * 40, b"{", b"RIFF\0\0\0\0WAVE", b"MThd", b"glTF"])
def test_files_without_a_recipe(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"x (carries no recipe|is no)") as error:
        read_recipe(tmp_path / "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(), (0, 4)])
def test_damaged_files_of_vectors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file({"embeddings": np.zeros(shape, np.float32)}, tmp_path / "x.safetensors")
    if shape:
        assert vectors.read_embedding(tmp_path / "x.safetensors").vectors.shape == shape
        return
    with pytest.raises(InvalidRequest, match=r"x.safetensors is damaged, or no file of vectors"):
        vectors.read_embedding(tmp_path / "x.safetensors")


def test_a_huge_animation_is_told_from_a_picture(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(b"GIF89a" + (20_000).to_bytes(2, "little") * 2 + b"\x80\0\0" + b"\0" * 32)
    assert kind_of_file(tmp_path / "x.gif") in ("image", "video")


def test_vectors_are_read_by_what_others_read_them_with(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    output = Embedding(vectors=np.arange(6, dtype=np.float32).reshape(2, 3))
    for suffix in vectors.WRITE_FORMATS:
        save_output(output, tmp_path / f"x{suffix}", RECIPE)
    assert np.array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), output.vectors)
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["embeddings"], output.vectors)
    assert json.loads((tmp_path / "x.json").read_text())["embeddings"] == output.vectors.tolist()
