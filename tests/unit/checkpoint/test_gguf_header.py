"""The GGUF header reader believes nothing that the file cannot back."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint_files import GGUF_ARRAY, GGUF_STRING, GGUF_U32, gguf_bytes, gguf_string, gguf_value
from kamado.checkpoint import gguf_header
from kamado.checkpoint.gguf_header import GgufArray, read_gguf_header
from kamado.checkpoint.gguf_types import GGML_TYPES
from kamado.errors import KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint


def _array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IIQ", GGUF_ARRAY, kind, count) + items


CRAFTED: dict[str, bytes] = {
    "empty file": b"",
    "four bytes": b"GGUF",
    "23 bytes": gguf_bytes()[:23],
    "wrong magic": gguf_bytes(magic=b"GGML"),
    "reversed magic": gguf_bytes(magic=b"FUGG"),
    "version 0": gguf_bytes(version=0),
    "version 1": gguf_bytes(version=1),
    "version 4": gguf_bytes(version=4),
    "big endian": gguf_bytes(version=3 << 24),
    "largest tensor count": gguf_bytes(num_tensors=2**64 - 1),
    "negative tensor count": gguf_bytes(num_tensors=2**63),
    "more tensors than bytes": gguf_bytes(num_tensors=1000),
    "one tensor too many": gguf_bytes(num_tensors=3),
    "one tensor too few": gguf_bytes(tensors=[("a", (32, 2), 8, 0)] * 3, num_tensors=2),
    "largest key-value count": gguf_bytes(num_key_values=2**64 - 1),
    "more key-values than bytes": gguf_bytes(num_key_values=1000),
    "one key-value too many": gguf_bytes(num_key_values=2),
    "one key-value too few": gguf_bytes([("general.architecture", "llama"), ("x", 1)], num_key_values=1),
    "duplicate key": gguf_bytes([("x", 1), ("x", 2)]),
    "key longer than the file": gguf_bytes([])[:24] + struct.pack("<Q", 2**40) + bytes(200),
    "largest key": gguf_bytes([], num_key_values=1)[:24] + struct.pack("<Q", 2**64 - 1) + bytes(200),
    "key of 2000 bytes": gguf_bytes([("k" * 2000, 1)]),
    "key is not UTF-8": gguf_bytes([], num_key_values=1)[:24] + gguf_string(b"\xff\xfe") + bytes(200),
    "unknown value type": gguf_bytes([("x", struct.pack("<II", 13, 0))]),
    "largest value type": gguf_bytes([("x", struct.pack("<II", 2**32 - 1, 0))]),
    "string longer than the file": gguf_bytes([("x", struct.pack("<IQ", GGUF_STRING, 2**40))]),
    "string with length that wraps": gguf_bytes([("x", struct.pack("<IQ", GGUF_STRING, 2**64 - 8))]),
    "array of arrays": gguf_bytes([("x", _array(GGUF_ARRAY, 1, _array(GGUF_U32, 0)))]),
    "array of an unknown type": gguf_bytes([("x", _array(77, 1, bytes(8)))]),
    "array longer than the file": gguf_bytes([("x", _array(GGUF_U32, 10_000))]),
    "array of 2^62 numbers": gguf_bytes([("x", _array(GGUF_U32, 2**62))]),
    "array whose bytes wrap": gguf_bytes([("x", _array(10, 2**61))]),
    "array of 2^63 strings": gguf_bytes([("x", _array(GGUF_STRING, 2**63))]),
    "long string array, last string too long": gguf_bytes(
        [("x", _array(GGUF_STRING, 2000, gguf_string("a") * 1999 + struct.pack("<Q", 2**63)))], [], data_bytes=8192
    ),
    "long string array, jump out of the file": gguf_bytes(
        [("x", _array(GGUF_STRING, 2000, struct.pack("<Q", 2**64 - 1) + bytes(16_000)))], []
    ),
    "alignment 0": gguf_bytes([("general.alignment", 0)]),
    "alignment 3": gguf_bytes([("general.alignment", 3)]),
    "alignment 2^31": gguf_bytes([("general.alignment", 2**31)]),
    "alignment is a string": gguf_bytes([("general.alignment", "32")]),
    "alignment is true": gguf_bytes([("general.alignment", True)]),
    "duplicate tensor": gguf_bytes(tensors=[("a", (32,), 0, 0), ("a", (32,), 0, 128)], data_bytes=256),
    "tensor name of 2000 bytes": gguf_bytes(tensors=[("t" * 2000, (32,), 0, 0)]),
    "tensor without a name": gguf_bytes(tensors=[("", (32,), 0, 0)]),
    "key without a name": gguf_bytes([("", 1)]),
    "five dimensions": gguf_bytes(tensors=[("a", (1, 1, 1, 1, 1), 0, 0)]),
    "2^32-1 dimensions": gguf_bytes([], [], num_tensors=1)[:24]
    + gguf_string("a")
    + struct.pack("<I", 2**32 - 1)
    + bytes(200),
    "dimension 0": gguf_bytes(tensors=[("a", (32, 0), 0, 0)]),
    "product overflow": gguf_bytes(tensors=[("a", (2**32, 2**32), 0, 0)]),
    "product wraps to something small": gguf_bytes(tensors=[("a", (2**63, 2), 0, 0)]),
    "four large dimensions": gguf_bytes(tensors=[("a", (2**62,) * 4, 0, 0)]),
    "row is no whole block": gguf_bytes(tensors=[("a", (33,), 8, 0)]),
    "K block needs 256": gguf_bytes(tensors=[("a", (128,), 12, 0)]),
    "withdrawn type 4": gguf_bytes(tensors=[("a", (32,), 4, 0)]),
    "unknown type 99": gguf_bytes(tensors=[("a", (32,), 99, 0)]),
    "negative type": gguf_bytes(tensors=[("a", (32,), -1, 0)]),
    "offset not aligned": gguf_bytes(tensors=[("a", (4,), 0, 16)]),
    "offset not aligned to 64": gguf_bytes([("general.alignment", 64)], [("a", (4,), 0, 32)], alignment=64),
    "offset outside of the file": gguf_bytes(tensors=[("a", (4,), 0, 1024)]),
    "offset that wraps": gguf_bytes(tensors=[("a", (4,), 0, 2**64 - 32)]),
    "tensor larger than the file": gguf_bytes(tensors=[("a", (4096,), 0, 0)]),
    "tensor ends one byte behind the file": gguf_bytes(tensors=[("a", (32,), 0, 0)], data_bytes=127),
    "overlap": gguf_bytes(tensors=[("a", (32,), 0, 0), ("b", (8,), 0, 64)]),
    "same place twice": gguf_bytes(tensors=[("a", (8,), 0, 0), ("b", (8,), 0, 0)]),
    "no data": gguf_bytes(data_bytes=0),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.gguf"):
        read_gguf_header(path)


def test_there_are_enough_crafted_cases() -> None:
    assert len(CRAFTED) >= 40


def test_every_cut_is_refused(tmp_path: Path) -> None:
    content = gguf_bytes([("general.architecture", "llama"), ("x", [1, 2]), ("y", ["a", "bc"])])
    path = tmp_path / "cut.gguf"
    for size in range(len(content) - 16):  # the last tensor ends 16 bytes before the file does
        path.write_bytes(content[:size])
        with pytest.raises(UnsupportedCheckpoint):
            read_gguf_header(path)


def test_pickle_under_this_name_is_unsafe(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\x80\x02}q\0" + bytes(100))
    with pytest.raises(UnsafeCheckpoint, match="convert-pickle"):
        read_gguf_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_sound_file(version: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    key_values = [("general.architecture", "llama"), ("n", 7), ("yes", True), ("few", [3, 4]), ("words", ["a", "é"])]
    content = gguf_bytes(key_values, version=version)
    path.write_bytes(content)
    header = read_gguf_header(path)
    assert header.version == version
    assert header.alignment == 32
    assert header.metadata == dict(key_values)
    start = len(content) - 128
    assert [(e.name, e.dtype, e.shape, e.offset - start, e.nbytes) for e in header.tensors.values()] == [
        ("a", "Q8_0", (2, 32), 0, 68),
        ("b", "F32", (4,), 96, 16),
    ]


def test_other_alignment(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content = gguf_bytes(
        [("general.alignment", 64)], [("a", (4,), 0, 0), ("b", (4,), 0, 64)], alignment=64, data_bytes=80
    )  # fmt: skip
    path.write_bytes(content)
    header = read_gguf_header(path)
    assert header.alignment == 64
    assert [entry.offset for entry in header.tensors.values()] == [len(content) - 80, len(content) - 16]


def test_long_arrays_are_lazy(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    words, numbers = [f"w{i}" for i in range(1025)], list(range(1025))
    path.write_bytes(gguf_bytes([("words", words), ("numbers", numbers), ("eager", numbers[:1024])]))
    header = read_gguf_header(path)
    assert header.metadata["eager"] == numbers[:1024]
    for key, kind, items in (("words", "string", words), ("numbers", "u32", numbers)):
        array = header.metadata[key]
        assert isinstance(array, GgufArray)
        assert (array.type, len(array), array.load()) == (kind, 1025, items)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UnsupportedCheckpoint, match="shorter"):
        header.metadata["words"].load()


def test_invalid_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([("x", struct.pack("<I", GGUF_STRING) + gguf_string(b"a\xffb"))]))
    assert read_gguf_header(path).metadata["x"] == "a\ufffdb"


def test_types_agree_with_the_gguf_library() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    ours = {number: (kind.name, kind.block_size, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    assert {number: ours[number] for number in theirs if number in ours} == {
        number: value for number, value in theirs.items() if number in ours
    }
    assert set(theirs) <= set(ours)


def test_agrees_with_the_gguf_library(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([f"t{i}" for i in range(2000)])
    writer.add_float32("llama.rope.freq_base", 1e5)
    arrays = {f"w{i}": np.arange(6 * (i + 1), dtype=np.float32).reshape(2, 3 * (i + 1)) for i in range(5)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf_header(path)
    assert header.metadata["llama.rope.freq_base"] == 1e5
    assert header.metadata["tokenizer.ggml.tokens"].load() == [f"t{i}" for i in range(2000)]
    raw = path.read_bytes()
    for name, array in arrays.items():
        entry = header.tensors[name]
        assert entry.shape == array.shape
        assert raw[entry.offset : entry.offset + entry.nbytes] == array.tobytes()


def _refused_cheaply(path: Path, *, watch_memory: bool) -> None:
    started = time.process_time()
    with pytest.raises(UnsupportedCheckpoint):
        read_gguf_header(path)
    assert time.process_time() - started <= 4.0  # half a second, on a core that is one's own
    if not watch_memory:  # it makes loops ten times slower
        return
    tracemalloc.start()
    try:
        with pytest.raises(UnsupportedCheckpoint):
            read_gguf_header(path)
        assert tracemalloc.get_traced_memory()[1] <= (64 << 20) + 2 * gguf_header.MAX_HEADER_BYTES
    finally:
        tracemalloc.stop()


def test_sparse_giants_are_refused_cheaply(tmp_path: Path) -> None:
    """Counts that the file could hold, were it not made of holes."""
    starts = {
        "strings": gguf_bytes([("x", _array(GGUF_STRING, 2**26))], []),
        "numbers": gguf_bytes([("x", _array(GGUF_U32, 2**28))], []),
        "key-values": gguf_bytes([("x", 1)], [], num_key_values=2**20),
        "tensors": gguf_bytes([], [], num_tensors=2**20),
        "one string": gguf_bytes([("x", struct.pack("<IQ", GGUF_STRING, 2**31))], []),
        "short arrays": gguf_bytes([(f"x{i}", _array(2, 1024, bytes(2048))) for i in range(2000)], []),
        "short arrays of strings": gguf_bytes(
            [(f"x{i}", _array(GGUF_STRING, 500, bytes(4000))) for i in range(2000)], []
        ),
    }
    path = tmp_path / "model.gguf"
    for name, start in starts.items():
        with path.open("wb") as file:
            file.write(start)
            file.truncate(4 << 30)
        _refused_cheaply(path, watch_memory="short" not in name)


def test_large_vocabulary_is_quick(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    words = b"".join(gguf_string(f"token{i}") for i in range(300_000))
    path.write_bytes(gguf_bytes([("tokenizer.ggml.tokens", _array(GGUF_STRING, 300_000, words))]))
    started = time.process_time()
    header = read_gguf_header(path)
    assert time.process_time() - started < 0.5
    assert header.metadata["tokenizer.ggml.tokens"].load()[299_999] == "token299999"


SOUND = gguf_bytes(
    [("general.architecture", "llama"), ("n", 7), ("words", ["a", "bc"]), ("b", True), ("numbers", list(range(40)))],
    [("a", (32, 2), 8, 0), ("b", (4,), 0, 96), ("c", (256,), 12, 128)],
    data_bytes=288,
)
_EDGES = [0, 1, 31, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_only_typed_errors(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(content) - 9)))
        match data.draw(st.sampled_from(["byte", "u32", "u64", "cut", "insert"])):
            case "byte":
                content[place] = data.draw(st.integers(0, 255))
            case "u32":
                content[place : place + 4] = struct.pack("<I", data.draw(st.sampled_from(_EDGES)) & 0xFFFFFFFF)
            case "u64":
                content[place : place + 8] = struct.pack("<Q", data.draw(st.sampled_from(_EDGES)))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
                content = content or bytearray(b"\0")
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=16))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(bytes(content))
    started = time.perf_counter()
    try:
        header = read_gguf_header(path)
        for value in header.metadata.values():
            if isinstance(value, GgufArray):
                assert len(value.load()) == value.count
    except KamadoError:
        return
    finally:
        assert time.perf_counter() - started < 1
    for entry in header.tensors.values():
        assert 24 <= entry.offset <= entry.offset + entry.nbytes <= len(content)


_VALUES = st.one_of(
    st.booleans(), st.integers(0, 2**32 - 1), st.text(max_size=20),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), st.lists(st.text(max_size=5), min_size=1, max_size=5),
)  # fmt: skip


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.text(min_size=1, max_size=10), _VALUES, max_size=6))
def test_any_metadata_survives(values: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    path.write_bytes(gguf_bytes([(key, gguf_value(value)) for key, value in values.items()]))
    assert read_gguf_header(path).metadata == values
