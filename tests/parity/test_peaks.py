"""What plans say of temporary tensors, beside what one forward of a component really lays out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kamado
import tiny_pipelines as tiny
from kamado_models.diffusion.peaks import component_peak, vae_scale

SIDE = 128
SAMPLE = Path(__file__).parents[2] / "models/kamado_models/samples/emoji-diffusion-64"


class Peak(TorchDispatchMode):
    """Knows the most bytes that were alive at once of what operations made while it was on."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.bytes = 0
        self._known = {id for id, _, _ in map(_storage, _tensors(known))}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        found = {
            id: (reference, size) for id, reference, size in map(_storage, _tensors(made)) if id not in self._known
        }
        self._live = {id: each for id, each in (self._live | found).items() if not each[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return made


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> tuple[int, StorageWeakRef, int]:
    storage = tensor.untyped_storage()
    return storage._cdata, StorageWeakRef(storage), storage.nbytes()


def measured(module: Any, method: str, run: Callable[[], object]) -> int:
    """The largest peak of a call of `module.method` while `run` runs."""
    original, peaks = getattr(module, method), [0]

    def watched(*args: Any, **kwargs: Any) -> Any:
        with Peak((list(module.parameters()), list(module.buffers()), args, kwargs)) as peak:
            result = original(*args, **kwargs)
        peaks.append(peak.bytes)
        return result

    setattr(module, method, watched)
    with torch.inference_mode():
        run()
    delattr(module, method)
    return max(peaks)


@pytest.mark.parametrize(
    ("name", "component", "most"),
    # Of tiny transformers, the 512 tokens of a text that are counted, and not there, are most.
    [
        ("sd15", "unet", 1.5),
        ("sd15", "vae", 1.5),
        ("sdxl", "unet", 1.5),
        ("kandinsky22-decoder", "unet", 1.5),
        ("flux", "transformer", 15.0),
        ("sd3", "transformer", 15.0),
    ],
)
def test_estimates_of_tiny_pipelines(
    runtime: kamado.Runtime, folders: dict[str, Path], name: str, component: str, most: float
) -> None:
    pipeline = tiny.load(folders[name])
    options = {**tiny.arguments(name, prompt=0), "width": SIDE, "height": SIDE}
    method = "decode" if component == "vae" else "forward"
    found = measured(getattr(pipeline, component), method, lambda: pipeline(**options))
    estimate = component_peak(runtime.inspect(folders[name]), component, SIDE, SIDE, 4)
    assert 0.95 * found <= estimate <= most * found


def test_the_estimate_of_a_trained_model(runtime: kamado.Runtime) -> None:
    """Its latents are a quarter of the picture's side, not an eighth."""
    model = runtime.load(SAMPLE)
    checkpoint, pipeline = runtime.inspect(SAMPLE), model.loaded.direct_pipeline()
    assert vae_scale(checkpoint) == 4
    for component, method in (("unet", "forward"), ("vae", "decode")):
        found = measured(
            getattr(pipeline, component),
            method,
            lambda: pipeline("a red cat", num_inference_steps=1, width=64, height=64, guidance_scale=3.0),
        )
        assert 0.95 * found <= component_peak(checkpoint, component, 64, 64, 4) <= 1.5 * found
