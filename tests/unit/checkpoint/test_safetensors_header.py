"""The safetensors header reader believes nothing that the file cannot back."""

from __future__ import annotations

import json
import resource
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint_files import raw_safetensors, safetensors_bytes
from kamado.checkpoint.safetensors_header import MAX_HEADER_BYTES, read_safetensors_header
from kamado.errors import KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _header(value: Any, data: int = 8) -> bytes:
    return raw_safetensors(json.dumps(value).encode(), bytes(data))


CRAFTED: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "no header": b"\0" * 8,
    "header of zero bytes": raw_safetensors(b"", b"{}", length=0),
    "header longer than the file": raw_safetensors(b'{"a":1}', length=10_000),
    "giant header length": raw_safetensors(b"{}", length=2**63),
    "largest header length": raw_safetensors(b"{}", length=2**64 - 1),
    "not an object": raw_safetensors(b"[1, 2]"),
    "no JSON": raw_safetensors(b"{nonsense"),
    "cut JSON": raw_safetensors(b'{"a":{"dtype":"F32"'),
    "trailing text": raw_safetensors(b"{} x"),
    "two objects": raw_safetensors(b"{}{}"),
    "comma behind the last size": raw_safetensors(b'{"a":{"dtype":"U8","shape":[1,],"data_offsets":[0,1]}}', b"\0"),
    "trailing comma": raw_safetensors(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},}', b"\0"),
    "leading comma": raw_safetensors(b'{,"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}', b"\0"),
    "not UTF-8": raw_safetensors(b'{"\xff":{}}'),
    "lone bracket bomb": raw_safetensors(b"{" + b"[" * 100_000),
    "object bomb": raw_safetensors(b'{"a":' * 50_000),
    "duplicate tensor": raw_safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "duplicate tensor by escape": raw_safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "duplicate field": raw_safetensors(b'{"a":{"dtype":"U8","dtype":"U8","data_offsets":[0,1]}}', b"\0"),
    "duplicate metadata": raw_safetensors(b'{"__metadata__":{"x":"1","x":"2"}}'),
    "metadata twice": raw_safetensors(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata of numbers": _header({"__metadata__": {"x": 1}}, 0),
    "metadata nested": _header({"__metadata__": {"x": {}}}, 0),
    "metadata a list": _header({"__metadata__": []}, 0),
    "missing dtype": _header({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "missing shape": _header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "missing offsets": _header({"a": {"dtype": "F32", "shape": [2]}}),
    "extra field": _header({"a": {**_entry(), "extra": 1}}),
    "entry is a list": _header({"a": [1, 2]}),
    "entry is null": _header({"a": None}),
    "unknown dtype": _header({"a": _entry("F31")}),
    "dtype is a number": _header({"a": _entry(3)}),
    "shape is a number": _header({"a": _entry(shape=2)}),
    "negative shape": _header({"a": _entry(shape=[-2])}),
    "float shape": _header({"a": _entry(shape=[2.0])}),
    "boolean shape": _header({"a": _entry(shape=[True, 2])}),
    "string shape": _header({"a": _entry(shape=["2"])}),
    "33 dimensions": _header({"a": _entry(shape=[1] * 32 + [2])}),
    "shape product overflow": _header({"a": _entry(shape=[2**62, 4])}),
    "shape product wraps to the right size": _header({"a": _entry("U8", [2**32, 2**32 + 1], [0, 8])}),
    "huge integer": raw_safetensors(b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"\0"),
    "size mismatch": _header({"a": _entry(shape=[3])}),
    "dtype size mismatch": _header({"a": _entry("F64")}),
    "half a byte": _header({"a": _entry("F4", [1], [0, 0])}, 0),
    "offsets reversed": _header({"a": _entry(offsets=[8, 0])}),
    "one offset": _header({"a": _entry(offsets=[0])}),
    "three offsets": _header({"a": _entry(offsets=[0, 4, 8])}),
    "offset outside of the file": _header({"a": _entry(offsets=[8, 16])}),
    "tensor longer than the file": _header({"a": _entry(shape=[4], offsets=[0, 16])}),
    "overlap": _header({"a": _entry("U8", [6], [0, 6]), "b": _entry("U8", [6], [2, 8])}),
    "same place twice": _header({"a": _entry(), "b": _entry()}),
    "gap at the start": _header({"a": _entry("U8", [4], [4, 8])}),
    "gap in the middle": _header({"a": _entry("U8", [2], [0, 2]), "b": _entry("U8", [2], [6, 8])}),
    "bytes behind the last tensor": _header({"a": _entry()}, 9),
    "data without tensors": _header({}, 8),
    "raw newline in a name": raw_safetensors(b'{"a\n":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
    "half a surrogate pair in a name": raw_safetensors(
        b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"
    ),
    "bad escape in a name": raw_safetensors(b'{"\\x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"\0"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.safetensors"):
        read_safetensors_header(path)


def test_there_are_enough_crafted_cases() -> None:
    assert len(CRAFTED) >= 30


@pytest.mark.parametrize("start", [b"\x80\x02}q\0", b"\x80\x04\x95aaaa", b"PK\x03\x04" + b"\0" * 20])
def test_pickle_under_this_name_is_unsafe(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start + bytes(100))
    with pytest.raises(UnsafeCheckpoint, match="convert-pickle"):
        read_safetensors_header(path)


def test_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(b"{}".ljust(640)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_safetensors_header(path).tensors == {}


def test_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = safetensors_bytes(
        {"x": ("F32", (2, 3), 24), 'é"q': ("BF16", (), 2), "empty": ("I64", (0, 4), 0), "f4": ("F4", (3, 2), 3)},
        {"format": "pt"},
    )
    path.write_bytes(content)
    header = read_safetensors_header(path)
    start = 8 + int.from_bytes(content[:8], "little")
    assert header.metadata == {"format": "pt"}
    assert {name: (e.dtype, e.shape, e.offset - start, e.nbytes) for name, e in header.tensors.items()} == {
        "x": ("F32", (2, 3), 0, 24),
        'é"q': ("BF16", (), 24, 2),
        "empty": ("I64", (0, 4), 26, 0),
        "f4": ("F4", (3, 2), 26, 3),
    }


def test_agrees_with_the_reference_library(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    tensors = {f"layer.{i}": torch.full((i + 1, 3), float(i), dtype=torch.bfloat16) for i in range(20)}
    save_file(tensors, path, metadata={"a": 'b\\"c'})
    header = read_safetensors_header(path)
    raw = path.read_bytes()
    with safe_open(path, "pt") as theirs:
        assert set(theirs.keys()) == set(header.tensors)
        assert theirs.metadata() == header.metadata
    for name, tensor in tensors.items():
        entry = header.tensors[name]
        data = bytearray(raw[entry.offset : entry.offset + entry.nbytes])
        assert torch.equal(torch.frombuffer(data, dtype=torch.bfloat16).reshape(entry.shape), tensor)


@pytest.mark.parametrize(
    "unit", [b"[],", b'"a":{},', b'"a":{"dtype":[],', b"[[", b'"":"",', b"1,", b'\\"', b" ", b'"aaaaaaaaaaaaaaaa'],
    ids=repr,
)  # fmt: skip
def test_large_hostile_header_is_refused_quickly_in_little_memory(unit: bytes, tmp_path: Path) -> None:
    header = b"{" + unit * (MAX_HEADER_BYTES // 4 // len(unit))
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_safetensors(header))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedCheckpoint):
            read_safetensors_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before <= 1.0
    assert peak <= (64 << 20) + 2 * len(header)


SOUND = safetensors_bytes({f"t{i}": ("F32", (2, i), 8 * i) for i in range(4)}, {"format": "pt"})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_only_typed_errors(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "digit", "swap"])):
            case "byte":
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 20))]
                content = content or bytearray(b"\0")
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=8))
            case "digit":
                digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
                content[data.draw(st.sampled_from(digits)) if digits else 0] = data.draw(st.sampled_from(b"0123456789"))
            case "swap":
                other = data.draw(st.integers(0, len(content) - 1))
                content[place], content[other] = content[other], content[place]
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(bytes(content))
    started = time.perf_counter()
    try:
        header = read_safetensors_header(path)
    except KamadoError:
        return
    finally:
        assert time.perf_counter() - started < 1
    for entry in header.tensors.values():
        assert 8 <= entry.offset <= entry.offset + entry.nbytes <= len(content)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text(min_size=1, max_size=12).filter(lambda n: n != "__metadata__"), unique=True, max_size=8))
def test_any_names_survive(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    for ascii_only in (True, False):
        header = json.dumps(
            {n: _entry("U8", [1], [i, i + 1]) for i, n in enumerate(names)}, ensure_ascii=ascii_only
        ).encode("utf-8", "surrogatepass")  # fmt: skip
        path.write_bytes(raw_safetensors(header, bytes(len(names))))
        assert list(read_safetensors_header(path).tensors) == names
