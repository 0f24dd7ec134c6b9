"""Library code draws from a generator of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kamado_models.language.own_draws import OwnDraws

DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn((2, 3), dtype=torch.float64),
    "randint": lambda: torch.randint(0, 9, (4,)),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(torch.zeros(3), 1.0),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 3),
    "rand_like": lambda: torch.rand_like(torch.zeros(3)),
    "randn_like": lambda: torch.randn_like(torch.zeros(3, dtype=torch.float64)),
    "normal_": lambda: torch.empty(3).normal_(),
    "uniform_": lambda: torch.empty(3).uniform_(-1, 1),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "linear": lambda: nn.Linear(3, 3).weight.detach(),
    "embedding": lambda: nn.Embedding(3, 3).weight.detach(),
    "convolution": lambda: nn.Conv2d(2, 2, 3).weight.detach(),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.empty(3)),
    "xavier": lambda: nn.init.xavier_normal_(torch.empty(3, 3)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_host_program_keeps_its_random_numbers(name: str) -> None:
    before = torch.get_rng_state()
    with OwnDraws():
        first = DRAWS[name]()
    assert torch.equal(torch.get_rng_state(), before)
    with OwnDraws():
        again = DRAWS[name]()
    assert torch.equal(first, again)
    assert first.dtype == DRAWS[name]().dtype
    torch.set_rng_state(before)


def test_a_generator_that_is_given_is_used() -> None:
    with OwnDraws():
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))


def test_nothing_is_drawn_on_the_meta_device() -> None:
    with OwnDraws(), torch.device("meta"):
        assert nn.Linear(3, 3).weight.is_meta
        assert torch.randn(3).is_meta


def test_other_threads_draw_on_undisturbed() -> None:
    before = torch.get_rng_state()
    expected = [torch.rand(1).item() for _ in range(20)]
    torch.set_rng_state(before)
    drawn: list[float] = []

    def host() -> None:
        drawn.extend(torch.rand(1).item() for _ in range(10))

    for _ in range(2):
        with OwnDraws():
            nn.Linear(9, 9)
            thread = threading.Thread(target=host)
            thread.start()
            thread.join()
            torch.randn(5)
    assert drawn == expected
    torch.set_rng_state(before)
