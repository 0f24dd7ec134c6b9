"""Useless pictures are told from dark ones."""

from __future__ import annotations

import numpy as np
import pytest

from kamado.media.guards import blank_reason

PICTURE = np.linspace(0, 1, 4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)


def changed(value: float) -> np.ndarray:
    picture = PICTURE.copy()
    picture[1, 2, 0] = value
    return picture


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (PICTURE, None),
        (PICTURE.astype(np.float16), None),
        (np.ones((4, 5, 3)), None),
        (np.full((4, 5, 3), 1 / 255), None),
        (np.full((4, 5, 1), 0.5), None),
        (changed(np.nan), "NaN"),
        (changed(np.inf), "NaN or infinity"),
        (np.full((4, 5, 3), np.nan), "NaN"),
        (np.zeros((4, 5, 3)), "all black"),
        (np.zeros((4, 5, 1), np.float16), "all black"),
        (np.full((4, 5, 3), 0.9 / 255), "all black"),
        (np.concatenate([np.zeros((4, 5, 3)), np.ones((4, 5, 1))], axis=2), "all black"),
        (np.zeros((0, 5, 3)), "no pixels"),
    ],
)
def test_blank_reason(picture: np.ndarray, reason: str | None) -> None:
    found = blank_reason(picture)
    assert (found is None) if reason is None else (found is not None and reason in found)
