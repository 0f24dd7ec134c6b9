"""Every architecture through the whole engine: greedy tokens equal to transformers' own `generate`, alone and crowded.

Crowded means: eight requests of different length, some at once and some later, memory for about a third of them, and
forwards of at most 24 tokens. So prompts are cut into pieces, rows join and leave, and sequences are pre-empted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import kamado
from kamado_models.language.batching import ALONE, PAGED, ROWS_RAGGED, ROWS_STATE
from tiny import ARCHITECTURES, Oracle, build

NUM_NEW = 20
KV_TOKENS = 192
KV_TOKENS_OF_PAIRS = 640
"""Of encoder-decoder models, where source and answer are both held."""
STEP_BUDGET = 24
MAX_ROWS = 6
TIE = 1e-4
"""Logits nearer than this may come out in either order."""
LENGTHS = (1, 7, 33, 100)
"""One token; shorter and longer than the windows of 16; longer than a forward may be."""
CROWD = (33, 7, 100, 1, 50, 20, 20, 64)
AT_ONCE = 5
"""So many come together, and by the end need more memory than there is."""


@dataclass(frozen=True, slots=True)
class Loaded:
    name: str
    runtime: kamado.Runtime
    model: kamado.Model
    oracle: Oracle

    @property
    def batching(self) -> str:
        return str(self.usage()["batching"])

    def usage(self) -> dict[str, Any]:
        """Without what only ever grows."""
        return {name: value for name, value in self.model.usage().items() if name != "speculation"}

    def lane(self) -> dict[str, Any]:
        lanes = self.runtime.stats()["lanes"]
        return next(iter(lanes.values())) if lanes else {"steps": 0, "rows": 0}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    oracle = Oracle(folder)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(
            folder,
            dtype="float32",
            kv_tokens=KV_TOKENS_OF_PAIRS if oracle.encoder_decoder else KV_TOKENS,
            step_budget=STEP_BUDGET,
            max_rows=MAX_ROWS,
            offline=True,
        )
        yield Loaded(request.param, runtime, model, oracle)


def prompt(length: int, start: int = 0) -> list[int]:
    """`length` token ids, none of them special."""
    return [8 + (37 * (i + start) + (i * i) % 23) % 256 for i in range(length)]


def check(loaded: Loaded, tokens: list[int], got: list[int]) -> list[int]:
    """Equal to the oracle's tokens up to the first tie. Returns what the oracle says."""
    wanted = loaded.oracle.greedy(tokens, NUM_NEW)
    assert len(got) == len(wanted) == NUM_NEW
    if got != wanted:
        first = next(i for i, pair in enumerate(zip(got, wanted, strict=True)) if pair[0] != pair[1])
        gap = loaded.oracle.gaps(tokens, NUM_NEW)[first]
        assert gap < TIE, (
            f"{loaded.name} ({loaded.batching}), prompt of {len(tokens)}: token {first} of {NUM_NEW} is {got[first]}, "
            f"not {wanted[first]}, which leads by {gap:.4f}\n{got}\n{wanted}"
        )
    return wanted


def options(tokens: list[int]) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True}


def test_alone(loaded: Loaded) -> None:
    before = loaded.usage()
    answers: set[int] = set()
    for length in LENGTHS:
        tokens = prompt(length)
        result = loaded.model.generate(**options(tokens))
        assert result.usage.prompt_tokens == length
        answers.update(check(loaded, tokens, list(result.tokens)))
    # The comparison would be worth little if the tiny model said the same whatever it is asked.
    assert len(answers) >= 4
    assert loaded.usage() == before


def test_crowded(loaded: Loaded) -> None:
    before, lane = loaded.usage(), loaded.lane()
    prompts = [prompt(length, start=index) for index, length in enumerate(CROWD)]
    jobs = []
    for index, tokens in enumerate(prompts):
        jobs.append(loaded.model.submit(**options(tokens)))
        if index >= AT_ONCE:
            time.sleep(0.01)
    results = [job.result(timeout=120) for job in jobs]
    for tokens, result in zip(prompts, results, strict=True):
        check(loaded, tokens, list(result.tokens))
    assert loaded.usage() == before
    loaded.model.loaded.execution.memory.check_integrity()
    after = loaded.lane()
    steps, rows = after["steps"] - lane["steps"], after["rows"] - lane["rows"]
    assert rows + sum(result.usage.accepted_tokens for result in results) >= len(CROWD) * NUM_NEW
    if loaded.batching == ALONE:
        assert steps == rows
    elif loaded.batching in (PAGED, ROWS_RAGGED, ROWS_STATE):
        assert rows >= 1.5 * steps
    stats = loaded.runtime.stats()
    # A forward that raises is tried again in halves, which would hide it.
    assert stats["splits"] == 0
    if loaded.batching == PAGED:
        assert stats["preemptions"] > 0


def test_batching_is_what_show_says(loaded: Loaded) -> None:
    assert loaded.model.info["batching"] == loaded.batching
