"""A kind of model whose network is one matrix: what the base of all such kinds needs to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number, text, whole
from kamado.outputs import Audio, Output
from kamado_models.library.family import LibraryFamily
from kamado_models.library.kinds import About, Bench, Generator, Part
from kamado_models.library.loading import Loader


class Humming(nn.Module):
    """Phases in, a sound out."""

    def __init__(self, size: int, num_layers: int = 0) -> None:
        super().__init__()
        self.mix = nn.Linear(size, size)
        self.layers = nn.ModuleList([nn.Linear(size, size) for _ in range(num_layers)])

    def forward(self, phases: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            phases = phases + layer(phases)
        return torch.tanh(self.mix(phases))


class Hummer:
    """See Generator."""

    def __init__(self, network: nn.Module) -> None:
        self.modules: Mapping[str, Any] = {"network": network}

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        if "+" in asked["prompt"]:
            return [{**asked, "prompt": part, "size": len(part)} for part in asked["prompt"].split("+")]
        return {**asked, "size": len(asked["prompt"])}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        if asked["prompt"] == "noise":
            sound = bench.run("network", lambda: torch.rand(1, 8))
        elif asked["prompt"] == "dice":
            bench.model("network")(torch.zeros(1, 8))
            sound = torch.rand(1, 8)
        else:
            start = torch.randn(1, self.modules["network"].mix.in_features, generator=bench.generator)
            sound = start
            for step in range(asked.get("steps", 3)):
                sound = bench.model("network")(sound)
                bench.progress(step + 1, asked.get("steps", 3))
        bench.note(f"{asked['size']} letters")
        return Audio(samples=sound.float().numpy(), sample_rate=8000)


class HumKind:
    """See Kind."""

    name = "hum"
    about = About(
        architectures=("Humming",), tasks=("text-to-audio",), oracle="itself", batching="calls of equal shape"
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.config.get("model_type") == "hum"

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        return ("text-to-audio",)

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        return ("audio",)

    def options(self, checkpoint: Checkpoint) -> Options:
        checks = {"prompt": text(), "steps": whole(1, 1000), "seconds": number(0.0, 10.0, above=True)}
        return Options(what="a model that hums", checks=checks, takes_n=True, aliases={"num_steps": "steps"})

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        return {"architecture": "Humming"}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        return {"network": Part(tensors=checkpoint.tensors, activation_bytes=lambda size: 64 * size)}

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        size, num_layers = checkpoint.config["size"], checkpoint.config["num_layers"]
        return Hummer(loader.module("network", lambda: Humming(size, num_layers), checkpoint.tensors))

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        if asked["prompt"] == "forbidden":
            raise InvalidRequest("the prompt is forbidden")


FAMILY = LibraryFamily("hums", (HumKind(),))


def write_checkpoint(folder: Path, size: int = 8, num_layers: int = 0) -> Path:
    """A checkpoint of the kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "hum", "size": size, "num_layers": num_layers}))
    generator = torch.Generator().manual_seed(0)
    names = ["mix", *(f"layers.{number}" for number in range(num_layers))]
    tensors = {f"{name}.weight": torch.randn(size, size, generator=generator) / size**0.5 for name in names}
    tensors |= {f"{name}.bias": torch.zeros(size) for name in names}
    save_file(tensors, folder / "model.safetensors")
    return folder
