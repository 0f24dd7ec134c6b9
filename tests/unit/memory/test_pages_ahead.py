"""Pages that are taken a step before they are needed: kept until then, taken from nobody, and given back."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.sequence import TokenSequence

PAGE = 4


@dataclass
class Ahead:
    """What was told of the next step."""

    past: int
    pages: list[int]


def _begun(memory: PagedMemory, length: int) -> TokenSequence:
    sequence = TokenSequence(id="s", tokens=list(range(length)), num_prompt=1, sampling=Sampling(), seed=0)
    memory.attach(sequence)
    assert memory.acquire(sequence, length - 1)
    sequence.num_computed = length - 1
    memory.committed(sequence)
    return sequence


def _step(memory: PagedMemory, sequence: TokenSequence, token: int) -> None:
    sequence.num_computed += 1
    memory.committed(sequence)
    sequence.tokens.append(token)


@given(
    window=st.one_of(st.none(), st.integers(1, 20)),
    length=st.integers(2, 20),
    num_steps=st.integers(1, 30),
    spare=st.integers(0, 3),
)
def test_the_next_step_finds_what_was_told(window: int | None, length: int, num_steps: int, spare: int) -> None:
    memory = PagedMemory(BlockPool(20), PAGE, salt=b"x", window_tokens=window)
    sequence = _begun(memory, length)
    told: Ahead | None = None
    for number in range(num_steps):
        assert memory.acquire(sequence, len(sequence.tokens))
        if told is not None:
            assert sequence.state.num_past == told.past
            assert sequence.state.held == told.pages[: len(sequence.state.held)]
            assert len(sequence.state.held) in (len(told.pages), len(told.pages) - 1)
        past = memory.acquire_ahead(sequence, spare_pages=spare)
        assert past is not None
        told = Ahead(past, sequence.state.blocks[past:])
        assert len(sequence.state.blocks) * PAGE > len(sequence.tokens), "there is a place for the next token"
        _step(memory, sequence, 100 + number)
        memory.check_integrity()
    memory.release(sequence)
    assert memory.pool.num_free == 20


@given(num_blocks=st.integers(2, 6), spare=st.integers(0, 6))
def test_a_page_that_others_may_need_is_left(num_blocks: int, spare: int) -> None:
    memory = PagedMemory(BlockPool(num_blocks), PAGE, salt=b"x")
    sequence = _begun(memory, PAGE)
    assert memory.acquire(sequence, PAGE)
    free = memory.pool.num_free
    past = memory.acquire_ahead(sequence, spare_pages=spare)
    assert (past is None) == (free <= spare)
    assert memory.pool.num_free == free - (past is not None)
    _step(memory, sequence, 9)
    assert memory.pool.num_free == free - (past is not None), "it is kept"
    memory.release(sequence)
    assert memory.pool.num_free == num_blocks


def test_pages_of_proposals_still_go_back() -> None:
    memory = PagedMemory(BlockPool(8), PAGE, salt=b"x")
    sequence = _begun(memory, PAGE)
    assert memory.acquire(sequence, PAGE) and memory.acquire_ahead(sequence, spare_pages=1) == 0
    _step(memory, sequence, 9)
    assert memory.acquire(sequence, len(sequence.tokens) + 9)
    assert memory.pool.num_free == 4
    _step(memory, sequence, 10)
    assert memory.pool.num_free == 6
