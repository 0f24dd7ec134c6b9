"""Measured peaks: what is kept, what follows for other shapes, and files that are damaged."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.checkpoint.types import TensorEntry
from kamado.memory import learned as module
from kamado.memory.learned import (
    ESTIMATED,
    MAX_KEYS,
    MAX_POINTS,
    MEASURED,
    REACH,
    SCALED,
    Learning,
    PeakBook,
    PeakKeys,
    Point,
    fingerprint,
    learned,
)

KEY = "0" * 32


def _keys(**changes: str) -> PeakKeys:
    values = {"fingerprint": "f", "lane": "lm", "dtype": "float32", "quant": "null", "device": "cpu"}
    return PeakKeys(**(values | changes))


def test_what_was_noted_is_there_in_another_process_and_the_newest_of_a_shape_counts(tmp_path: Path) -> None:
    path = tmp_path / "home" / "peaks.json"
    PeakBook(path).note(KEY, [Point((8, 1), 100), Point((16, 1), 180)])
    PeakBook(path).note(KEY, [Point((8, 1), 110)])
    assert PeakBook(path).points(KEY) == (Point((16, 1), 180), Point((8, 1), 110))
    assert PeakBook(path).points("1" * 32) == ()
    assert [each.name for each in path.parent.iterdir()] == ["peaks.json"]


def test_the_file_stays_small_and_keeps_the_newest_keys_and_the_largest_point(tmp_path: Path) -> None:
    book = PeakBook(tmp_path / "peaks.json")
    book.note(KEY, [Point((10_000,), 1 << 40)])
    for size in range(2 * MAX_POINTS):
        book.note(KEY, [Point((size,), size)])
    kept = book.points(KEY)
    assert len(kept) == MAX_POINTS
    assert kept[0] == Point((10_000,), 1 << 40)
    assert kept[-1] == Point((2 * MAX_POINTS - 1,), 2 * MAX_POINTS - 1)
    full = {f"{number:032x}": [[[number], number]] for number in range(1, MAX_KEYS + 1)}
    book.path.write_text(json.dumps({"format": 1, "peaks": full}))
    book.note("f" * 32, [Point((1,), 1)])
    keys = list(json.loads(book.path.read_text())["peaks"])
    assert len(keys) == MAX_KEYS
    assert keys[-1] == "f" * 32
    assert f"{1:032x}" not in keys


@given(content=st.binary(max_size=200))
def test_any_bytes_are_as_if_there_was_nothing(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    book = PeakBook(tmp_path_factory.mktemp("damaged") / "peaks.json")
    book.path.write_bytes(content)
    assert book.points(KEY) == ()
    book.note(KEY, [Point((1,), 2)])
    assert PeakBook(book.path).points(KEY) == (Point((1,), 2),)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(value=_JSON, points=_JSON)
def test_any_json_gives_sound_points_only(
    value: object, points: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    book = PeakBook(tmp_path_factory.mktemp("odd") / "peaks.json")
    for content in (value, {"format": 1, "peaks": value}, {"format": 1, "peaks": {KEY: points}}):
        book.path.write_text(json.dumps(content))
        for point in PeakBook(book.path).points(KEY):
            assert all(type(number) is int and number >= 0 for number in (*point.shape, point.bytes))
    book.note(KEY, [Point((3, 4), 5)])
    assert PeakBook(book.path).points(KEY)[-1] == Point((3, 4), 5)


def test_a_place_that_cannot_be_written_costs_only_what_other_processes_would_know(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    book = PeakBook(tmp_path / "file" / "peaks.json")
    book.note(KEY, [Point((1,), 2)])
    book.note(KEY, [Point((2,), 3)])
    assert book.points(KEY) == (Point((1,), 2), Point((2,), 3))


def _note_some(path: Path, key: str) -> None:
    for size in range(20):
        PeakBook(path).note(key, [Point((size,), size)])


def test_writers_of_several_threads_and_processes_leave_a_sound_file(tmp_path: Path) -> None:
    path, context = tmp_path / "peaks.json", multiprocessing.get_context("spawn")
    processes = [context.Process(target=_note_some, args=(path, f"{number:032x}")) for number in range(2)]
    book = PeakBook(path)
    threads = [threading.Thread(target=lambda: book.note(KEY, [Point((7,), 8)])) for _ in range(8)]
    for each in (*processes, *threads):
        each.start()
    for each in (*processes, *threads):
        each.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads(path.read_text())["format"] == 1
    book.note(KEY, [Point((7,), 9)])
    assert Point((7,), 9) in PeakBook(path).points(KEY)
    assert [each.name for each in tmp_path.iterdir()] == ["peaks.json"]


def test_keys_differ_where_peaks_do() -> None:
    others = {"fingerprint": "g", "lane": "vae", "dtype": "bfloat16", "quant": '"int8"', "device": "mps"}
    keys = {_keys().key(), _keys().key("decode"), *(_keys(**{name: value}).key() for name, value in others.items())}
    assert len(keys) == len(others) + 2
    assert _keys().key() == _keys().key()


def test_other_versions_of_the_libraries_learn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _keys().key()
    monkeypatch.setattr(module, "_versions", lambda: "another")
    assert _keys().key() != before


def test_a_fine_tuned_model_knows_what_its_base_knows(tmp_path: Path) -> None:
    def tensor(shape: Sequence[int], dtype: str = "F32", offset: int = 0) -> TensorEntry:
        return TensorEntry("w", dtype, tuple(shape), tmp_path, offset, 0)

    config = {"hidden_size": 8, "_name_or_path": "a", "transformers_version": "1"}
    same = {"hidden_size": 8, "_name_or_path": "b", "transformers_version": "2"}
    assert fingerprint(config, [tensor((2, 3))]) == fingerprint(same, [tensor((2, 3), offset=64)])
    assert fingerprint(config, [tensor((2, 3))]) != fingerprint(config, [tensor((2, 4))])
    assert fingerprint(config, [tensor((2, 3))]) != fingerprint(config, [tensor((2, 3), "Q4_0")])
    assert fingerprint(config, [tensor((2, 3))]) != fingerprint({"hidden_size": 9}, [tensor((2, 3))])


def test_figures_of_other_shapes() -> None:
    def estimate(tokens: int, rows: int) -> int:
        return 10 * tokens + rows

    points = [Point((10, 0), 20), Point((100, 0), 500), Point((7,), 10**9)]  # the last one is of another version
    assert learned((), (10, 0), estimate, 2) == (100, ESTIMATED)
    assert learned(points, (10, 0), estimate, 2) == (20, MEASURED)
    assert learned(points, (200, 0), estimate, 2) == (1000, SCALED)
    assert learned(points, (100 * REACH, 0), estimate, 2) == (500 * REACH, SCALED)
    assert learned(points, (1000, 0), estimate, 2) == (10_000, ESTIMATED)
    # An estimate that was too small is not trusted further out.
    assert learned([Point((100, 0), 2000)], (1000, 0), estimate, 2) == (20_000, ESTIMATED)
    # What was asked for took more than its size says, and may again.
    padded = [*points, Point((50, 5000), 777)]
    assert learned(padded, (60, 0), estimate, 1) == (777, SCALED)
    assert learned(padded, (40, 0), estimate, 1) == (57, SCALED)


@given(bytes=st.integers(1, 10**6), measured=st.integers(1, 100), sizes=st.lists(st.integers(1, 1000), min_size=2))
def test_larger_shapes_never_get_smaller_figures(bytes: int, measured: int, sizes: list[int]) -> None:
    """Plans look for what fits by halves."""
    points = [Point((measured,), bytes)]
    found = [learned(points, (size,), lambda size: 7 * size, 1)[0] for size in sorted(sizes) if size != measured]
    assert found == sorted(found)


def test_a_person_without_a_home_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "peaks_path", nowhere)
    _keys().note([Point((1,), 2)])
    assert _keys().points() == ()


def test_a_lane_measures_what_is_a_good_deal_larger(measured_peaks: Path) -> None:
    learning = Learning(_keys(), lambda tokens: 100 * tokens, 1)
    assert learning.wants((8,))
    learning.note((8,), 555)
    assert [learning.wants((size,)) for size in (4, 8, 9, 10)] == [False, False, False, True]
    again = Learning(_keys(), lambda tokens: 100 * tokens, 1)
    assert [again.wants((size,)) for size in (8, 10)] == [False, True]
    assert again.peak((8,)) == (555, MEASURED)
    assert measured_peaks.exists()
