"""RowLane and RowMemory against transformers' own `generate`, for models that keep one library cache a sequence."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.generation.utils  # noqa: F401  torch._dynamo sets an environment variable when first imported
from torch import Tensor

from kamado.contracts import Work
from kamado.errors import GenerationFailed
from kamado.requests import Sampling
from kamado.sequence import Drawn, TextStep, TokenSequence
from kamado_models.language.rows import RowLane, RowMemory, RowMode, StateSize, measure_state, probe
from tiny import ARCHITECTURES, Oracle, build
from tiny_configs import VOCAB

RAGGED_CHUNKED = RowMode(stackable=True, ragged=True, chunked=True)
RAGGED = RowMode(stackable=True, ragged=True, chunked=False)
EQUAL_CHUNKED = RowMode(stackable=True, ragged=False, chunked=True)
ALONE_CHUNKED = RowMode(stackable=False, ragged=False, chunked=True)
MODES = {
    **dict.fromkeys(("bloom", "mpt", "falcon", "falcon_alibi", "gptj", "codegen", "gemma3n"), RAGGED_CHUNKED),
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1", "granitemoehybrid"), RAGGED_CHUNKED),
    **dict.fromkeys(("qwen3_next", "lfm2"), RAGGED_CHUNKED),
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "recurrent_gemma", "zamba2", "nemotron_h"), RAGGED),
    "rwkv": ALONE_CHUNKED,
    **dict.fromkeys(("t5", "t5_gated", "umt5"), RAGGED_CHUNKED),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100"), EQUAL_CHUNKED),
}
"""What the probe is expected to find."""
NOT_RESUMABLE = {"zamba2", "nemotron_h"}
"""transformers clamps their time steps in a prefill, but not in a decode step."""
EQUAL_PROMPTS = {"rwkv", "recurrent_gemma"}
"""Causal models whose recurrent layers know no padding."""
NUM_NEW = 10
PROMPT_LENGTHS = (5, 21, 12, 3, 21, 30)


class Greedy:
    """A sampler that takes the best token."""

    def draw(self, logits: Tensor, sequences: Sequence[TokenSequence]) -> list[Drawn | Exception]:
        assert logits.shape == (len(sequences), VOCAB)
        return [Drawn(token) for token in logits.argmax(dim=-1).tolist()]


@dataclass
class Subject:
    """One tiny model and what is known of it."""

    oracle: Oracle
    mode: RowMode
    size: StateSize
    answers: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def answer(self, prompt: list[int]) -> list[int]:
        """What transformers' `generate` answers."""
        key = tuple(prompt)
        if key not in self.answers:
            self.answers[key] = self.oracle.greedy(prompt, NUM_NEW)
        return self.answers[key]

    @property
    def model(self) -> Any:
        return self.oracle.model

    def loop(self, *, max_rows: int = 8, chunk: int | None = None, max_sequences: int = 8, tokens: int = 512) -> Loop:
        lane = RowLane(
            name="text",
            model=self.model,
            config=self.model.config,
            mode=self.mode,
            sampler=Greedy(),
            max_rows=max_rows,
            step_budget=64,
        )
        each = self.size.per_sequence + tokens * self.size.per_token + 64 * self.size.per_source_token
        memory = RowMemory(
            mode=self.mode,
            budget_bytes=max_sequences * each,
            bytes_per_token=self.size.per_token,
            bytes_per_sequence=self.size.per_sequence,
            bytes_per_source_token=self.size.per_source_token,
            max_sequences=max_sequences,
        )
        return Loop(lane, memory, chunk if self.mode.chunked else None)

    def sequence(self, name: str, prompt: list[int]) -> TokenSequence:
        start = [self.model.config.decoder_start_token_id] if self.oracle.encoder_decoder else list(prompt)
        return TokenSequence(
            id=name,
            tokens=start,
            num_prompt=len(start),
            sampling=Sampling(),
            seed=0,
            source=tuple(prompt) if self.oracle.encoder_decoder else (),
        )


@dataclass
class Loop:
    """Pick the largest group of equal keys, prompts first, run it, accept: the engine in small."""

    lane: RowLane
    memory: RowMemory
    chunk: int | None
    live: list[TokenSequence] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def works(self) -> list[Work]:
        works = []
        for sequence in self.live:
            missing = len(sequence.tokens) - sequence.num_computed
            num_new = min(missing, self.chunk or missing)
            if self.memory.acquire(sequence, sequence.num_computed + num_new):
                step = TextStep(sequence, num_new, num_new == missing)
                works.append(Work("text", self.memory.key(sequence, num_new), num_new, step))
        return works

    def step(self) -> None:
        groups: dict[Any, list[Work]] = {}
        for work in self.works():
            groups.setdefault(work.key, []).append(work)
        batch = max(groups.values(), key=lambda group: (group[0].key[0] != "decode", len(group)))[: self.lane.max_rows]
        self.batches.append(len(batch))
        for work, result in zip(batch, self.lane.run(batch), strict=True):
            self.accept(work.payload, result)
        self.memory.check_integrity()

    def accept(self, step: TextStep, result: Any) -> None:
        sequence = step.sequence
        sequence.num_computed += step.num_new
        self.memory.committed(sequence)
        assert (result is not None) == step.sample
        if step.sample:
            sequence.tokens.append(result.token_id)
        if sequence.num_made == NUM_NEW:
            self.live.remove(sequence)
            self.memory.release(sequence)

    def finish(self) -> None:
        while self.live:
            self.step()
        assert self.memory.used_bytes == 0 and self.memory.num_sequences == 0
        self.memory.check_integrity()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("rows")

    @functools.cache
    def subject(name: str) -> Subject:
        oracle = Oracle(build(name, folder / name))
        mode = probe(oracle.model, oracle.model.config, VOCAB)
        return Subject(oracle, mode, measure_state(oracle.model, oracle.model.config))

    return subject


def prompts_of(name: str) -> list[list[int]]:
    numbers = random.Random(name)
    return [[numbers.randrange(8, VOCAB) for _ in range(length)] for length in PROMPT_LENGTHS]


@pytest.mark.parametrize("name", MODES)
def test_probe_finds_the_mode_and_leaves_nothing_behind(name: str, checkpoints: Any) -> None:
    subject = checkpoints(name)
    before = torch.get_rng_state()
    again = probe(subject.model, subject.model.config, VOCAB)
    assert again == subject.mode
    assert torch.equal(before, torch.get_rng_state())
    found = (subject.mode.stackable, subject.mode.ragged, subject.mode.chunked)
    wanted = MODES[name]
    assert found == (wanted.stackable, wanted.ragged, wanted.chunked), subject.mode.notes
    assert subject.mode.resumable == (name not in NOT_RESUMABLE)
    if name != "zamba2":  # so sensitive to the order of additions that it may go either way
        assert subject.mode.ragged_prompts == (name not in EQUAL_PROMPTS and not subject.oracle.encoder_decoder)
    for module in subject.model.modules():
        assert all(vars(module).get(state) is None for state in ("conv1d_state", "recurrent_states"))


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("name", MODES)
def test_tokens_are_those_of_generate(name: str, chunk: int | None, checkpoints: Any) -> None:
    """Sequences of different lengths join one by one, in batches that change, and some are started over."""
    subject = checkpoints(name)
    prompts = prompts_of(name)
    loop = subject.loop(chunk=chunk, max_rows=4)
    sequences = [subject.sequence(f"s{i}", prompt) for i, prompt in enumerate(prompts)]
    for number, sequence in enumerate(sequences):
        loop.live.append(sequence)
        for _ in range(3):
            loop.step()
        if number == 3 and subject.mode.resumable:
            preempted = loop.live[0]
            loop.memory.release(preempted)
            preempted.num_computed = 0
    loop.finish()
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens[sequence.num_prompt :] == subject.answer(prompt)
    if subject.mode.ragged:
        assert max(loop.batches) == 4


@pytest.mark.parametrize("name", MODES)
def test_a_failing_forward_changes_nothing(name: str, checkpoints: Any) -> None:
    """Forwards break half-way through the layers or at their very end; the works are then run again, in halves."""
    subject = checkpoints(name)
    prompts = prompts_of(name)[:4]
    loop = subject.loop()
    sequences = [subject.sequence(f"s{i}", prompt) for i, prompt in enumerate(prompts)]
    loop.live.extend(sequences)
    calls = 0

    def break_now(module: Any, arguments: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise RuntimeError("injected")

    layers = [m for path, m in subject.model.named_modules() if path.endswith((".layers", ".h", ".blocks", ".block"))]
    hooks = [part.register_forward_hook(break_now) for part in (layers[-1][1], subject.model.get_output_embeddings())]
    try:
        failures = 0
        while loop.live:
            batches, live = list(loop.batches), list(loop.live)
            lengths = [(len(s.tokens), s.num_computed) for s in sequences]
            try:
                loop.step()
            except RuntimeError as error:
                assert str(error) == "injected"
                failures += 1
                assert lengths == [(len(s.tokens), s.num_computed) for s in sequences] and live == loop.live
                loop.lane.max_rows = max(1, (loop.batches[len(batches)] + 1) // 2)
    finally:
        for hook in hooks:
            hook.remove()
    assert failures > 3
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens[sequence.num_prompt :] == subject.answer(prompt)


@pytest.mark.parametrize("name", ["bloom", "mamba", "recurrent_gemma", "bart"])
def test_a_failing_sampler_changes_nothing(name: str, checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = checkpoints(name)
    prompt = prompts_of(name)[1]
    loop = subject.loop()
    sequence = subject.sequence("s", prompt)
    loop.live.append(sequence)
    draw = Greedy.draw

    def refuse(*arguments: Any) -> list[Drawn | Exception]:
        raise FloatingPointError

    while loop.live:
        monkeypatch.setattr(Greedy, "draw", refuse)
        with pytest.raises(FloatingPointError):
            loop.step()
        monkeypatch.setattr(Greedy, "draw", draw)
        loop.step()
    assert sequence.tokens[sequence.num_prompt :] == subject.answer(prompt)


def test_a_row_that_has_no_token_fails_alone(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = checkpoints("bloom")
    loop = subject.loop()
    sequences = [subject.sequence(f"s{i}", prompt) for i, prompt in enumerate(prompts_of("bloom")[:3])]
    loop.live.extend(sequences)
    error = GenerationFailed("no finite logit")
    monkeypatch.setattr(Greedy, "draw", lambda self, logits, rows: [error] + [Drawn(9)] * (len(rows) - 1))
    works = loop.works()
    results = loop.lane.run(works)
    assert results.count(error) == 1 and results.count(Drawn(9)) == 2


@pytest.mark.parametrize("name", ["bloom", "mamba", "jamba", "t5"])
def test_rows_stay_joined_while_they_come_together(name: str, checkpoints: Any) -> None:
    subject = checkpoints(name)
    loop = subject.loop()
    loop.live.extend(subject.sequence(f"s{i}", prompt) for i, prompt in enumerate(prompts_of(name)[:3]))
    while any(sequence.num_made == 0 for sequence in loop.live):
        loop.step()
    loop.step()
    batch = loop.live[0].state.batch
    assert all(sequence.state.batch is batch for sequence in loop.live)
    indices = [sequence.state.index for sequence in loop.live]
    loop.live.reverse()
    loop.step()
    assert [sequence.state.index for sequence in reversed(loop.live)] == indices


def memory_of(mode: RowMode = RAGGED_CHUNKED, **changes: Any) -> RowMemory:
    values: dict[str, Any] = {
        "mode": mode,
        "budget_bytes": 10_000,
        "bytes_per_token": 10,
        "bytes_per_sequence": 100,
        "max_sequences": 3,
    }
    return RowMemory(**(values | changes))


def sequence_of(name: str, **changes: Any) -> TokenSequence:
    values: dict[str, Any] = {"id": name, "tokens": [1] * 100, "num_prompt": 100, "sampling": Sampling(), "seed": 0}
    return TokenSequence(**(values | changes))


def test_memory_reserves_in_blocks_and_refuses_without_change() -> None:
    memory = memory_of()
    first, second = sequence_of("a"), sequence_of("b")
    assert memory.acquire(first, 1) and memory.used_bytes == 100 + 640
    assert memory.acquire(first, 64) and memory.used_bytes == 740
    assert memory.acquire(first, 65) and memory.used_bytes == 100 + 1280
    assert not memory.acquire(second, 900) and second.state is None and memory.used_bytes == 1380
    assert not memory.acquire(first, 1000) and first.state.reserved_bytes == 1380
    memory.release(first)
    memory.release(first)
    memory.check_integrity()
    assert memory.used_bytes == 0 and memory.free_bytes == 10_000


def test_memory_counts_sequences_and_sources() -> None:
    memory = memory_of(bytes_per_source_token=5, max_sequences=1)
    first = sequence_of("a", source=(7,) * 20)
    assert memory.acquire(first, 64) and memory.used_bytes == 100 + 640 + 100
    assert not memory.acquire(sequence_of("b"), 1)
    memory.release(first)
    assert memory.acquire(sequence_of("b"), 1)


@pytest.mark.parametrize(("budget", "tokens"), [(0, 0), (99, 0), (739, 0), (740, 64), (10_000, 960)])
def test_capacity_is_what_one_sequence_can_acquire(budget: int, tokens: int) -> None:
    memory = memory_of(budget_bytes=budget)
    assert memory.capacity_tokens() == tokens
    assert not memory.acquire(sequence_of("a"), tokens + 1)
    assert tokens == 0 or memory.acquire(sequence_of("b"), tokens)


def test_keys_follow_the_mode() -> None:
    first, second = sequence_of("a"), sequence_of("b")
    for mode in (RAGGED, EQUAL_CHUNKED):
        memory = memory_of(mode)
        assert memory.key(first, 9) == memory.key(second, 9) != memory.key(second, 10)
    assert memory_of(ALONE_CHUNKED).key(first, 9) != memory_of(ALONE_CHUNKED).key(second, 9)
    first.num_computed, second.num_computed = 20, 30
    assert memory_of(RAGGED).key(first, 1) == memory_of(RAGGED).key(second, 1)
    assert memory_of(EQUAL_CHUNKED).key(first, 1) != memory_of(EQUAL_CHUNKED).key(second, 1)
    assert memory_of(RAGGED).key(first, 3) != memory_of(RAGGED).key(second, 3)
    mixed = RowMode(stackable=True, ragged=True, ragged_prompts=True, chunked=True)
    fresh = sequence_of("c")
    assert memory_of(mixed).key(fresh, 3) == memory_of(mixed).key(fresh, 30) != memory_of(mixed).key(fresh, 40)
    assert memory_of(mixed).key(fresh, 520) == memory_of(mixed).key(fresh, 600) != memory_of(mixed).key(fresh, 700)
    second.num_computed = 5000
    assert memory_of(RAGGED).key(first, 1) != memory_of(RAGGED).key(second, 1)
    free = RowMode(stackable=True, ragged=True, chunked=True, padded=False)
    assert memory_of(free).key(first, 1) == memory_of(free).key(second, 1)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rows_of_different_length_do_not_share_rotary_scaling(rope_type: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    factors = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8} if rope_type == "longrope" else {}
    rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters=rope | factors,
    )
    mode = probe(LlamaForCausalLM(config).eval(), config, VOCAB)
    assert mode.stackable and not (mode.ragged or mode.ragged_prompts or mode.chunked or mode.resumable)
    assert len(mode.notes) == 1 and rope_type in mode.notes[0]


def test_every_seq2seq_and_stateful_architecture_is_covered() -> None:
    assert set(MODES) <= set(ARCHITECTURES)
    assert {name for name, spec in ARCHITECTURES.items() if spec.encoder_decoder} <= set(MODES)


def test_checkpoints_are_written_once(checkpoints: Any, tmp_path: Path) -> None:
    assert checkpoints("bloom") is checkpoints("bloom")
