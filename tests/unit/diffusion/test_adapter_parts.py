"""Adapters between threads, and the patterns in a LoRA's settings."""

from __future__ import annotations

import threading
import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kamado_models.diffusion.adapters_lora import Lora, _Patterns
from kamado_models.diffusion.adapters_uses import Adapter


def test_all_readers_have_the_same_content() -> None:
    """One of them moves it to the device; the others must not put another in its place."""
    reading, go_on = threading.Event(), threading.Event()
    made: list[Lora] = []

    def read() -> Lora:
        made.append(Lora({}))
        reading.set()
        assert go_on.wait(30)
        return made[-1]

    adapter = Adapter("0" * 64, read, None)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(adapter.have())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert reading.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1 and found == made * 4 and adapter.content is made[0]


def test_a_read_that_failed_is_tried_again() -> None:
    outcomes: list[Any] = [OSError("gone"), lora := Lora({})]

    def read() -> Lora:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return lora

    adapter = Adapter("0" * 64, read, None)
    try:
        adapter.have()
    except OSError:
        assert adapter.have() is lora


def is_named(path: str, pattern: str) -> bool:
    """What peft's patterns of plain names mean."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    return path == name or (not pattern.startswith("^") and path.endswith(f".{name}"))


_names = st.lists(st.sampled_from(["a", "b", "to_q", ""]), max_size=4).map(".".join)


@given(
    _names,
    st.dictionaries(
        st.builds(lambda start, name, end: start + name + end, st.sampled_from(["", "^", "\\."]), _names,
                  st.sampled_from(["", "$", "\\.a"])),
        st.integers(),
        max_size=6,
    ),
)  # fmt: skip
def test_the_first_pattern_that_means_a_layer_counts(path: str, patterns: dict[str, int]) -> None:
    wanted = next((value for pattern, value in patterns.items() if is_named(path, pattern)), -1)
    assert _Patterns(patterns).first(path, -1) == wanted


def test_many_patterns_cost_no_more_for_each_layer() -> None:
    patterns = _Patterns({f"blocks.{n}.to_q": n for n in range(100_000)})
    began = time.process_time()
    assert [patterns.first(f"unet.blocks.{n}.to_q", None) for n in range(2000)] == list(range(2000))
    assert time.process_time() - began < 1
