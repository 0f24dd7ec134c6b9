"""Results of encoders that are kept: equal calls are made once, nobody can change what others get."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from kamado.memory.ledger import Ledger
from kamado.tasks.library.kept import Keeping, KeptOutputs, copied, size_of
from kamado.tasks.library.lane import ModelLane
from kamado.tasks.library.standin import ModelCall, stand_in

from .toys import Counted


class Encoder(Counted):
    """Computes each row for itself, from whole numbers (rows, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.noisy = False

    def forward(self, ids: Tensor, factor: float = 1.0, *, extra: Any = None) -> dict[str, Tensor]:
        self.batches.append(len(ids))
        states = self.table(ids) * factor
        if self.noisy:
            states = states + torch.rand(())
        return {"last": states, "first": states[:, 0].clone()}


class House:
    """An encoder's lane, with results that are kept."""

    def __init__(self, *, budget: int = 1 << 20, most: int = 1 << 16, lasting: Any = lambda state: (state,)) -> None:
        self.model = Encoder().eval().requires_grad_(False)
        self.ledger = Ledger({"cpu": budget})
        self.outputs = KeptOutputs(self.ledger, "cpu", "model", most_bytes=most)
        keeping = Keeping(outputs=self.outputs, component="text", methods=("forward",), lasting=lasting)
        self.lane = ModelLane("text", step_budget=1 << 20, max_rows=8, trusted=True, keeping=keeping)
        self.joined: list[int] = []

    def call(self, *args: Any, set_up: Any = None, **kwargs: Any) -> ModelCall:
        """What the stand-in of a fresh request hands over."""
        calls: list[ModelCall] = []
        view = stand_in(self.model, calls.append)
        if set_up is not None:
            set_up(view)
        view(*args, **kwargs)
        return calls[0]

    def run(self, calls: Sequence[ModelCall], state: Hashable = None) -> list[Any]:
        """In one batch."""
        self.joined = []
        works = [self.lane.work(each, state, lambda n=n: self.joined.append(n)) for n, each in enumerate(calls)]  # type: ignore[misc]
        assert len({work.key for work in works}) == 1
        with torch.inference_mode():
            return self.lane.run(works)

    def figures(self) -> tuple[int, int]:
        found = self.outputs.figures()
        assert self.ledger.held("cpu", "model", "outputs") == found["bytes"] == self.outputs.idle_bytes()
        return found["made"], found["again"]


def ids(*numbers: int) -> Tensor:
    return torch.tensor([numbers])


def test_equal_calls_are_made_once_whenever_they_come() -> None:
    house = House()
    first, second, third = house.run([house.call(ids(1, 2)) for _ in range(3)])
    (later,) = house.run([house.call(ids(1, 2))])
    assert house.model.batches == [1] and house.joined == []
    with torch.inference_mode():
        wanted = house.model(ids(1, 2))
    for found in (first, second, third, later):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    house.run([house.call(ids(1, 3))])
    house.run([house.call(ids(1, 2), 2.0)])
    assert house.model.batches == [1, 1, 1, 1]
    assert house.figures() == (3, 3)


def test_nobody_changes_what_others_get() -> None:
    house = House()
    results = house.run([house.call(ids(1, 2)) for _ in range(2)])
    wanted = results[0]["last"].clone()
    for _ in range(3):
        with torch.inference_mode():
            for found in results:
                found["last"].fill_(7.0)
                found["first"].mul_(0.0)
        results = house.run([house.call(ids(1, 2)), house.call(ids(1, 2))])
        assert all(torch.equal(found["last"], wanted) for found in results)
        assert all(torch.equal(found["first"], wanted[:, 0]) for found in results)
    assert house.model.batches == [1]


def test_a_call_alone_gets_nothing_that_was_joined() -> None:
    house = House()
    house.run([house.call(ids(1, 2)), house.call(ids(3, 4)), house.call(ids(3, 4))])
    assert house.model.batches == [2] and house.joined == [0, 1, 2]
    house.run([house.call(ids(3, 4)), house.call(ids(1, 2))])  # they would be joined again
    assert house.model.batches == [2] and house.joined == [0, 1]
    house.run([house.call(ids(1, 2))])
    assert house.model.batches == [2, 1] and house.joined == []
    house.run([house.call(ids(5, 6)), house.call(ids(1, 2))])  # one of them is exact, so the other one is alone
    assert house.model.batches == [2, 1, 1] and house.joined == []
    house.run([house.call(ids(3, 4)), house.call(ids(1, 2))])
    assert house.model.batches == [2, 1, 1, 1] and house.joined == []


def test_settings_and_states_are_told_apart() -> None:
    house = House()
    house.run([house.call(ids(1, 2))])
    house.run([house.call(ids(1, 2))], state="adapter")
    house.run([house.call(ids(1, 2))], state="adapter")
    assert house.model.batches == [1, 1]
    for scale in (0.5, 0.5, 0.7):
        house.run([house.call(ids(1, 2), set_up=lambda view, scale=scale: setattr(view, "scale", scale))])
    assert len(house.model.batches) == 4
    # Another request's object may get the number of one that has gone.
    for _ in range(2):
        house.run([house.call(ids(1, 2), set_up=lambda view: setattr(view, "extra", object())) for _ in range(1)])
    assert len(house.model.batches) == 6


def test_what_is_not_known_is_made() -> None:
    house = House()
    for _ in range(2):
        house.run([house.call(ids(1, 2), extra=SimpleNamespace())])
    assert len(house.model.batches) == 2
    unknown = House(lasting=lambda state: None)
    for _ in range(2):
        unknown.run([unknown.call(ids(1, 2)) for _ in range(2)])
    assert unknown.model.batches == [1, 1] and unknown.outputs.figures()["kept"] == 0
    training = House()
    training.model.train()
    for _ in range(2):
        training.run([training.call(ids(1, 2))])
    assert len(training.model.batches) == 2


def test_draws_of_everybodys_random_numbers_are_not_shared() -> None:
    house = House()
    house.model.noisy = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = house.run([house.call(ids(1, 2)) for _ in range(3)])
        house.run([house.call(ids(1, 2))])
    assert len(house.model.batches) == 4
    assert len({float(found["last"].sum()) for found in results}) == 3
    assert house.outputs.figures()["kept"] == 0


def test_what_was_not_used_for_longest_goes() -> None:
    house = House(most=3 * (2 + 1) * 4 * 4)  # of three calls
    for numbers in ((1, 2), (3, 4), (5, 6), (1, 2), (7, 8), (1, 2), (5, 6), (3, 4)):
        house.run([house.call(ids(*numbers))])
    assert house.figures() == (5, 3)
    house.run([house.call(torch.zeros(1, 40, dtype=torch.long))])  # more than there is room for
    assert house.outputs.figures()["kept"] == 3


def test_the_ledger_decides_and_gets_it_back() -> None:
    house = House(budget=2 * 48 + 10)
    for numbers in ((1, 2), (3, 4), (5, 6)):
        house.run([house.call(ids(*numbers))])
    assert house.outputs.figures()["kept"] == 2
    assert house.figures() == (3, 0)
    assert house.outputs.trim() == 96 and house.outputs.trim() == 0
    assert house.ledger.held() == 0
    house.run([house.call(ids(1, 2))])
    assert house.figures() == (4, 0)


def test_a_forward_that_fails_leaves_nothing() -> None:
    house = House()
    with pytest.raises(IndexError):
        house.run([house.call(ids(1, 99)) for _ in range(2)])
    assert house.ledger.held() == 0 and house.outputs.figures()["kept"] == 0
    house.run([house.call(ids(1, 2))])
    assert house.figures()[0] == 2


@given(
    left=st.sampled_from([1, 1.0, True, 0.0, -0.0, "1", None]),
    right=st.sampled_from([1, 1.0, True, 0.0, -0.0, "1", None]),
)
def test_plain_arguments_are_equal_only_if_they_are_the_same(left: Any, right: Any) -> None:
    house = House()
    for value in (left, right):
        house.run([house.call(ids(1, 2), extra=value)])
    same = type(left) is type(right) and repr(left) == repr(right)
    assert len(house.model.batches) == (1 if same else 2)


def test_copies_of_all_that_encoders_return() -> None:
    states = torch.arange(8.0).view(1, 8, 1, 1)
    cache = DynamicCache()
    cache.update(torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    result = {"last": states, "all": (states, states + 1), "latents": DiagonalGaussianDistribution(states + 2)}
    whole = {**result, "cache": cache, "flag": True}
    assert size_of(whole) == (3 * 8 + 2 * 24) * 4
    found = copied(whole)
    assert found["last"] is found["all"][0] and found["flag"] is True
    assert torch.equal(found["latents"].mean, result["latents"].mean)
    for own, other in ((found["last"], states), (found["cache"].layers[0].keys, cache.layers[0].keys)):
        assert torch.equal(own, other) and own.data_ptr() != other.data_ptr()
    found["cache"].layers[0].keys.zero_()
    assert bool((cache.layers[0].keys == 1).all())
    assert size_of({"last": states, "first": states[:, 0]}) is None  # writing into one would change the other
    assert size_of({"what": SimpleNamespace()}) is None
