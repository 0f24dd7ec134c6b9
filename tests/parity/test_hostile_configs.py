"""config.json files that lie: a clear error, at once, from `inspect` on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
from kamado.errors import UnsupportedCheckpoint
from kamado_models.diffusion.components import _check_depth
from kamado_models.diffusion.family import DiffusionFamily


@pytest.fixture(scope="module")
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="4GiB") as runtime:
        yield runtime


def edited(folder: Path, target: Path, component: str, changes: dict[str, Any]) -> Path:
    """A copy whose `component` has other values in its config.json."""
    shutil.copytree(folder, target)
    path = target / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.parametrize(
    ("pipeline", "component", "changes"),
    [
        ("sd15", "unet", {"layers_per_block": 1_000_000}),
        ("sd15", "unet", {"layers_per_block": [1, 1_000_000]}),
        ("sd15", "unet", {"layers_per_block": 60, "transformer_layers_per_block": 60}),
        ("sd15", "unet", {"transformer_layers_per_block": [1, [1_000_000]]}),
        ("sd15", "vae", {"block_out_channels": [8] * 20_000}),
        ("sd15", "vae", {"layers_per_block": 2000}),
        ("sd15", "text_encoder", {"num_hidden_layers": 1_000_000}),
        ("flux", "transformer", {"num_layers": 1_000_000}),
        ("flux", "transformer", {"num_single_layers": 1_000_000}),
    ],
)
def test_more_layers_than_tensors(
    runtime: kamado.Runtime,
    folders: dict[str, Path],
    tmp_path: Path,
    pipeline: str,
    component: str,
    changes: dict[str, Any],
) -> None:
    folder = edited(folders[pipeline], tmp_path / "x", component, changes)
    began = time.process_time()
    with pytest.raises(UnsupportedCheckpoint) as caught:
        runtime.load(folder, offline=True)
    assert time.process_time() - began < 5
    assert any(text in str(caught.value) for text in ("layers by its config.json", "from 1 to 1000", "models have"))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_window_layers": 80},
        {"num_hidden_layers": None},
        {"layer_names": ["x"] * 99},
        {"num_heads_per_layer": [48, 48]},
    ],
)
def test_what_is_no_number_of_layers(changes: dict[str, Any]) -> None:
    _check_depth("its text_encoder", {"num_hidden_layers": 2, **changes}, 40)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"41 layers by its config\.json \(num_hidden_layers\), and only 40"
    ):
        _check_depth("its text_encoder", {"text_config": {**changes, "num_hidden_layers": 41}}, 40)


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("unet", {"in_channels": "four"}),
        ("unet", {"block_out_channels": [[8, 8], 16]}),
        ("unet", {"block_out_channels": ["wide", 16]}),
        ("unet", {"block_out_channels": {"a": 1}}),
        ("unet", {"block_out_channels": 1e300}),
        ("unet", {"block_out_channels": [-8, 16]}),
        ("unet", {"layers_per_block": "two"}),
        ("unet", {"sample_size": [[64], 64]}),
        ("unet", {"sample_size": 10**4000}),
        ("unet", {"sample_size": True}),
        ("vae", {"block_out_channels": [8, None, 8, "x"]}),
        ("vae", {"block_out_channels": [8] * 17}),
        ("vae", {"block_out_channels": [2**21]}),
    ],
)
def test_values_that_are_no_sizes(
    runtime: kamado.Runtime, folders: dict[str, Path], tmp_path: Path, component: str, changes: dict[str, Any]
) -> None:
    folder = edited(folders["sd15"], tmp_path / "x", component, changes)
    attempts: list[Callable[[], object]] = [
        lambda: runtime.load(folder, offline=True),
        lambda: runtime.plan(folder, offline=True),
        lambda: DiffusionFamily().describe(runtime.inspect(folder)),
    ]
    refused = 0
    for attempt in attempts:
        try:
            attempt()
        except UnsupportedCheckpoint as error:
            refused += 1
            assert len(str(error).splitlines()) <= 2 and len(str(error)) < 600
    assert refused


@pytest.mark.parametrize(("sample_size", "size"), [([32, 64], "512 x 256"), (16, "128 x 128"), (None, "512 x 512")])
def test_sizes_of_either_form(
    runtime: kamado.Runtime, folders: dict[str, Path], tmp_path: Path, sample_size: Any, size: str
) -> None:
    folder = edited(folders["sd15"], tmp_path / "x", "unet", {"sample_size": sample_size})
    assert DiffusionFamily().describe(runtime.inspect(folder))["default_size"] == size
