"""PSNR and structural similarity."""

from __future__ import annotations

import numpy as np
import pytest

from kamado_models.diffusion.similarity import psnr, ssim


def picture(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).random((size, size, 3), dtype=np.float32)


def test_equal_pictures() -> None:
    assert psnr(picture(1), picture(1)) == 100.0
    assert ssim(picture(1), picture(1)) == pytest.approx(1.0)


def test_psnr_of_a_known_error() -> None:
    one = picture(1) * 0.8
    assert psnr(one, one + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)


def test_ssim_of_a_constant_shift() -> None:
    """With no variance only the term of the means is left."""
    dark, bright = np.full((16, 16, 3), 0.2, np.float32), np.full((16, 16, 3), 0.6, np.float32)
    c1 = 0.01**2
    assert ssim(dark, bright) == pytest.approx((2 * 0.12 + c1) / (0.04 + 0.36 + c1), rel=1e-5)


def test_noise_is_worse_than_a_little_noise() -> None:
    one = picture(1)
    little, much = (np.clip(one + amount * (picture(2) - 0.5), 0, 1) for amount in (0.05, 0.8))
    assert 1 > ssim(one, little) > ssim(one, much)
    assert ssim(one, picture(3)) < 0.2


def test_pictures_smaller_than_the_window() -> None:
    assert ssim(picture(1, 4), picture(1, 4)) == pytest.approx(1.0)
