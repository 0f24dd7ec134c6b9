"""Every test here leaves the thread's modes as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kamado.tasks.library.coroutine import active_autocast


@pytest.fixture(autouse=True)
def modes_are_left_alone() -> Iterator[None]:
    def modes() -> tuple[object, ...]:
        dtypes = (torch.get_autocast_dtype(device) for device in ("cpu", "cuda"))
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), active_autocast(), *dtypes

    before = modes()
    yield
    assert modes() == before
