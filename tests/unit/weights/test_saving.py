"""safetensors files, written tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.weights.saving import SafetensorsWriter

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.float8_e4m3fn)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)), max_size=6),
    number=st.integers(0, 10**9),
)
def test_libraries_read_what_was_written(
    tmp_path: Path, shapes: list[tuple[list[int], torch.dtype]], number: int
) -> None:
    path = tmp_path / f"{number}.safetensors"
    path.unlink(missing_ok=True)
    tensors = {f"t{i}.ä": (torch.randn(shape) * 9).to(dtype) for i, (shape, dtype) in enumerate(shapes)}
    with SafetensorsWriter(path, max_tensors=len(tensors), longest_name=12, metadata={"format": "pt"}) as file:
        for name, tensor in tensors.items():
            file.add(name, tensor)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float())
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert {entry.name for entry in read_safetensors_header(path).tensors.values()} == set(tensors)


def test_a_view_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, max_tensors=1, longest_name=1, metadata={}) as file:
        file.add("a", torch.arange(6).view(2, 3).t())
    assert torch.equal(load_file(path)["a"], torch.tensor([[0, 3], [1, 4], [2, 5]]))


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with (
        pytest.raises(RuntimeError, match="stop"),
        SafetensorsWriter(path, max_tensors=1, longest_name=1, metadata={}) as file,
    ):
        file.add("a", torch.zeros(3))
        raise RuntimeError("stop")
    assert not path.exists()


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        SafetensorsWriter(path, max_tensors=1, longest_name=1, metadata={})
    assert path.read_text() == "mine"
