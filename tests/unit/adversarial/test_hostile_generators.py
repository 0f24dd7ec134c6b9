"""Generators whose shapes lie: one clear error, before memory is taken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kamado
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.types import Checkpoint
from kamado.memory.plan import PlanOptions
from kamado_models.adversarial.family import FAMILY
from kamado_models.adversarial.layouts import recognised
from kamado_models.library.loading import Loader

from . import published, published_2018, published_others, weights
from .test_generators import BIGGAN

_ABSURD = 1 << 22
"""A matrix of this size would take 64 TiB."""


class _Fits(Exception):
    """Names and shapes are those of a network: data would be read now."""


def _named(module: torch.nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


_MADE: Mapping[str, Callable[[], Mapping[str, Tensor]]] = {
    "dcgan": lambda: _named(published.dcgan(), "main."),
    "biggan": published_2018.state,
    "biggan-deep": lambda: _named(published.BigGan(BIGGAN)),
    "fastgan": lambda: _named(published_others.FastGan()),
    "stylegan2": lambda: weights.stylegan2(classes=3),
    "stylegan2-resnet": lambda: weights.stylegan2(form="resnet"),
    "stylegan2-port": lambda: weights.ported(weights.stylegan2()),
    "stylegan3": lambda: published_others.stylegan3(radial=True, kernel=1),
}


@pytest.fixture(scope="module", params=sorted(_MADE))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _inspected(request.param, tmp_path_factory.mktemp(request.param))


def _inspected(model: str, folder: Path) -> Checkpoint:
    weights.saved(_MADE[model](), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(BIGGAN if model == "biggan-deep" else {}))
    return inspect(folder)


def _load(checkpoint: Checkpoint) -> None:
    """All that is done before data is read. Raises _Fits where it would be, of every component."""
    loader = Loader(checkpoint, FAMILY.plan(checkpoint, PlanOptions(device="cpu", budget_bytes=1 << 60)), None, None)
    layout = recognised(checkpoint)
    assert layout is not None
    for name, tensors in layout.tensors.items():
        with contextlib.suppress(_Fits):
            loader.module(name, layout.build[name], tensors)
    raise _Fits


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any) -> None:
        raise _Fits

    monkeypatch.setattr(Loader, "_read", read)


def test_untouched_it_fits(checkpoint: Checkpoint) -> None:
    assert FAMILY.claims(checkpoint)
    with pytest.raises(_Fits):
        _load(checkpoint)


@settings(max_examples=40)
@given(data=st.data())
def test_other_shapes(checkpoint: Checkpoint, data: st.DataObject) -> None:
    tensors = dict(checkpoint.tensors)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=3, unique=True)):
        shape = tensors[name].shape
        change = data.draw(st.sampled_from(["gone", "dimension", "shape"]))
        if change == "gone":
            del tensors[name]
        elif change == "shape" or not shape:
            dims = st.sampled_from([0, 1, 2, 3, 5, 1 << 20, _ABSURD])
            tensors[name] = replace(tensors[name], shape=tuple(data.draw(st.lists(dims, max_size=5))))
        else:
            place = data.draw(st.integers(0, len(shape) - 1))
            size = data.draw(st.sampled_from([0, 1, shape[place] + 1, 2 * shape[place], 1 << 20, _ABSURD]))
            tensors[name] = replace(tensors[name], shape=(*shape[:place], size, *shape[place + 1 :]))
    changed = replace(checkpoint, tensors=tensors)
    if not FAMILY.claims(changed):
        return
    with pytest.raises((kamado.UnsupportedCheckpoint, _Fits)) as found:
        _load(changed)
    if found.type is not _Fits:
        assert len(str(found.value).splitlines()) == 1 and checkpoint.reference in str(found.value)


@pytest.mark.parametrize(
    ("model", "name", "place"),
    [
        ("biggan", "blocks.0.0.conv1.weight", 0),
        ("biggan", "blocks.1.0.conv1.weight", 0),
        ("biggan-deep", "generator.gen_z.weight_orig", 0),
        ("fastgan", "feat_64.1.weight_orig", 0),
        ("stylegan2", "synthesis.b16.conv1.weight", 0),
        ("stylegan2-resnet", "synthesis.b16.conv1.weight", 0),
        ("stylegan2-port", "convs.1.conv.weight", 1),
        ("stylegan3", "synthesis.input.freqs", 0),
    ],
)
def test_one_absurd_size_takes_no_memory(tmp_path: Path, model: str, name: str, place: int) -> None:
    found = _inspected(model, tmp_path)
    shape = found.tensors[name].shape
    absurd = replace(found.tensors[name], shape=(*shape[:place], _ABSURD, *shape[place + 1 :]))
    changed = replace(found, tensors={**found.tensors, name: absurd})
    assert FAMILY.claims(changed)
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"has another shape of|lacks"):
        _load(changed)


@settings(max_examples=20)
@given(
    values=st.dictionaries(
        st.sampled_from(["channel_width", "z_dim", "n_stats", "layers", "attention_layer_position", "eps", "BN_eps",
                         "margin_size", "first_cutoff", "first_stopband", "num_critical", "output_scale"]),
        st.one_of(
            st.sampled_from([-1, 0, 1 << 22, 1 << 80, 1e300, float("nan"), "x", None, [[True, 1 << 22, 1 << 22]]]),
            st.lists(st.lists(st.integers(-9, 99), max_size=3), max_size=3),
        ),
        min_size=1,
    )
)  # fmt: skip
def test_other_configurations(checkpoint: Checkpoint, values: dict[str, Any]) -> None:
    changed = replace(checkpoint, config={**checkpoint.config, **values})
    if FAMILY.claims(changed):
        with pytest.raises((kamado.UnsupportedCheckpoint, _Fits)):
            _load(changed)


def test_a_picture_that_no_memory_holds(tmp_path: Path) -> None:
    """Shapes that fit each other, of files that need not be large."""
    state = {"main.0.weight": torch.zeros(1, 1, 64, 64)}
    for place in range(9):
        state[f"main.{3 * place + 3}.weight"] = torch.zeros(1, 1, 4, 4)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"main.{3 * place + 1}.{part}"] = torch.zeros(1)
    found = inspect(weights.saved(state, tmp_path / "wide.safetensors"))
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime, pytest.raises(kamado.DoesNotFit):
        assert FAMILY.claims(found)
        runtime.load(tmp_path / "wide.safetensors")
    few = weights.stylegan2()
    for name in [name for name in few if name.endswith("resample_filter")]:
        few[name] = torch.zeros(64, 64)
    assert not FAMILY.claims(inspect(weights.saved(few, tmp_path / "taps.safetensors")))
