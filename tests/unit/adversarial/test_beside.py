"""Kinds beside each other in one runtime: each gives what it gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_autoencoders as tiny

from . import weights
from .restorers import photo, restorer
from .test_translation import resnet


def test_each_kind_is_the_same_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    references = {
        "generator": weights.saved(weights.stylegan2(), tmp_path / "faces.safetensors"),
        "upscaler": weights.saved(restorer("Compact"), tmp_path / "up.safetensors"),
        "translator": weights.saved(resnet().state_dict(), tmp_path / "style.safetensors"),
        "autoencoder": tiny.saved("AutoencoderKL", tmp_path)[0],
    }
    image = photo(32, 32)
    requests: dict[str, dict[str, Any]] = {
        "generator": {"seed": 1, "interpolate": [1, 2], "frames": 40},
        "upscaler": {"image": image, "tile": 16},
        "translator": {"image": image},
        "autoencoder": {"image": [image, image.rotate(90)], "task": "interpolate", "frames": 40},
    }
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        models = {name: runtime.load(reference) for name, reference in references.items()}
        alone = {name: model.generate(**requests[name]) for name, model in models.items()}
        jobs = [(name, models[name].submit(**requests[name])) for _ in range(2) for name in models]
        for name, job in jobs:
            one, two = alone[name], job.result(timeout=60)
            if one.pixels:
                assert numpy.abs(one.pixels[0] - two.pixels[0]).max() < 1e-4
            else:
                assert numpy.abs(one.video.astype(int) - two.video).max() <= 1
        held = runtime.stats()["held_bytes"]
        assert held > 0
        for model in models.values():
            model.unload()
        assert runtime.stats()["held_bytes"] == 0
