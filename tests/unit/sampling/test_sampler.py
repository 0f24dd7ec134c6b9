"""Drawing: greedy, seeded, invariant to the batch, and honest about rows that cannot be drawn from."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch

from kamado.errors import GenerationFailed, InvalidRequest
from kamado.requests import Sampling
from kamado.sampling import sampler, truncate
from kamado.sampling.check import check_sampling
from kamado.sampling.sampler import Sampler
from kamado.sampling.scratch import scratch_bytes
from kamado.sampling.uniform import uniform
from kamado.sequence import Drawn, TokenSequence
from kamado_models.language.waits import launched_bytes
from unit.sampling.rows import SAMPLINGS, random_logits, sequence, token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_greedy_is_argmax(dtype: torch.dtype) -> None:
    logits = random_logits(16, 999).to(dtype)
    logits[3] = 0.0
    logits[4, [70, 500]] = 50.0
    drawn = Sampler().draw(logits, [sequence(seed=i) for i in range(16)])
    assert [token(d) for d in drawn] == logits.argmax(dim=1).tolist()
    assert token(drawn[3]) == 0
    assert token(drawn[4]) == 70


def test_neutral_values_take_the_slow_path_to_the_same_token() -> None:
    logits = random_logits(8, 999)
    fast = Sampler().draw(logits, [sequence() for _ in range(8)])
    slow = Sampler().draw(logits, [sequence(logit_bias={5: 0.0}) for _ in range(8)])
    one = Sampler().draw(logits, [sequence(temperature=2.0, top_k=1) for _ in range(8)])
    cold = Sampler().draw(logits, [sequence(temperature=1e-6, seed=i) for i in range(8)])
    assert fast == slow == one == cold


def test_alone_and_in_a_mixed_batch() -> None:
    logits = random_logits(16, 2000, scale=1.0)
    rows = [sequence(made=[5, 6, 5], seed=i, logprobs=i % 4 or None, **values) for i, values in enumerate(SAMPLINGS)]
    together = Sampler().draw(logits, copy.deepcopy(rows))
    order = list(reversed(range(16)))
    backwards = Sampler().draw(logits[order], [copy.deepcopy(rows[i]) for i in order])
    for i, row in enumerate(rows):
        alone = Sampler().draw(logits[i : i + 1], [row])[0]
        assert token(together[i]) == token(alone) == token(backwards[15 - i])
        assert isinstance(alone, Drawn)
        assert isinstance(together[i], Drawn)
        assert (alone.logprob is None) == (row.logprobs is None)
        assert [t for t, _ in alone.top] == [t for t, _ in together[i].top]


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_where_asking_is_dear_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Rows that are flat, too, of which top-p wants more than the best thousand: drawn again, then."""
    logits = random_logits(16, 5000, scale=scale)
    rows = [sequence(made=[5, 6, 5], seed=i, logprobs=i % 4 or None, **values) for i, values in enumerate(SAMPLINGS)]
    wanted = Sampler().draw(logits, copy.deepcopy(rows))
    monkeypatch.setattr(truncate, "_answers_late", lambda device: True)
    assert Sampler().draw(logits, copy.deepcopy(rows)) == wanted
    plain = [i for i, row in enumerate(rows) if not row.sampling.has_penalties]  # the host counts tokens for those
    with torch.inference_mode():
        launched_bytes(lambda: _draw(logits[plain], [rows[i] for i in plain]), logits.device)


@pytest.mark.parametrize("late", [False, True])
def test_logits_may_be_overwritten_before_anybody_waits(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    some = [values for values in SAMPLINGS if values.get("top_k", 0) < 5000]
    logits = random_logits(len(some), 5000, scale=0.01)
    rows = [sequence(made=[5, 6, 5], seed=i, logprobs=i % 4 or None, **values) for i, values in enumerate(some)]
    wanted = Sampler().draw(logits, copy.deepcopy(rows))
    monkeypatch.setattr(truncate, "_answers_late", lambda device: late)
    monkeypatch.setattr(truncate, "_NUM_CANDIDATES", 4)
    drawing = Sampler().begin(logits, copy.deepcopy(rows))
    launched = drawing.tokens_r.tolist()
    drawing.keep()
    logits.fill_(float("nan"))
    assert drawing.result() == wanted
    assert drawing.first == launched
    assert (drawing.first != [token(each) for each in wanted]) == late, "some were drawn again"


def test_drawing_needs_rows() -> None:
    assert Sampler().draw(torch.zeros(0, 7), []) == []
    for logits, rows in ((torch.zeros(0, 7), []), (torch.zeros(2, 7), [sequence()]), (torch.zeros(7), [sequence()])):
        with pytest.raises(ValueError, match="logits of shape"):
            Sampler().begin(logits, rows)


def _draw(logits: torch.Tensor, rows: list[TokenSequence]) -> None:
    tokens = logits.argmax(dim=1)
    sampler._draw_others(logits, tokens, logits.amax(dim=1), rows, sorts=False)
    sampler._reports(logits, tokens, rows, 16)


def test_many_rows_are_worked_off_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(16, 300)
    rows = [sequence(made=[5, 6], seed=i, logprobs=2, **values) for i, values in enumerate(SAMPLINGS)]
    whole = Sampler().draw(logits, rows)
    monkeypatch.setattr("kamado.sampling.scratch.MAX_CHUNK_ELEMENTS", {"cpu": 900, "gpu": 1200})
    assert Sampler().draw(logits, rows) == whole
    assert scratch_bytes(1000, 300, "cpu") == scratch_bytes(3, 300, "cpu")
    assert scratch_bytes(1000, 300, "cuda:1") == scratch_bytes(4, 300, "cuda:1")


def test_logits_are_left_as_they_are() -> None:
    logits = random_logits(16, 300)
    before = logits.clone()
    Sampler().draw(logits, [sequence(made=[5], seed=i, **values) for i, values in enumerate(SAMPLINGS)])
    assert torch.equal(logits, before)


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    before = torch.get_rng_state()
    Sampler().draw(random_logits(1, 300), [sequence(temperature=1.0)])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.15}, {"temperature": 2.0}, {"logit_bias": {0: 1.0}}],
    ids=str,
)
def test_frequencies_of_draws(values: dict[str, Any]) -> None:
    """Chi-square over 8,000 draws with fixed seeds, against the distribution that was asked for."""
    num_draws = 8000
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 1.5, 0.5, -0.5, 1.0])
    options = {"temperature": 1.0} | values
    rows = [sequence(seed=seed, **options) for seed in range(num_draws)]
    drawn = Sampler().draw(logits.expand(num_draws, -1), rows)
    counts = Counter(token(d) for d in drawn)
    scores = logits.clone()
    scores[0] += options.get("logit_bias", {}).get(0, 0.0)
    p = (scores / options["temperature"]).softmax(0)
    ranked = p.argsort(descending=True, stable=True).tolist()
    kept = ranked[: options.get("top_k", 8)]
    if "top_p" in options:
        kept = [t for i, t in enumerate(ranked) if float(p[ranked[:i]].sum()) < options["top_p"]]
    kept = [t for t in kept if float(p[t]) >= options.get("min_p", 0.0) * float(p.max())]
    assert set(counts) == set(kept)
    expected = {t: float(p[t] / p[kept].sum()) * num_draws for t in kept}
    chi_square = sum((counts[t] - expected[t]) ** 2 / expected[t] for t in kept)
    # 99.9 % quantile of chi-square with 7 degrees of freedom.
    assert chi_square < 24.3


def test_each_seed_answer_and_position_has_a_number_of_its_own() -> None:
    numbers = {uniform(seed, index, at) for seed in (0, 1, 2**64 - 1) for index in range(8) for at in range(200)}
    assert len(numbers) == 3 * 8 * 200
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02


def test_random_numbers_never_change() -> None:
    """A seed must give the same text in every release: these values are fixed for good."""
    assert uniform(0, 0, 0) == 0.6294324777698715
    assert uniform(7, 1, 42) == 0.8687778535246331


def texts(num_answers: int, seed: int, *, sampler: Sampler, length: int = 20) -> list[list[int]]:
    rows = [sequence(seed=seed, index=i, temperature=1.0) for i in range(num_answers)]
    for step in range(length):
        logits = random_logits(1, 500, seed=step, scale=1.0).expand(num_answers, -1)
        for row, drawn in zip(rows, sampler.draw(logits, rows), strict=True):
            row.tokens.append(token(drawn))
    return [row.tokens[row.num_prompt :] for row in rows]


def test_answers_differ_and_the_first_is_that_of_one_answer() -> None:
    sampler = Sampler()
    four = texts(4, 11, sampler=sampler)
    assert len({tuple(answer) for answer in four}) == 4
    assert texts(1, 11, sampler=Sampler()) == four[:1]
    assert texts(1, 12, sampler=sampler) != four[:1]


def test_each_position_has_its_own_number() -> None:
    row = sequence(seed=5, temperature=1.0)
    for _ in range(50):
        row.tokens.append(token(Sampler().draw(torch.zeros(1, 1000), [row])[0]))
    assert len(set(row.tokens[row.num_prompt :])) > 40
    assert row.tokens[3] == int(uniform(5, 0, 0) * 1000)


def test_goes_on_alike_after_scratch_was_dropped() -> None:
    logits = random_logits(1, 500, scale=1.0)
    options: dict[str, Any] = {"seed": 3, "temperature": 1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.2}
    kept = sequence(**options)
    for _ in range(10):
        fresh = sequence(made=kept.tokens[kept.num_prompt :], **options)
        drawn = Sampler().draw(logits, [kept])
        assert drawn == Sampler().draw(logits, [fresh])
        kept.tokens.append(token(drawn[0]))


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    logits = random_logits(4, 300).to(torch.bfloat16)
    rows = [
        sequence(logprobs=3, temperature=2.0, top_k=2, logit_bias={7: 5.0}),
        sequence(),
        sequence(logprobs=0),
        sequence(logprobs=20, repetition_penalty=5.0),
    ]
    drawn = Sampler().draw(logits, rows)
    expected = logits.float().log_softmax(dim=1)
    for i, num in ((0, 3), (2, 0), (3, 20)):
        d = drawn[i]
        assert isinstance(d, Drawn)
        assert d.logprob == pytest.approx(float(expected[i, d.token_id]), abs=1e-6)
        values, ids = expected[i].topk(num)
        assert [v for _, v in d.top] == pytest.approx(values.tolist(), abs=1e-6)
        assert {t for t, _ in d.top} == set(ids.tolist()) or len(set(values.tolist())) < num
    assert drawn[1] == Drawn(int(logits[1].argmax()))


def test_alternatives_that_cannot_happen_are_left_out() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    drawn = Sampler().draw(logits, [sequence(logprobs=20, prompt=[0])])
    assert isinstance(drawn[0], Drawn)
    assert [token_id for token_id, _ in drawn[0].top] == [0, 2]
    assert [logprob for _, logprob in drawn[0].top] == pytest.approx([-math.log(2)] * 2)


@pytest.mark.parametrize("options", [*SAMPLINGS, {"logprobs": 5}], ids=str)
def test_a_broken_row_fails_alone(options: dict[str, Any]) -> None:
    logits = random_logits(5, 300, scale=1.0)
    rows = [sequence(made=[4, 5], seed=i, **options) for i in range(5)]
    good = Sampler().draw(logits, rows)
    logits[1, 17] = math.nan
    logits[2, 299] = math.inf
    logits[3] = -math.inf
    drawn = Sampler().draw(logits, rows)
    for row, word in ((1, "NaN"), (2, "infinite"), (3, "-inf")):
        assert isinstance(drawn[row], GenerationFailed)
        assert word in str(drawn[row])
    assert (drawn[0], drawn[4]) == (good[0], good[4])


def test_all_but_one_ruled_out_is_no_failure() -> None:
    logits = torch.full((len(SAMPLINGS), 300), -math.inf)
    logits[:, 42] = -7.0
    drawn = Sampler().draw(logits, [sequence(made=[42], **values) for values in SAMPLINGS])
    assert [token(d) for d in drawn] == [42] * len(SAMPLINGS)


def test_bias_beyond_the_vocabulary() -> None:
    logits = random_logits(3, 300)
    rows = [sequence(), sequence(logit_bias={300: 5.0}, temperature=1.0), sequence(logit_bias={299: 100.0})]
    drawn = Sampler().draw(logits, rows)
    assert token(drawn[0]) == int(logits[0].argmax())
    assert isinstance(drawn[1], GenerationFailed)
    assert "300" in str(drawn[1])
    assert token(drawn[2]) == 299
    check_sampling(rows[2].sampling, 300)
    for bad in (300, -1):
        with pytest.raises(InvalidRequest, match=f"token {bad}"):
            check_sampling(Sampling(logit_bias={bad: 1.0}), 300)


def test_shapes() -> None:
    assert Sampler().draw(torch.zeros(0, 10), []) == []
    with pytest.raises(ValueError, match="1 sequences"):
        Sampler().draw(torch.zeros(2, 10), [sequence()])
    assert Sampler().draw(torch.zeros(1, 1), [sequence(temperature=1.0, top_p=0.5, logprobs=20)]) == [
        Drawn(0, 0.0, ((0, 0.0),))
    ]
