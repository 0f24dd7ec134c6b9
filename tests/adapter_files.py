"""Adapters on disk for tests, and diffusers' own way with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch

import kamado

LARGEST_DIFFERENCE = 1e-4
CLEAR = 0.01
"""Mean difference between pictures that must differ."""
Loras = Sequence[tuple[Path, float]]
"""Files and weights."""


class Files(dict[str, Path]):
    """Pipelines and adapters out of `folders`, and a test's own files below `root`. Of an IP-Adapter: its file."""

    def __init__(self, folders: Mapping[str, Path], root: Path) -> None:
        super().__init__()
        self._folders = folders
        self.root = root

    def __missing__(self, name: str) -> Path:
        path = self._folders[name]
        self[name] = path / "models" / "ip-adapter_sd15.safetensors" if name.startswith("ip-") else path
        return self[name]

    def save(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path


def with_loras(pipeline: Any, loras: Loras) -> None:
    """Load LoRAs as diffusers does."""
    for index, (path, _) in enumerate(loras):
        name = f"lora{index}"
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name, local_files_only=True)
    if loras:
        pipeline.set_adapters([f"lora{index}" for index in range(len(loras))], [weight for _, weight in loras])


def asked(loras: Loras) -> list[dict[str, Any]]:
    return [{"reference": str(path), "weight": weight} for path, weight in loras]


@contextmanager
def halted(runtime: kamado.Runtime) -> Iterator[None]:
    """What is submitted inside starts at once afterwards."""
    go_on = threading.Event()
    thread = threading.Thread(target=lambda: runtime._session.call(go_on.wait))
    thread.start()
    try:
        yield
    finally:
        go_on.set()
        thread.join()


def difference(result: kamado.Result, wanted: Any) -> float:
    assert result.pixels[0].shape == wanted[0].shape
    return float(numpy.abs(result.pixels[0] - wanted[0]).max())


def clear(one: Any, other: Any) -> bool:
    return float(numpy.abs(one - other).mean()) > CLEAR


def drawn(make: Callable[[dict[str, Any]], dict[str, torch.Tensor]], models: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(models)
