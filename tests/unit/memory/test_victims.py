"""How many sequences must be released so that another gets its memory: the count is what releasing them shows."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.sequence import TokenSequence
from kamado_models.language.rows_memory import RowMemory, RowMode


def _sequence(number: int, tokens: list[int], source: int = 0) -> TokenSequence:
    return TokenSequence(
        id=f"s{number}", tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0, source=tuple(range(source))
    )


def _held(memory: Any, rng: random.Random) -> list[TokenSequence]:
    """Sequences that hold state, many of them with a common beginning."""
    held = []
    for number in range(rng.randrange(1, 7)):
        shared = [1, 2, 3, 4, 5, 6, 7, 8] if rng.random() < 0.6 else []
        sequence = _sequence(number, shared + [9 + number] * rng.randrange(1, 14), rng.randrange(3))
        sequence.num_computed = memory.attach(sequence)
        if memory.acquire(sequence, len(sequence.tokens)):
            sequence.num_computed = len(sequence.tokens)
            memory.committed(sequence)
            held.append(sequence)
        else:
            memory.release(sequence)
    return held


def _check(memory: Any, rng: random.Random) -> None:
    held = _held(memory, rng)
    wanting = (
        held.pop(rng.randrange(len(held))) if held and rng.random() < 0.5 else _sequence(99, [1, 2, 3, 4, 5, 6, 7])
    )
    if wanting.state is None:
        memory.attach(wanting)
    num_tokens = len(wanting.tokens) + rng.randrange(60)
    others = rng.sample(held, rng.randrange(len(held) + 1))
    before = memory.usage()
    needed = memory.victims_needed(wanting, num_tokens, others)
    assert memory.usage() == before
    for count in range(len(others) + 1):
        granted = memory.acquire(wanting, num_tokens)
        assert granted == (needed is not None and count >= needed)
        if granted:
            break
        if count < len(others):
            memory.release(others[count])
    memory.check_integrity()


@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(1, 24),
    share=st.booleans(),
    window=st.none() | st.integers(1, 20),
)
def test_pages(seed: int, num_blocks: int, share: bool, window: int | None) -> None:
    memory = PagedMemory(BlockPool(num_blocks), 4, salt=b"test", share_prefixes=share, window_tokens=window)
    _check(memory, random.Random(seed))


@given(
    seed=st.integers(0, 2**32),
    budget=st.integers(0, 4000),
    per_token=st.integers(0, 9),
    per_sequence=st.integers(0, 300),
    rows=st.integers(1, 5),
)
def test_reservations(seed: int, budget: int, per_token: int, per_sequence: int, rows: int) -> None:
    memory = RowMemory(
        mode=RowMode(stackable=True, ragged=True, chunked=True),
        budget_bytes=budget,
        bytes_per_token=per_token,
        bytes_per_sequence=per_sequence,
        bytes_per_source_token=7,
        max_sequences=rows,
    )
    _check(memory, random.Random(seed))
