"""What is kept of a comparison, and what counts as broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kamado.errors import UnsupportedCheckpoint
from kamado.quality import Quality, read_quality

FINE = {"kl_divergence": 0.01, "agreement": 0.97, "perplexity": 12.0, "perplexity_ratio": 1.01}


def quality(kind: str = "text", **figures: float) -> Quality:
    return Quality(kind=kind, figures=figures, quant="int4", reference="a/b", measured_on="cpu, float32")


def test_a_good_text_model_has_no_problems() -> None:
    assert quality(**FINE).problems() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_divergence", 1.5), ("agreement", 0.2), ("perplexity_ratio", 9.0), ("agreement", float("nan"))],
)
def test_each_figure_has_a_bound(name: str, value: float) -> None:
    (problem,) = quality(**{**FINE, name: value}).problems()
    assert name.replace("_", " ") in problem


def test_a_missing_figure_is_a_problem() -> None:
    assert len(quality("image", psnr_db=30.0).problems()) == 1


def test_pictures_have_bounds_of_their_own() -> None:
    assert quality("image", psnr_db=30.0, ssim=0.9).problems() == []
    assert len(quality("image", psnr_db=5.0, ssim=0.1).problems()) == 2


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(quality(**FINE).as_json()))
    assert read_quality(file) == quality(**FINE)
    file.write_text(json.dumps({**quality(**FINE).as_json(), "quant": "int8"}))
    assert read_quality(file).quant == "int8-weight-only", "what the name meant when files had it"


@pytest.mark.parametrize(
    "told", [{}, {"kind": "smell", "figures": {}}, {"kind": "text", "figures": 3}, {"kind": ["text"]}]
)
def test_other_files_are_refused(tmp_path: Path, told: Any) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(told))
    with pytest.raises(UnsupportedCheckpoint, match="quality"):
        read_quality(file)
