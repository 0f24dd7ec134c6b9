"""Models that leave their device for RAM, and come back unread. RAM stands for itself, and for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
import tiny_pipelines
from kamado.memory.ledger import RAM

MODELS: dict[str, dict[str, Any]] = {"mamba": {}, "t5": {"kv_tokens": 128, "quant": "int8"}}
KINDS = {"mamba": tiny, "t5": tiny, "sd15": tiny_pipelines, "flux": tiny_pipelines}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parked")
    return {name: kind.build(name, root / name) for name, kind in KINDS.items()}


@pytest.fixture
def ram(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Its budget, as if the device were a GPU."""
    budget = [1 << 30]
    monkeypatch.setattr("kamado.api._ram_budget", lambda device: budget[0])
    yield budget


def answer(name: str, model: kamado.Model) -> Any:
    if name == "llama" or KINDS[name] is tiny:
        return model.generate("Hello there", max_tokens=6, temperature=0).tokens
    return model.generate(**tiny_pipelines.arguments(name), seed=1).pixels[0].tobytes()


def _must_not_be_read(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were read again")


def held_in_ram(runtime: kamado.Runtime) -> int:
    return runtime.ledger.held(RAM)


@pytest.mark.parametrize("name", KINDS)
def test_what_left_comes_back_without_its_files(folders: dict[str, Path], ram: list[int], name: str) -> None:
    other = "flux" if name == "sd15" else "sd15"
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        needed = [roomy.load(folders[each], **MODELS.get(each, {})) for each in (name, other)]
        budget = max(roomy.ledger.held(owner=model.owner) + model.plan.activation_bytes for model in needed)
    with kamado.Runtime(device="cpu", memory=budget + 1000) as runtime:
        model = runtime.load(folders[name], **MODELS.get(name, {}))
        wanted, before = answer(name, model), runtime.ledger.held("cpu", model.owner)
        second = runtime.load(folders[other], **MODELS.get(other, {}))
        assert runtime.stats()["models"][model.owner]["place"] == "ram"
        assert held_in_ram(runtime) == runtime.ledger.held(RAM, model.owner) >= 0.7 * model.plan.weight_bytes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kamado.weights.stream.read_into", _must_not_be_read)
            assert answer(name, model) == wanted
        assert runtime.ledger.held("cpu", model.owner) == before
        assert runtime.stats()["models"][second.owner]["place"] == "ram"
        model.unload()
        second.unload()
        assert runtime.ledger.held() == 0


def test_the_one_that_waited_longest_makes_room_in_ram(folders: dict[str, Path], ram: list[int]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        weights = [roomy.load(folders[name]).plan.weight_bytes for name in ("sd15", "flux")]
        budget = max(roomy.plan(folders[name]).total_bytes for name in ("sd15", "flux", "mamba")) + 1000
    ram[0] = max(weights) * 11 // 10
    with kamado.Runtime(device="cpu", memory=budget) as runtime:
        models = [runtime.load(folders[name]) for name in ("sd15", "flux", "mamba")]
        runtime.load(folders["sd15"])
        places = [runtime.stats()["models"][model.owner]["place"] for model in models]
        assert "out" in places and "ram" in places
        assert held_in_ram(runtime) <= ram[0]
        for name, model in zip(("sd15", "flux"), models, strict=False):
            assert answer(name, model)


def test_without_room_in_ram_they_are_read_again(folders: dict[str, Path]) -> None:
    """As on a CPU, whose own weights are there."""
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        budget = max(roomy.plan(folders[name]).total_bytes for name in ("sd15", "flux")) + 1000
    with kamado.Runtime(device="cpu", memory=budget) as runtime:
        model = runtime.load(folders["sd15"])
        wanted = answer("sd15", model)
        runtime.load(folders["flux"])
        assert runtime.stats()["models"][model.owner]["place"] == "out" and held_in_ram(runtime) == 0
        assert answer("sd15", model) == wanted


@pytest.mark.parametrize("name", ["llama", "sd15"])
def test_weights_that_come_from_ram(tmp_path: Path, ram: list[int], name: str) -> None:
    """Of a model that is larger than its budget: copied into two buffers, as for a GPU."""
    kind = tiny if name == "llama" else tiny_pipelines
    folder = kind.build(name, tmp_path / name, **({"num_hidden_layers": 10} if name == "llama" else {}))
    options = {"kv_tokens": 256} if name == "llama" else {}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        wanted = answer(name, runtime.load(folder, **options))
    with kamado.Runtime(device="cpu", memory=1) as runtime:
        least = runtime.plan(folder, **options).minimum_bytes
    with kamado.Runtime(device="cpu", memory=least) as runtime:
        model = runtime.load(folder, **options)
        assert model.plan.tier == "ram" and held_in_ram(runtime) == model.plan.outside_bytes > 0
        assert answer(name, model) == wanted
        model.unload()
        assert runtime.ledger.held() == 0
