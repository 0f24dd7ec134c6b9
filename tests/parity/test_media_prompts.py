"""Models that see or hear through the whole engine: greedy tokens equal to transformers' `generate` on what their own
processors make of a request, alone and crowded.

Crowded means: requests with and without media together, some at once and some later, memory for a part of them, and
forwards of at most 24 tokens. So prompts are cut into pieces, and sequences are pre-empted and computed again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pytest

import kamado
from kamado_models.language.batching import PAGED
from kamado_models.language.media.table import SENSES, WANT_TORCHVISION
from tiny_media import KINDS, Kind, MediaOracle, chat, request

NUM_NEW = 12
STEP_BUDGET = 24
LONGEST_TEXT = 47
HOW = {"max_tokens": NUM_NEW, "temperature": 0.0, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Loaded:
    name: str
    kind: Kind
    runtime: kamado.Runtime
    model: kamado.Model
    oracle: MediaOracle

    def requests(self, *, text: str = "what") -> list[dict[str, Any]]:
        """One of each kind that it takes, with one and with several things."""
        counts = range(1, self.kind.most + 1)
        return [
            request(self.kind, what, [7 * count + number for number in range(count)], text=text)
            for what in self.kind.kinds
            for count in counts
        ]

    def ledger(self) -> dict[str, int]:
        return dict(self.runtime.stats()["ledger"]["cpu"][self.model.owner])


@pytest.fixture(scope="module", params=list(KINDS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    kind = KINDS[request.param]
    if kind.wants:
        pytest.importorskip(kind.wants)
    try:
        folder = kind.make(tmp_path_factory.mktemp(request.param))
    except ImportError as error:
        if tuple(map(int, version("transformers").split(".")[:2])) > (
            5,
            17,
        ):  # later ones prepare pictures without torchvision
            raise
        pytest.skip(f"this transformers wants torchvision for its processor: {str(error).splitlines()[0]}")
    oracle = MediaOracle(folder)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        made = Loaded(request.param, kind, runtime, None, oracle)  # type: ignore[arg-type]
        asked = [*made.requests(text="what is this?"), *([chat(kind)] if kind.chat else [])]
        most = max(map(oracle.num_tokens, asked))
        held = max(most + NUM_NEW, LONGEST_TEXT + NUM_NEW) * 5 // 4  # so of most prompts two do not fit
        model = runtime.load(folder, dtype="float32", kv_tokens=held, step_budget=STEP_BUDGET, max_rows=6, offline=True)
        yield replace(made, model=model)


def test_every_known_type_is_here() -> None:
    assert set(KINDS) == set(SENSES)
    assert all(KINDS[name].kinds == SENSES[name] for name in KINDS)
    assert {name for name in KINDS if KINDS[name].wants == "torchvision"} == WANT_TORCHVISION


def test_alone(loaded: Loaded) -> None:
    assert loaded.model.usage()["batching"] == PAGED
    before = loaded.ledger()
    for options in loaded.requests():
        result = loaded.model.generate(**options, **HOW)
        assert list(result.tokens) == loaded.oracle.greedy(options, NUM_NEW)
        assert set(result.recipe["inputs"]) <= set(loaded.kind.kinds)
    assert loaded.ledger() == before, "what was seen was given back"


def test_crowded(loaded: Loaded) -> None:
    shown = loaded.requests(text="what is this?")
    wanted = [loaded.oracle.greedy(options, NUM_NEW) for options in shown]
    lengths = (20, 29, 38, LONGEST_TEXT)
    texts = [{"prompt_tokens": [8 + (31 * length + at) % 200 for at in range(length)]} for length in lengths]
    alone = [loaded.model.generate(**options, **HOW).tokens for options in texts]
    before = loaded.ledger()
    preempted = loaded.runtime.stats()["preemptions"]
    jobs = [loaded.model.submit(**options, **HOW) for options in (*shown, *texts)]
    time.sleep(0.02)
    late = [loaded.model.submit(**options, **HOW) for options in (*shown, *shown)]
    got = [list(job.result().tokens) for job in jobs]
    assert got[: len(shown)] == wanted
    assert got[len(shown) :] == [list(tokens) for tokens in alone]
    assert [list(job.result().tokens) for job in late] == [*wanted, *wanted]
    assert loaded.runtime.stats()["preemptions"] > preempted, "there was too little memory for all"
    assert loaded.ledger() == before
    loaded.model.loaded.execution.memory.check_integrity()  # type: ignore[attr-defined]


def test_a_chat_with_all_that_it_takes(loaded: Loaded) -> None:
    if not loaded.kind.chat:
        pytest.skip("it does not chat")
    options = chat(loaded.kind)
    count = loaded.oracle.num_tokens(options)
    result = loaded.model.generate(**options, **HOW)
    assert list(result.tokens) == loaded.oracle.greedy(options, NUM_NEW)
    assert result.usage.prompt_tokens == count


def test_several_answers_see_the_same(loaded: Loaded) -> None:
    options = loaded.requests()[0]
    wanted = loaded.oracle.greedy(options, NUM_NEW)
    result = loaded.model.generate(**options, **HOW, n=3)
    assert [list(choice.tokens) for choice in result.choices] == [wanted] * 3


def test_nobody_gets_the_state_of_another_picture(loaded: Loaded) -> None:
    what = loaded.kind.kinds[0]
    asked = (request(loaded.kind, what, [seed], text="tell me all that you find") for seed in range(1, 9))
    answered = [(options, loaded.oracle.greedy(options, NUM_NEW)) for options in asked]
    first, answer = answered[0]
    other, other_answer = next(pair for pair in answered if pair[1] != answer)
    wanted = [answer, other_answer]
    results = [loaded.model.generate(**options, **HOW) for options in (first, first, other)]
    assert [list(result.tokens) for result in results] == [wanted[0], *wanted]
    assert results[1].usage.cached_tokens > 0, "the same picture is found again"
