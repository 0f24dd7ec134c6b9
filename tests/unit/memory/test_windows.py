"""Where every layer looks back over a window only, pages before it are given back."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.sequence import TokenSequence

PAGE = 4


def _sequence(tokens: list[int]) -> TokenSequence:
    return TokenSequence(id="s", tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)


def _compute(memory: PagedMemory, sequence: TokenSequence, chunk: int) -> int:
    """Compute it to its end in pieces; the most pages that were held."""
    most = 0
    while sequence.num_computed < len(sequence.tokens):
        target = min(sequence.num_computed + chunk, len(sequence.tokens))
        assert memory.acquire(sequence, target)
        most = max(most, memory.pool.num_blocks - memory.pool.num_free)
        sequence.num_computed = target
        memory.committed(sequence)
        memory.check_integrity()
    return most


@given(window=st.integers(1, 40), chunk=st.integers(1, 20), length=st.integers(1, 200), share=st.booleans())
def test_no_more_is_held_than_the_window_and_what_is_computed(
    window: int, chunk: int, length: int, share: bool
) -> None:
    memory = PagedMemory(BlockPool(100), PAGE, salt=b"x", share_prefixes=share, window_tokens=window)
    sequence = _sequence(list(range(length)))
    memory.attach(sequence)
    most = _compute(memory, sequence, chunk)
    assert most <= -(-(window + chunk) // PAGE) + 1
    held = range(sequence.state.num_past * PAGE, length)
    assert all(position in held for position in range(max(length + 1 - window, 0), length))
    memory.release(sequence)
    assert memory.pool.num_free == 100


@given(
    window=st.integers(1, 30),
    length=st.integers(8, 80),
    longer=st.integers(1, 30),
    overwritten=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_a_prefix_is_known_by_the_pages_of_its_window(
    window: int, length: int, longer: int, overwritten: int, seed: int
) -> None:
    """What is taken over is what `find` has for the very tokens, all of it that the next token looks back to, and the
    longest such prefix."""
    memory = PagedMemory(BlockPool(24), PAGE, salt=b"x", window_tokens=window)
    tokens = list(range(length))
    first = _sequence(tokens)
    memory.attach(first)
    if _compute_fits(window, 5):
        _compute(memory, first, 5)
    memory.release(first)
    taken = [memory.pool.take() for _ in range(min(overwritten, memory.pool.num_free))]
    random.Random(seed).shuffle(taken)
    for block in taken:
        memory.pool.release(block)
    second = _sequence([*tokens, *range(1000, 1000 + longer)])
    known = memory.attach(second)
    names = _names(memory, second)
    assert known % PAGE == 0 and known < len(second.tokens)
    found = [memory.pool.find(name) for name in names]

    def usable(pages: int) -> bool:
        past = max(pages * PAGE + 1 - window, 0) // PAGE
        return None not in found[past:pages]

    pages = max(count for count in range((len(second.tokens) - 1) // PAGE + 1) if usable(count))
    assert known == pages * PAGE
    assert second.state.held == found[second.state.num_past : pages]
    memory.check_integrity()
    memory.release(second)
    assert memory.pool.num_free == 24


def _compute_fits(window: int, chunk: int) -> bool:
    return -(-(window + chunk) // PAGE) + 1 <= 24


def _names(memory: PagedMemory, sequence: TokenSequence) -> list[bytes]:
    """The names of all its full pages, as another memory gives them."""
    other = PagedMemory(BlockPool(100), PAGE, salt=b"x")
    copy = _sequence(sequence.tokens)
    other.attach(copy)
    _compute(other, copy, 50)
    names: list[bytes] = copy.state.names
    return names
