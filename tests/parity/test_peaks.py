"""What plans say of temporary tensors, beside what diffusers' own pipelines really lay out: before anything was
measured, and after one picture was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kamado
import tiny_pipelines as tiny
from kamado.memory.learned import ESTIMATED, MEASURED, SCALED
from kamado.tasks.library.live_bytes import LiveBytes
from kamado_models.diffusion.extents import Extent
from kamado_models.diffusion.learning import activation_bytes
from kamado_models.diffusion.peaks import component_peak, vae_scale

SAMPLE = Path(__file__).parents[2] / "models/kamado_models/samples/emoji-diffusion-64"
VIDEO = {"wan"}
ONE_TOKEN_A_LETTER = {"sana"}
"""Its pipeline puts 1000 letters of instructions before the prompt, which other tokenizers have 240 tokens for."""
METHODS = ("forward", "encode", "decode")


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


def peaks_of(pipeline: Any, run: Callable[[], object], watch: Callable[[Any], Any]) -> dict[tuple[str, str], int]:
    """The largest peak of each method of each component of a pipeline while `run` runs; `watch` makes what measures."""
    peaks: dict[tuple[str, str], int] = {}
    watched = []
    for name, module in pipeline.components.items():
        for method in METHODS if isinstance(module, torch.nn.Module) else ():
            if method == "forward" or hasattr(type(module), method):
                setattr(module, method, _watched(module, name, method, watch, peaks))
                watched.append((module, method))
    with torch.inference_mode():
        run()
    for module, method in watched:
        delattr(module, method)
    return peaks


def _watched(module: Any, name: str, method: str, watch: Callable[[Any], Any], peaks: dict[Any, int]) -> Any:
    original = getattr(module, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        with watch((list(module.parameters()), list(module.buffers()), args, kwargs)) as peak:
            result = original(*args, **kwargs)
        peaks[name, method] = max(peaks.get((name, method), 0), peak.bytes)
        return result

    return call


def _live(_: Any) -> LiveBytes:
    return LiveBytes()


def _options(name: str) -> dict[str, Any]:
    """Of a quick call; texts of the length that the pipeline has by default."""
    return {key: value for key, value in tiny.arguments(name).items() if key != "max_sequence_length"}


@pytest.mark.parametrize("name", ["sd15", "flux", "kandinsky22-decoder"])
def test_the_library_sees_what_a_plain_count_sees(folders: dict[str, Path], name: str) -> None:
    pipeline = tiny.load(folders[name])
    found = [peaks_of(pipeline, lambda: pipeline(**_options(name)), watch) for watch in (Peak, _live)]
    assert found[0] == found[1]
    assert min(found[0].values()) > 0


@pytest.mark.parametrize("name", sorted(set(tiny.PIPELINES) - VIDEO))
def test_plans_of_every_pipeline(
    runtime: kamado.Runtime, folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first plan is near; the one after the first picture counts, all in all, what is there within a tenth."""
    options = _options(name)
    model = runtime.load(folders[name])
    pipeline = model.loaded.direct_pipeline()  # type: ignore[attr-defined]
    pictures: list[Any] = []
    real = peaks_of(pipeline, lambda: pictures.append(tiny.call(pipeline, **options)), _live)
    height, width = pictures[0].shape[-3:-1]
    monkeypatch.setattr("kamado_models.diffusion.family.usual_extent", lambda _: Extent(width, height))
    first = runtime.plan(folders[name])
    assert first.activation_basis == ESTIMATED
    peak = max(real.values())
    if name not in ONE_TOKEN_A_LETTER:
        assert 0.9 * peak <= first.activation_bytes <= 1.5 * peak, (first.activation_bytes, real)
    model.generate(**options, seed=0)
    plan = runtime.plan(folders[name])
    held = runtime.ledger.snapshot()["cpu"][model.owner]["weights"]
    assert plan.total_bytes == pytest.approx(held + peak, rel=0.1)
    assert plan.activation_basis == MEASURED
    by_name: dict[str, int] = {}
    for (component, _), bytes in real.items():
        by_name[component] = max(by_name.get(component, 0), bytes)
    for lane in plan.lanes:
        if lane.lane in by_name:
            assert lane.activation_bytes == pytest.approx(by_name[lane.lane], rel=0.1), lane.lane
            assert lane.activation_basis == MEASURED


def test_other_sizes_are_scaled_from_the_nearest_that_was_measured(
    runtime: kamado.Runtime, folders: dict[str, Path]
) -> None:
    model = runtime.load(folders["sd15"])
    checkpoint = runtime.inspect(folders["sd15"])
    pipeline = model.loaded.direct_pipeline()  # type: ignore[attr-defined]
    for side in (64, 128):
        model.generate(**_options("sd15") | {"width": side, "height": side}, seed=1)
    for width, height in ((64, 64), (128, 128), (64, 96), (192, 128)):
        size = {"width": width, "height": height}
        real = peaks_of(pipeline, lambda size=size: pipeline(**_options("sd15") | size), _live)  # type: ignore[misc]
        found = activation_bytes(checkpoint, model.plan, Extent(width, height))
        assert found == pytest.approx(max(real.values()), rel=0.05), (width, height)


def test_what_was_measured_decides_which_sizes_may_be_asked_for(
    runtime: kamado.Runtime, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate that is far too large refuses a picture only until a smaller one was made."""
    monkeypatch.setattr("kamado_models.diffusion.learning.component_peak", lambda *args: 40 * component_peak(*args))
    with kamado.Runtime(device="cpu", memory="32MiB") as tight:
        model = tight.load(folders["sd15"])
        large = _options("sd15") | {"width": 128, "height": 128}
        with pytest.raises(kamado.InvalidRequest, match="needs about"):
            model.generate(**large, seed=1)
        model.generate(**_options("sd15"), seed=1)
        assert model.generate(**large, seed=1).images[0].size == (128, 128)
        assert {lane.activation_basis for lane in tight.plan(folders["sd15"]).lanes} <= {MEASURED, SCALED}


def test_pictures_that_are_measured_are_the_same(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    model = runtime.load(folders["sdxl"])
    measured, plain = (model.generate(**_options("sdxl"), seed=3) for _ in range(2))
    assert numpy.array_equal(measured.pixels[0], plain.pixels[0])


def test_tiles_and_adapters_teach_nothing(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    """Their calls are not those that a plan is about."""
    model = runtime.load(folders["sd15"])
    model.generate(**_options("sd15"), tiling=True, seed=1)
    basis = {lane.lane: lane.activation_basis for lane in runtime.plan(folders["sd15"]).lanes}
    assert basis["unet"] == MEASURED
    assert basis["vae"] == ESTIMATED


def test_the_estimate_of_a_trained_model(runtime: kamado.Runtime) -> None:
    """Its latents are a quarter of the picture's side, not an eighth."""
    model = runtime.load(SAMPLE)
    checkpoint, pipeline = runtime.inspect(SAMPLE), model.loaded.direct_pipeline()
    assert vae_scale(checkpoint) == 4
    call = {"num_inference_steps": 1, "width": 64, "height": 64, "guidance_scale": 3.0}
    real = peaks_of(pipeline, lambda: pipeline("a red cat", **call), _live)
    for component, method in (("unet", "forward"), ("vae", "decode")):
        found = real[component, method]
        assert 0.95 * found <= component_peak(checkpoint, component, Extent(64, 64), 4) <= 1.5 * found
