"""How much of the new picture shows, from its outer edge to the middle of the old picture."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from kamado_models.diffusion.outpainting import _falling

few = st.integers(0, 40)


@given(st.integers(1, 60), few, few, few)
def test_it_is_all_outside_and_falls_inside(length: int, before: int, after: int, band: int) -> None:
    opacity = _falling(length, before, after, band)
    assert opacity.shape == (before + length + after,)
    assert (opacity[:before] == 1).all() and (opacity[before + length :] == 1).all()
    inside = opacity[before : before + length]
    assert ((inside >= 0) & (inside < 1)).all()
    if 2 * band < length:
        assert (inside[band : length - band] == 0).all()
    if not after:
        assert (numpy.diff(inside) <= 0).all()
    if not before and not after:
        assert not inside.any()
    assert numpy.array_equal(opacity[::-1], _falling(length, after, before, band))
