"""The lane of one model: joined calls give what each gives alone, or are not joined."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kamado.contracts import Work
from kamado.tasks.library.lane import HostLane, ModelLane
from kamado.tasks.library.standin import ModelCall, stand_in

from .toys import Autoencoder, Counted, Denoiser, Mixer


def lane(**options: Any) -> ModelLane:
    return ModelLane("lane", step_budget=1 << 20, max_rows=8, **options)


def call(model: nn.Module, *args: Any, method: str = "forward", **kwargs: Any) -> ModelCall:
    """What the stand-in of a fresh request hands over."""
    calls: list[ModelCall] = []
    view = stand_in(model, calls.append)
    (view if method == "forward" else getattr(view, method))(*args, **kwargs)
    return calls[0]


def run(over: ModelLane, calls: Sequence[ModelCall]) -> list[Any]:
    works = [over.work(each) for each in calls]
    assert len({work.key for work in works}) == 1
    return over.run(works)


def samples(*rows: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, 2, 2, generator=generator) for count in rows]


def test_a_call_that_is_alone_is_the_librarys() -> None:
    class Picky(nn.Module):
        def forward(self, sample: Tensor, timestep: Any, *, options: Any) -> Any:
            return sample, timestep, options

    over, options = lane(), {"a": object()}
    (sample,) = samples(1)
    time = torch.tensor(3)
    (result,) = run(over, [call(Picky(), sample, time, options=options)])
    assert result[0] is sample
    assert result[1] is time
    assert result[2] is options
    assert over.joins == {}


def test_a_call_without_rows_is_made_alone() -> None:
    class Numbers(nn.Module):
        def forward(self, *numbers: int) -> int:
            return sum(numbers)

    over, model = lane(), Numbers()
    works = [over.work(call(model, 1, 2)), over.work(call(model, 1, 2)), over.work(call(Denoiser(), torch.zeros(3), 1))]
    assert len({work.key for work in works}) == 3
    assert [over.run([work]) for work in works[:2]] == [[3], [3]]


@pytest.mark.parametrize("trusted", [True, False])
@settings(max_examples=25)
@given(rows=st.lists(st.integers(1, 3), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_joined_gives_what_alone_gives(trusted: bool, rows: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model, over = Denoiser(), lane(trusted=trusted)
    calls = [
        call(model, sample, torch.tensor(number), torch.full((len(sample), 4, 2), float(number)))
        for number, sample in enumerate(samples(*rows, seed=seed))
    ]
    wanted = [each.run() for each in calls]
    for repeat in range(2):
        model.batches.clear()
        for found, alone in zip(run(over, calls), wanted, strict=True):
            assert torch.allclose(found, alone, atol=1e-6)
        together = trusted or repeat
        assert model.batches == ([sum(rows)] if together else [sum(rows), *rows])
    assert list(over.joins.values()) == ([] if trusted else [True])


def test_calls_that_were_joined_are_told_and_no_others() -> None:
    model, over = Denoiser(), lane()
    told: list[int] = []
    calls = [call(model, sample, 1, torch.ones(len(sample), 4, 2)) for sample in samples(1, 2)]

    def works() -> list[Work]:
        return [over.work(each, on_joined=functools.partial(told.append, number)) for number, each in enumerate(calls)]

    over.run(works())  # compared: what each got was made alone
    over.run(works()[:1])
    assert told == []
    over.run(works())
    assert told == [0, 1]
    apart = Mixer()
    calls = [call(apart, sample) for sample in samples(1, 2)]
    for _ in range(2):
        over.run(works())
    assert told == [0, 1]


def test_the_cost_is_rows_by_positions() -> None:
    over, model = lane(), Autoencoder()
    work = over.work(call(Denoiser(), torch.zeros(2, 3, 8, 4), 1))
    assert (work.lane, work.cost) == ("lane", 64)
    picture = torch.zeros(1, 3, 64, 64)
    assert over.work(call(model, picture, method="encode")).cost == 64
    assert over.work(call(model, picture[..., :8, :8], method="decode")).cost == 64
    assert over.work(call(model, picture[..., :2, :2], method="encode")).cost == 1


class TrainedNorm(Counted):
    """Batch norm in the mode for training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, sample: Tensor) -> Tensor:
        self.batches.append(len(sample))
        found: Tensor = self.norm(sample)
        return found


class Unsplittable(Counted):
    """Its result has no rows."""

    def forward(self, sample: Tensor) -> Any:
        self.batches.append(len(sample))
        return sample, sample.sum()


class Guiding(Counted):
    """Takes the rows of one call for a pair."""

    def forward(self, sample: Tensor) -> Tensor:
        self.batches.append(len(sample))
        if len(sample) == 1:
            return sample * 2
        with_text, without = sample.chunk(2)
        return torch.cat([without + 2 * (with_text - without), without])


class Single(Counted):
    """Takes one row only."""

    def forward(self, sample: Tensor) -> Tensor:
        self.batches.append(len(sample))
        if len(sample) > 2:
            raise ValueError("one at a time")
        return sample + 1


@pytest.mark.parametrize("kind", [Mixer, TrainedNorm, Unsplittable, Guiding, Single])
def test_a_model_that_cannot_be_joined_is_found_out_once(kind: Callable[[], Any]) -> None:
    model, over = kind(), lane()
    calls = [call(model, sample) for sample in samples(2, 2, 2)]
    wanted = [each.run() for each in calls]
    for repeat in range(3):
        model.batches.clear()
        results = run(over, calls)
        assert str(results) == str(wanted)
        assert model.batches == ([2, 2, 2] if repeat else [6, 2, 2, 2])
    assert list(over.joins.values()) == [False]


def test_numbers_of_rows_are_judged_apart() -> None:
    """A model that takes rows for pairs shows nothing of it while calls have one row."""
    model, over = Guiding(), lane()
    single = [call(model, sample) for sample in samples(1, 1)]
    double = [call(model, sample) for sample in samples(2, 2)]
    model.batches.clear()
    wanted = [each.run() for each in double]
    for _ in range(2):
        run(over, single)
        assert all(torch.equal(a, b) for a, b in zip(run(over, double), wanted, strict=True))
    assert len(over.joins) == 2


def test_calls_that_are_all_alike_settle_nothing() -> None:
    """A mean over the batch of equal rows is each row's own: as with several pictures for one prompt."""
    model, over = Mixer(), lane()
    (sample,) = samples(1)
    for _ in range(2):
        model.batches.clear()
        results = run(over, [call(model, sample), call(model, sample.clone())])
        assert all(not result.any() for result in results)
        assert model.batches == [2, 1, 1]
    assert over.joins == {}
    calls = [call(model, sample) for sample in samples(1, 1)]
    assert all(not result.any() for result in run(over, calls))
    assert list(over.joins.values()) == [False]


def test_a_shared_table_taken_for_rows_by_chance_is_found_out() -> None:
    class Tabled(nn.Module):
        def forward(self, sample: Tensor, table: Tensor) -> Tensor:
            return sample + table[0].sum()

    model, over = Tabled(), lane()
    plain, chance = torch.ones(5, 2), torch.ones(2, 2)
    usual = [call(model, sample, plain) for sample in samples(2, 2)]
    by_chance = [call(model, sample, chance * (number + 1)) for number, sample in enumerate(samples(2, 2))]
    wanted = [each.run() for each in by_chance]
    run(over, usual)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run(over, by_chance), wanted, strict=True))
    assert sorted(over.joins.values()) == [False, True]


def test_a_fault_of_one_call_is_no_verdict() -> None:
    class Refusing(nn.Module):
        def forward(self, sample: Tensor) -> Tensor:
            if (sample > 100).any():
                raise ValueError("too large")
            return sample * 2

    model, over = Refusing(), lane()
    good = [call(model, sample) for sample in samples(1, 1)]
    with pytest.raises(ValueError, match="too large"):
        run(over, [*good, call(model, torch.full((1, 3, 2, 2), 200.0))])
    assert over.joins == {}
    run(over, good)
    assert list(over.joins.values()) == [True]
    with pytest.raises(ValueError, match="too large"):
        run(over, [*good, call(model, torch.full((1, 3, 2, 2), 200.0))])
    assert list(over.joins.values()) == [True]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("host"),
        torch.OutOfMemoryError("device"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_running_out_of_memory_is_no_verdict(error: Exception) -> None:
    class Large(nn.Module):
        def forward(self, sample: Tensor) -> Tensor:
            if len(sample) > 2:
                raise error
            return sample * 2

    model, over = Large(), lane()
    calls = [call(model, sample) for sample in samples(1, 1, 1)]
    with pytest.raises(type(error)):
        run(over, calls)
    assert over.joins == {}
    run(over, calls[:2])
    assert list(over.joins.values()) == [True]


def test_a_lighter_call_takes_the_place_of_one_and_tells_when_it_was_made() -> None:
    model, told = Autoencoder(), []

    def lighter(each: ModelCall) -> ModelCall | None:
        if each.module.use_tiling:
            return None
        module: Any = copy.copy(each.module)
        module.enable_tiling()
        return dataclasses.replace(each, module=module)

    over = lane(lighter=lighter)
    work = over.work(call(model, torch.ones(1, 2), method="decode"), on_eased=lambda: told.append("eased"))
    (plain,) = over.run([work])
    assert told == []
    eased = over.ease(work)
    assert eased is not None
    assert over.ease(eased) is None
    assert told == []
    (tiled,) = over.run([eased])
    assert told == ["eased"]
    assert torch.equal(tiled, plain - 1)
    assert not model.use_tiling
    assert lane().ease(work) is None
    assert HostLane("host", 1).ease(work) is None


def test_calls_with_other_settings_methods_states_or_autocast_do_not_meet() -> None:
    over, model = lane(), Autoencoder()
    tiled: list[ModelCall] = []
    view = stand_in(model, tiled.append)
    view.enable_tiling()
    x = torch.ones(1, 2)
    view.decode(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = call(model, x, method="decode")
    plain = call(model, x, method="decode")
    works = [
        over.work(plain),
        over.work(plain, "adapter"),
        over.work(tiled[0]),
        over.work(cast),
        over.work(call(model, x, method="encode")),
        over.work(call(model, x)),
    ]
    assert len({work.key for work in works}) == len(works)
    assert over.work(call(model, x + 1, method="decode")).key == works[0].key


def test_forwards_run_in_the_state_that_the_calls_ask_for() -> None:
    states: list[Any] = []

    @contextmanager
    def around(state: Any) -> Any:
        states.append(state)
        yield
        states.append("out")

    class Seeing(nn.Module):
        def forward(self, sample: Tensor) -> Tensor:
            return sample + len(states)

    model, over = Seeing(), lane(around=around, trusted=True)
    works = [over.work(call(model, sample), "a") for sample in samples(1, 1)]
    over.run(works)
    over.run(works[:1])
    assert states == ["a", "out", "a", "out"]


def test_the_generator_of_a_model_that_draws_nothing_keeps_nobody_apart() -> None:
    class Decoder(nn.Module):
        def forward(self, z: Tensor, generator: Any = None) -> Tensor:
            return z + 1

    for without_effect, keys in ((frozenset({"generator"}), 1), (frozenset(), 2)):
        over, model = lane(trusted=True, without_effect=without_effect), Decoder()
        works = [over.work(call(model, sample, generator=torch.Generator())) for sample in samples(1, 1)]
        assert len({work.key for work in works}) == keys
        results = over.run(works) if keys == 1 else [over.run([work])[0] for work in works]
        assert all(torch.equal(found, sample + 1) for found, sample in zip(results, samples(1, 1), strict=True))


def test_the_lane_of_the_host_runs_what_it_is_given() -> None:
    over = HostLane("start", 4)
    assert over.run([Work("start", "start", 1, None)] * 2) == [None, None]
    assert over.run([Work("start", object(), 1, lambda: 5)]) == [5]
