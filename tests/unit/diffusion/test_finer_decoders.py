"""float32 copies of decoders and the ledger: what could not be made is not held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from failing_device import FailingDevice
from kamado.memory.ledger import Ledger
from kamado.tasks.library.standin import ModelCall
from kamado_models.diffusion.guards import FinerDecoders

HELD = 4 * 20


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(4, 4).half()

    def decode(self, z: Tensor) -> Tensor:
        found: Tensor = self.decoder(z)
        return found


def test_a_copy_that_memory_does_not_suffice_for_leaves_the_ledger_as_it_was() -> None:
    ledger, device = Ledger({"cpu": 1000}), FailingDevice()
    finer = FinerDecoders(ledger, "cpu", "model")
    call = ModelCall(
        module=Overflowing(), method="decode", arguments={"z": torch.ones(1, 4).half()}, autocast=(), settings=()
    )
    black = torch.full((1, 4), float("nan"))
    with device:
        assert FinerDecoders(Ledger({"cpu": 1000}), "cpu", "model").finer("vae", call, black) is not None
    for number in range(1, device.count + 1):
        device.rest()
        device.fails = range(number, number + 1)
        with device, pytest.raises(MemoryError):
            finer.finer("vae", call, black)
        assert ledger.held() == (HELD if finer._copies else 0)
    assert finer._copies, "the last operations are those on the call's own numbers"
    device.rest()
    better = finer.finer("vae", call, black)
    assert better is not None
    assert next(better.module.parameters()).dtype == torch.float32
    assert ledger.held() == HELD
