"""Four models of different kinds under a budget that holds two: answers, the ledger, and the process's memory."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
import tiny_pipelines
from kamado.weights.packed import PackedLinear
from kamado.weights.quantized.tensor import held_bytes

KINDS = {"llama": tiny, "t5": tiny, "sd15": tiny_pipelines, "flux": tiny_pipelines}
"""A causal and an encoder-decoder language model, a pipeline with a UNet, one with a transformer."""
TOKENS = {"llama": 512, "t5": 128}
"""Of state, such that all are of like size."""
ROUNDS = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("many")
    return {name: kind.build(name, root / name) for name, kind in KINDS.items()}


@pytest.fixture
def runtime(folders: dict[str, Path]) -> Iterator[kamado.Runtime]:
    """With room for any two, and for no three."""
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        models = [load(roomy, folders, name) for name in KINDS]
        sizes = sorted(roomy.ledger.held(owner=model.owner) for model in models)
        peak = max(model.plan.activation_bytes for model in models)
    assert sum(sizes[:3]) > sum(sizes[2:]), "the models are of too different sizes for this test"
    with kamado.Runtime(device="cpu", memory=sum(sizes[2:]) + peak) as runtime:
        yield runtime


def load(runtime: kamado.Runtime, folders: dict[str, Path], name: str) -> kamado.Model:
    return runtime.load(folders[name], **({"kv_tokens": TOKENS[name]} if name in TOKENS else {}))


def answer(name: str, model: kamado.Model) -> Any:
    if KINDS[name] is tiny:
        return model.generate("Hello there", max_tokens=6, temperature=0).tokens
    return model.generate(**tiny_pipelines.arguments(name), seed=1).pixels[0].tobytes()


def really_held(model: kamado.Model) -> int:
    """Bytes of its weights and pages."""
    loaded: Any = model.loaded
    modules = [loaded.module] if hasattr(loaded, "module") else list(loaded._workshop.factory.models.values())
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    packed = sum(part.nbytes for module in modules for part in module.modules() if isinstance(part, PackedLinear))
    store = getattr(loaded.lanes[0], "store", None)
    return held_bytes(tensors) + packed + (store.nbytes if store is not None else 0)


def check_ledger(runtime: kamado.Runtime, models: dict[str, kamado.Model]) -> None:
    """What is entered for tensors that are there, without the rooms that are kept free for state and steps."""
    entries = runtime.ledger.snapshot()["cpu"]
    here = {name: model for name, model in models.items() if model.in_memory}
    assert {model.owner for model in here.values()} == entries.keys() - {"steps"}
    entered = sum(entries[model.owner].get(kind, 0) for model in here.values() for kind in ("weights", "kv"))
    assert entered == pytest.approx(sum(map(really_held, here.values())), rel=0.05)
    assert runtime.ledger.held() <= runtime.budget_bytes


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def test_evicted_models_come_back_with_the_same_answers(runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    models, wanted = {}, {}
    for name in KINDS:
        models[name] = load(runtime, folders, name)
        check_ledger(runtime, models)
        wanted[name] = answer(name, models[name])
    for name in ("llama", "sd15", "flux", "t5", "sd15"):
        assert answer(name, models[name]) == wanted[name]
        check_ledger(runtime, models)
        assert models[name].in_memory
        assert sum(model.in_memory for model in models.values()) == 2
    figures = runtime.stats()["models"]
    assert figures[models["sd15"].owner]["returns"] >= 1 and figures[models["sd15"].owner]["return_s"] > 0


def test_two_busy_models_in_the_room_of_one_take_turns(folders: dict[str, Path]) -> None:
    names = ("llama", "sd15")
    wanted, sizes = {}, []
    with kamado.Runtime(device="cpu", memory="1GiB", deterministic=True) as roomy:
        for name in names:
            model = load(roomy, folders, name)
            wanted[name] = answer(name, model)
            sizes.append(roomy.ledger.held(owner=model.owner) + model.plan.activation_bytes)
    with kamado.Runtime(device="cpu", memory=max(sizes), deterministic=True) as runtime:
        models = {name: load(runtime, folders, name) for name in names}
        assert not models["llama"].in_memory
        with ThreadPoolExecutor(4) as threads:
            answers = [(name, threads.submit(answer, name, models[name])) for name in names * 6]
            for name, made in answers:
                assert made.result(120) == wanted[name]
        assert runtime.ledger.held() <= runtime.budget_bytes
        assert sum(model.in_memory for model in models.values()) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory in use is read from /proc")
@pytest.mark.parametrize("rounds", [12, pytest.param(ROUNDS, marks=pytest.mark.slow)])
def test_rounds_leave_nothing_behind(rounds: int, runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    """Load, generate, unload; what was loaded before stays until its turn, or leaves for the next one."""
    names = [*KINDS]
    wanted = {}
    for name in (*KINDS, *KINDS):  # what libraries keep after their first use is not counted
        model = load(runtime, folders, name)
        wanted[name] = answer(name, model)
        model.unload()
    assert runtime.ledger.held() == 0
    before = resident_bytes()
    models: dict[str, kamado.Model] = {}
    for number in range(rounds):
        name = names[number % 4]
        models[name] = load(runtime, folders, name)
        check_ledger(runtime, models)
        assert answer(name, models[name]) == wanted[name]
        check_ledger(runtime, models)
        if len(models) > 2:
            models.pop(next(iter(models))).unload()
            check_ledger(runtime, models)
    for model in models.values():
        model.unload()
    assert runtime.ledger.held() == 0 and runtime.stats()["models"] == {}
    assert resident_bytes() <= before * 1.01


@pytest.mark.parametrize("name", KINDS)
def test_a_kept_request_does_not_keep_the_weights(name: str, runtime: kamado.Runtime, folders: dict[str, Path]) -> None:
    model = load(runtime, folders, name)
    loaded: Any = model.loaded
    module = loaded.module if hasattr(loaded, "module") else next(iter(loaded._workshop.factory.models.values()))
    weights = weakref.ref(module)
    del loaded, module
    arguments: dict[str, Any] = (
        {"prompt": "Hello", "max_tokens": 4} if KINDS[name] is tiny else tiny_pipelines.arguments(name)
    )
    job = model.submit(**arguments)
    events = list(job.events())
    model.unload()
    gc.collect()
    assert weights() is None and events
    assert job.result().recipe["model" if KINDS[name] is tiny else "pipeline"]
