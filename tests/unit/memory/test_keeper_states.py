"""Any order of loads, requests, pins, time and unloads: who is in memory is what a few lines of plain Python say."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kamado.errors import DoesNotFit, ModelNotFound

from .house import House

BUDGET = 20


@dataclass(eq=False)
class Expected:
    name: str
    size: int
    peak: int
    keep_alive_s: float | None
    pinned: bool
    users: int = 0
    last_used: float = 0.0
    here: bool = True


class Keeping(RuleBasedStateMachine):
    models = Bundle("models")

    def __init__(self) -> None:
        super().__init__()
        self.house = House(budget=BUDGET)
        self.all: list[Expected] = []

    def fits(self, size: int, peak: int, *, leaving: list[Expected]) -> bool:
        staying = [model for model in self.all if model.here and model not in leaving]
        peak = max([peak, *(model.peak for model in staying)])
        return sum(model.size for model in staying) + size + peak <= BUDGET

    def room_for(self, size: int, peak: int) -> bool:
        """Has who must leave leave; False: nobody does."""
        idle = [model for model in self.all if model.here and not model.users and not model.pinned]
        idle.sort(key=lambda model: model.last_used)
        for count in range(len(idle) + 1):
            if self.fits(size, peak, leaving=idle[:count]):
                leaving = idle[:count]
                for model in idle[:count]:
                    rest = [other for other in leaving if other is not model]
                    leaving = rest if self.fits(size, peak, leaving=rest) else leaving
                for model in leaving:
                    model.here = False
                return True
        return False

    @rule(
        target=models,
        size=st.integers(1, 12),
        peak=st.integers(0, 6),
        pinned=st.booleans(),
        keep_alive_s=st.sampled_from([None, 3, 30]),
    )
    def load(self, size: int, peak: int, pinned: bool, keep_alive_s: float | None) -> Expected:
        self.house.now += 0.01
        model = Expected(f"m{len(self.all)}", size, peak, keep_alive_s, pinned, last_used=self.house.now)
        if self.room_for(size, peak):
            self.house.load(model.name, size, peak=peak, pinned=pinned, keep_alive_s=keep_alive_s)
        else:
            model.here = False
            try:
                self.house.load(model.name, size, peak=peak)
                raise AssertionError("there was no room")
            except DoesNotFit:
                model.size = 0  # was never there
        self.all.append(model)
        return model

    def bring(self, model: Expected, broken: bool) -> bool:
        """Have it in memory, as a request or a pin does. False: it cannot be."""
        if model.size == 0:
            return False
        self.house.now += 0.01
        house, tenant = self.house, self.house.tenants[model.name]
        if broken:
            house.broken[model.name] = ModelNotFound("gone")
        room = model.here or self.room_for(model.size, model.peak)
        works = room and (model.here or not broken)
        try:
            house.keeper.use(tenant)
            assert works
        except (DoesNotFit, ModelNotFound) as error:
            assert not works and isinstance(error, ModelNotFound if room else DoesNotFit)
        house.broken.clear()
        if works:
            model.here, model.last_used = True, house.now
        return works

    @rule(model=models, broken=st.booleans())
    def submit(self, model: Expected, broken: bool) -> None:
        model.users += self.bring(model, broken)

    @rule(model=models)
    def finish(self, model: Expected) -> None:
        if model.users:
            self.house.now += 0.01
            self.house.keeper.done(self.house.tenants[model.name])
            model.users -= 1
            model.last_used = self.house.now

    @rule(model=models)
    def pin(self, model: Expected) -> None:
        if self.bring(model, broken=False):
            self.house.keeper.done(self.house.tenants[model.name])
            self.house.keeper.pin(self.house.tenants[model.name])
            model.pinned = True

    @rule(model=models)
    def unpin(self, model: Expected) -> None:
        if model.size:
            self.house.keeper.unpin(self.house.tenants[model.name])
            model.pinned = False

    @rule(model=consumes(models))
    def unload(self, model: Expected) -> None:
        if model.size:
            self.house.keeper.unload(self.house.tenants[model.name])
            model.here = False
            self.all[self.all.index(model)].size = 0

    @rule(seconds=st.sampled_from([1, 5, 50]))
    def wait(self, seconds: int) -> None:
        self.house.advance(seconds)
        for model in self.all:
            late = model.keep_alive_s is not None and self.house.now >= model.last_used + model.keep_alive_s
            if late and not model.users and not model.pinned:
                model.here = False

    @invariant()
    def the_same_are_in_memory(self) -> None:
        assert self.house.here() == sorted(model.name for model in self.all if model.here)
        assert self.house.ledger.held() <= BUDGET


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
