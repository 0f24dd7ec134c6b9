"""The reader of ncnn's networks believes nothing that the files cannot back."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.ncnn_header import MAX_TEXT_BYTES, read_ncnn_header
from kamado.errors import UnsafeCheckpoint, UnsupportedCheckpoint

HALF = struct.pack("<I", 0x01306B47)
HEAD = "7767517\n3 3\nInput data 0 1 data\n"
CONVOLUTION = "Convolution conv 1 1 data a 0=3 1=1 5=1 6=3 -23310=1,2.0e-01\n"
GRAPH = f"{HEAD}{CONVOLUTION}PReLU slopes 1 1 a out 0=3\n"
DATA = HALF + bytes(6) + b"\0\0" + bytes(12) + bytes(12)


def files(folder: Path, graph: str | bytes = GRAPH, data: bytes = DATA) -> Path:
    (folder / "net.bin").write_bytes(data)
    path = folder / "net.param"
    path.write_bytes(graph if isinstance(graph, bytes) else graph.encode())
    return path


def test_tensors_lie_where_the_layers_say(tmp_path: Path) -> None:
    path = files(tmp_path)
    header = read_ncnn_header(path)
    places = {name: (each.dtype, each.shape, each.offset, each.nbytes) for name, each in header.tensors.items()}
    assert places == {
        "conv.weight": ("F16", (3, 1, 1, 1), 4, 6),
        "conv.bias": ("F32", (3,), 12, 12),
        "slopes.weight": ("F32", (3,), 24, 12),
    }
    assert header.layers[1].settings == {0: 3, 1: 1, 5: 1, 6: 3, 10: (0.2,)}
    found = inspect(path)
    assert (found.layout, found.files, found.metadata["layers"]) == ("ncnn", {"net.param": path}, header.layers)
    assert inspect(tmp_path).root == inspect(path.with_suffix(".bin")).root == path
    plain = files(tmp_path, data=bytes(4) + bytes(12) + bytes(24))
    assert read_ncnn_header(plain).tensors["conv.weight"].dtype == "F32"


def test_a_folder_with_several_asks_for_one(tmp_path: Path) -> None:
    files(tmp_path).with_name("other.param").write_text(GRAPH)
    with pytest.raises(UnsupportedCheckpoint, match=r"several networks of ncnn.*net\.param, other\.param"):
        inspect(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = files(tmp_path / "in")
    path.with_suffix(".bin").rename(tmp_path / "net.bin")
    path.with_suffix(".bin").symlink_to(tmp_path / "net.bin")
    with pytest.raises(UnsafeCheckpoint):
        inspect(tmp_path / "in")


def _graph(before: str, after: str) -> str:
    assert before in GRAPH
    return GRAPH.replace(before, after)


BAD: dict[str, tuple[str | bytes, bytes]] = {
    "empty": ("", DATA),
    "another number at the start": (_graph("7767517", "7767518"), DATA),
    "binary": (b"7767517\n\xff\xfe", DATA),
    "too long": (f"{GRAPH}{' ' * MAX_TEXT_BYTES}", DATA),
    "no counts": ("7767517\n", DATA),
    "too few layers": (_graph("3 3", "4 3"), DATA),
    "other number of blobs": (_graph("3 3", "3 4"), DATA),
    "more inputs than words": (_graph("conv 1 1", "conv 999999999 1"), DATA),
    "negative number of inputs": (_graph("conv 1 1", "conv -1 1"), DATA),
    "an input that nobody makes": (_graph("data a", "nothing a"), DATA),
    "an output of the same name": (_graph("data a", "data data"), DATA),
    "two layers of one name": (_graph("slopes", "conv"), DATA),
    "a setting that is none": (_graph("0=3 1=1", "0=3 1"), DATA),
    "a setting that is no number": (_graph("6=3", "6=nan"), DATA),
    "an array that is longer": (_graph("-23310=1", "-23310=5"), DATA),
    "half an output": (_graph("0=3 1=1", "0=3.5e+00 1=1"), DATA),
    "no outputs": (_graph("0=3 1=1", "0=0 1=1"), DATA),
    "more weights than bytes": (_graph("6=3", "6=2147483646"), DATA),
    "weights that do not fit": (_graph("6=3", "6=4"), DATA),
    "no size of the kernel": (_graph("1=1 5", "5"), DATA),
    "a kind that is not known": (_graph("PReLU", "InnerProduct"), DATA),
    "no data": (GRAPH, b""),
    "cut data": (GRAPH, DATA[:-1]),
    "data left over": (GRAPH, DATA + b"\0"),
    "quantized weights": (GRAPH, struct.pack("<I", 0x000D4B38) + DATA[4:]),
    "a pickle as data": (GRAPH, b"\x80\x02}q\x00." + bytes(30)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpoint, match="not a sound ncnn network"):
        read_ncnn_header(files(tmp_path, *BAD[name]))


def test_a_graph_alone_is_refused(tmp_path: Path) -> None:
    path = files(tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UnsupportedCheckpoint, match=r"net\.bin cannot be read: No such file"):
        inspect(path)


@pytest.mark.parametrize(
    "line", ["x" * 500_000, "Input " * 80_000, "Split s 0 150000 " + "b " * 300_000, "0=1," * 99_999]
)
def test_the_largest_files_take_neither_long_nor_much(line: str, tmp_path: Path) -> None:
    path = files(tmp_path, f"7767517\n1 1\n{line}\n"[:MAX_TEXT_BYTES])
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(UnsupportedCheckpoint):
        read_ncnn_header(path)
    assert time.perf_counter() - began < 10 and tracemalloc.get_traced_memory()[1] < 256 << 20
    tracemalloc.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    graph, weights = bytearray(GRAPH.encode()), bytearray(DATA)
    for part in (graph, weights):
        for _ in range(data.draw(st.integers(0, 3))):
            place = data.draw(st.integers(0, len(part) - 1))
            part[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        header = read_ncnn_header(files(tmp_path, bytes(graph), bytes(weights)))
    except UnsupportedCheckpoint:
        return
    for entry in header.tensors.values():
        assert entry.nbytes > 0 and entry.offset + entry.nbytes <= len(weights)
