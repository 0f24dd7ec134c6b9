"""Adapters on a CUDA device: pictures are those of the CPU, in half precision too, and every byte is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

import kamado
import tiny_pipelines as tiny
from adapter_files import Files

OTHER_SUMS = 0.02
"""Largest difference of a pixel from the CPU's, on [0, 1]: other orders of summation."""


def requests(files: Files) -> list[dict[str, Any]]:
    usual = {**tiny.arguments("sd15"), "seed": 1}
    lora, image = str(files["lora-sd15"]), str(files["ip-adapter-sd15"])
    return [
        usual,
        {**usual, "adapters": [lora, f"{files['lora-sd15-kohya']}:0.5"]},
        {**usual, "adapters": [f"{files['embedding-sd15']}"], "prompt": f"{tiny.TOKEN} on a mat"},
        {**usual, "adapters": [image], "ip_adapter_image": tiny.picture(1)},
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", OTHER_SUMS), ("bfloat16", None), ("float16", None)])
def test_pictures_are_those_of_the_cpu(
    files: Files, dtype: str, tolerance: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path))
    with kamado.Runtime(device="cpu", memory="2GiB") as other:
        wanted = [result.pixels[0] for result in other.load(files["sd15"]).generate_many(requests(files))]
    with kamado.Runtime(device="cuda", memory="2GiB") as runtime:
        model = runtime.load(files["sd15"], dtype=dtype)
        results = [result.pixels[0] for result in model.generate_many(requests(files))]
        device = next(iter(runtime.ledger.snapshot()))
        assert runtime.ledger.snapshot()[device][model.owner]["adapters"] > 0
        model.unload()
        assert runtime.stats()["held_bytes"] == 0
    for ours, theirs in zip(results, wanted, strict=True):
        difference = numpy.abs(ours - theirs)
        assert difference.max() < tolerance if tolerance is not None else difference.mean() < 0.1
