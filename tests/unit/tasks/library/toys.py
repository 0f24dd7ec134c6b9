"""Small models, and a loop in which library code can call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kamado.events import Event, Finished
from kamado.tasks.library.lane import HostLane, ModelLane
from kamado.tasks.library.standin import stand_in
from kamado.tasks.library.task import LibraryTask, Script
from ticking import run_to_end, ticking_loop

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)


def content(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    values = torch.randint(0, 100, tuple(shape), generator=torch.Generator().manual_seed(seed))
    return values % 2 == 0 if dtype == torch.bool else values.to(dtype)


class Counted(nn.Module):
    """Knows which forwards there were."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        """Rows of each forward."""


class Denoiser(Counted):
    """Computes each row for itself, from sample (rows, channels, height, width), time and text (rows, length, size)."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, channels)
        self.scale = 0.5

    def forward(self, sample: Tensor, timestep: Any, text: Tensor | None = None, *, strength: float = 1.0) -> Tensor:
        self.batches.append(len(sample))
        mixed = self.inner(sample.movedim(1, -1)).movedim(-1, 1)
        times = torch.as_tensor(timestep, dtype=sample.dtype).reshape(-1).expand(len(sample))
        shift = 0.0 if text is None else text.mean((1, 2))
        return torch.tanh(mixed * self.scale * strength + (times * 0.01 + shift)[:, None, None, None])


class Mixer(Counted):
    """Takes a mean over the batch, as batch norm does while it is trained."""

    def forward(self, sample: Tensor) -> Tensor:
        self.batches.append(len(sample))
        return sample - sample.mean(0, keepdim=True)


class Autoencoder(nn.Module):
    """Has three entry points, and a setting that can be heard."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.quant = nn.Linear(2, 2)
        self.use_tiling = False
        self.calls: list[str] = []

    def enable_tiling(self, use_tiling: bool = True) -> None:
        self.use_tiling = use_tiling

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        self.calls.append("encode")
        value = x * self.weight + int(self.use_tiling)
        return SimpleNamespace(latents=value) if return_dict else (value,)

    def decode(self, z: Tensor) -> Tensor:
        self.calls.append("decode")
        return z / self.weight - int(self.use_tiling)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append("forward")
        found: Tensor = self.decode(self.encode(x, return_dict=False)[0])
        return found


class Hearth:
    """A loop over some models, with a clock that moves by one a reading. `body(script, models)` is the library code."""

    def __init__(self, models: Mapping[str, nn.Module], *, max_rows: int = 8, trusted: bool = False) -> None:
        self.models = models
        self.lanes = {name: ModelLane(name, step_budget=1 << 20, max_rows=max_rows, trusted=trusted) for name in models}
        self.loop = ticking_loop([HostLane("start", max_rows), *self.lanes.values()])

    def views(self, script: Script) -> Any:
        """Stand-ins for the models, as attributes."""

        def view(name: str) -> nn.Module:
            return stand_in(self.models[name], lambda call: script.ask(self.lanes[name].work(call)))

        return SimpleNamespace(**{name: view(name) for name in self.models})

    def task(self, request_id: str, body: Callable[[Script, Any], Any], **options: Any) -> LibraryTask:
        return LibraryTask(request_id, lambda script: body(script, self.views(script)), start_lane="start", **options)

    def add(self, request_id: str, body: Callable[[Script, Any], Any], **options: Any) -> LibraryTask:
        task = self.task(request_id, body, **options)
        assert self.loop.add(task) == []
        return task

    def run(self, limit: int = 1000) -> list[Event]:
        return run_to_end(self.loop, limit)


def denoise(steps: int, seed: int, *, rows: int = 1, strength: float = 1.0) -> Callable[[Script, Any], Tensor]:
    """Library code as a pipeline's: `steps` calls of `models.unet`, each with what came of the one before."""

    def body(script: Script, models: Any) -> Tensor:
        return denoised(models.unet, steps, seed, rows=rows, strength=strength)

    return body


def denoised(unet: Any, steps: int, seed: int, *, rows: int = 1, strength: float = 1.0) -> Tensor:
    sample = torch.randn(rows, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    text = torch.full((rows, 4, 2), seed * 0.1)
    for step in torch.arange(steps, 0, -1):
        sample = sample - unet(sample, step, text, strength=strength) / steps
    return sample


def end_of(events: list[Event], request_id: str, index: int = 0) -> Finished:
    (end,) = (e for e in events if isinstance(e, Finished) and (e.request_id, e.index) == (request_id, index))
    return end
