"""The runtime that most comparisons run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kamado


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made
