"""The second load of a quantized model: from what the first one left, with the same weights, the same answers and the
same ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kamado
import tiny
import tiny_pipelines
from kamado.bench.fallback import kernel_of
from kamado.bench.traffic import text_traffic
from kamado.kernels.native import native
from kamado.weights.outside.tensors import all_tensors, tensors_of
from kamado.weights.prepared import entry as entry_module
from kamado.weights.prepared.file import Unusable
from kamado.weights.prepared.folder import LIMIT, PreparedFolder
from kamado_models.language import loading
from kamado_models.language.decoder import Decoder

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
REQUEST: dict[str, Any] = {"prompt_tokens": [3, 1, 4, 1, 5, 9], "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
OTHERS = ("gemma2", "mixtral", "gpt_neox", "qwen3_moe", "t5", "mamba", "falcon")
"""Families that run over pages, by rows, with experts, with an encoder."""
STAND_INS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama angles": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "attention_factor": 1.3}
    },
}
has_steps = native() is not None and native().step_functions() is not None  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def small_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado_models.language.prepared.LEAST_BYTES", 0)
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 64)


@pytest.fixture
def folder(prepared_home: Path) -> PreparedFolder:
    return PreparedFolder(prepared_home)


def loads(path: Path | str, *, found: bool, **settings: Any) -> dict[str, Any]:
    """What one load, in a runtime of its own, comes to. `found`: whether it must do without reading the checkpoint."""
    with pytest.MonkeyPatch.context() as patch, kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        read = []

        def reading(*args: Any, **options: Any) -> Any:
            read.append(1)
            return read_model(*args, **options)

        read_model = loading.read_model
        patch.setattr(loading, "read_model", reading)
        model = runtime.load(path, **{"quant": "int8", "kv_tokens": 512, "speculation": "off", **settings})
        assert (not read) == found
        loaded: Any = model.loaded
        result = model.generate(**REQUEST, logprobs=4)
        return {
            "tokens": list(result.tokens),
            "logprobs": result.logprobs,
            "weights": contents(loaded.module),
            "ledger": runtime.ledger.held("cpu", model.owner, "weights"),
            "batching": loaded.execution.batching,
            "kind": type(loaded.module),
            "native": getattr(loaded.lanes[0], "_native", None) is not None,
            "benched": (text_traffic(model, {}), kernel_of(model), model.usage()["step"]),
        }


def contents(module: torch.nn.Module) -> list[tuple[Any, ...]]:
    """All numbers that a model holds, in no order."""
    found = {id(tensor): tensor for _, _, tensor in all_tensors([module])}
    parts: list[Tensor] = [part for tensor in found.values() for part in tensors_of(tensor)]
    return sorted((str(each.dtype), tuple(each.shape), each.view(-1).view(torch.uint8).sum().item()) for each in parts)


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name in first.keys() - {"kind"}:
        assert first[name] == second[name], name


@pytest.mark.parametrize("name", OTHERS)
def test_architectures(name: str, folder: PreparedFolder, tmp_path: Path) -> None:
    path = tiny.build(name, tmp_path)
    first = loads(path, found=False)
    assert len(folder.entries()) == 1
    second = loads(path, found=True)
    same(first, second)
    assert second["kind"] is first["kind"]


@pytest.mark.skipif(not has_steps, reason="there are no steps in C for this CPU")
@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("name", STAND_INS)
def test_stand_ins_compute_the_same(name: str, quant: str, tmp_path: Path) -> None:
    path = tiny.build(name.split()[0], tmp_path, **SIZES | STAND_INS[name])
    first, second = loads(path, found=False, quant=quant), loads(path, found=True, quant=quant)
    assert first["kind"] is not Decoder and second["kind"] is Decoder
    assert first["native"]
    same(first, second)


@pytest.mark.parametrize("quant", ["int8-dynamic", "int8-weight-only", "bnb-int8", "nf4", "fp4", "fp8"])
def test_forms(quant: str, tmp_path: Path) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    same(loads(path, found=False, quant=quant), loads(path, found=True, quant=quant))


def test_other_settings_are_prepared_for_themselves(folder: PreparedFolder, tmp_path: Path) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    loads(path, found=False)
    loads(path, found=False, quant="int4")
    loads(path, found=False, quant={"scheme": "int8", "skip": ["*down_proj*"]})
    loads(path, found=True, kv_dtype="int8")
    loads(path, found=False, prepared=False)
    loads(path, found=False, quant=None)
    loads(path, found=True)
    entries = len(folder.entries())
    assert entries in (2, 3), "those whose plain layers are many are not kept"


def test_what_is_kept_in_8_bits_keys_is_found_with_others(folder: PreparedFolder, tmp_path: Path) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    loads(path, found=False, kv_dtype="int8")
    plain = loads(path, found=True)
    assert plain["native"] == has_steps


@pytest.mark.parametrize("how", ["other weights", "another configuration", "damaged", "cut", "other programs", "code"])
def test_what_is_not_as_it_was_is_made_anew(
    how: str, folder: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    first = loads(path, found=False)
    (entry,) = folder.entries()
    data = bytearray(entry.path.read_bytes())
    if how == "other weights":
        weights = path / "model.safetensors"
        changed = bytearray(weights.read_bytes())
        changed[-2:] = b"\x10\x3f"
        weights.write_bytes(changed)
    elif how == "another configuration":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    elif how == "other programs":
        monkeypatch.setattr(entry_module, "FORMAT", entry_module.FORMAT + 1)
    elif how == "code":
        monkeypatch.setattr("kamado_models.language.prepared.code_mark", lambda folder: "another one")
    elif how == "cut":
        entry.path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 16
        entry.path.write_bytes(data)
    second = loads(path, found=False)
    assert (second["logprobs"] == first["logprobs"]) == (how in ("damaged", "cut", "other programs", "code"))
    same(second, loads(path, found=True))


@pytest.mark.parametrize(("what", "error"), [("facts_of_json", KeyError), ("fill", Unusable)])
def test_what_does_not_fit_after_all_makes_room(
    what: str, error: type[Exception], folder: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be found, and of no use, for ever."""

    def fails(*_: Any) -> None:
        raise error("another kind")

    path = tiny.build("llama", tmp_path, **SIZES)
    first = loads(path, found=False)
    with folder.entries()[0].path.open("rb") as old:  # so that its number stays taken
        with monkeypatch.context() as patch:
            patch.setattr(f"kamado_models.language.prepared.{what}", fails)
            loads(path, found=False)
        assert not os.path.samestat(os.fstat(old.fileno()), folder.entries()[0].path.stat())
    same(first, loads(path, found=True))


def test_a_pipeline_that_does_not_fit_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from kamado_models.diffusion import prepared

    refused: list[str] = []
    entry: Any = SimpleNamespace(find=lambda: "file", refuse=refused.append)
    plan: Any = SimpleNamespace(lanes=(), device="cpu")
    for why, wanted in ((MemoryError(), []), (KeyError(), ["file"])):

        def fails(*_: Any, why: Exception = why) -> None:
            raise Unusable("another kind") from why

        monkeypatch.setattr(prepared, "fill", fails)
        assert prepared.found_in(entry, {}, plan) is None
        assert refused == wanted, "where memory is short, the file is as good as before"


def test_a_limit_that_is_none_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before others leave memory for the model, or its draft comes."""
    path = tiny.build("llama", tmp_path, **SIZES)
    monkeypatch.setenv(LIMIT, "much")
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        monkeypatch.setattr(runtime._keeper, "make_room", None)
        with pytest.raises(kamado.InvalidRequest, match=LIMIT):
            runtime.load(path, quant="int8")


def test_it_is_off_or_cannot_be_written(
    folder: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    monkeypatch.setenv(LIMIT, "0")
    loads(path, found=False)
    assert folder.entries() == []
    monkeypatch.setenv(LIMIT, "1GiB")
    blocked = tmp_path / "blocked"
    blocked.write_bytes(b"")
    monkeypatch.setattr("kamado.weights.prepared.folder.prepared_home", lambda: blocked)
    loads(path, found=False)
    loads(path, found=False)


def test_an_unloaded_model_lets_go_of_what_is_not_written(tmp_path: Path, folder: PreparedFolder) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(path, quant="int8", kv_tokens=512)
        model.unload()
        assert runtime._keeping._pending == set()
    assert folder.entries() == []


def test_unloading_does_not_wait_for_hashes(
    tmp_path: Path, folder: PreparedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, *, progress: Any) -> str:
        for _ in range(6000):
            progress(1)
            time.sleep(0.01)
        raise AssertionError("nobody stopped it")

    path = tiny.build("llama", tmp_path, **SIZES)
    monkeypatch.setattr("kamado.checkpoint.digest.hash_file", slow)
    begin = time.monotonic()
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(path, quant="int8", kv_tokens=512)
        (pending,) = runtime._keeping._pending
        pending.begin()
        model.unload()
    assert folder.entries() == [] and time.monotonic() - begin < 50


def test_whoever_is_interrupted_does_not_wait(tmp_path: Path, folder: PreparedFolder) -> None:
    path = tiny.build("llama", tmp_path, **SIZES)
    with pytest.raises(KeyboardInterrupt), kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        runtime.load(path, quant="int8", kv_tokens=512)
        raise KeyboardInterrupt
    assert folder.entries() == []


PIPELINES = ("sd15", "sd3", "flux", "pixart-sigma", "kandinsky22", "sdxl")


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines(
    name: str, folder: PreparedFolder, folders: tiny_pipelines.Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kamado_models.diffusion import loading as pictures

    monkeypatch.setattr("kamado_models.diffusion.prepared.LEAST_BYTES", 0)
    request: dict[str, Any] = {**tiny_pipelines.arguments(name), "seed": 3}

    def drawn(*, found: bool) -> tuple[list[bytes], int, list[Any]]:
        with pytest.MonkeyPatch.context() as patch, kamado.Runtime(device="cpu", memory="2GiB") as runtime:
            if found:
                patch.delattr(pictures, "load_weights")
            model = runtime.load(folders[name], quant="int8")
            images = [image.tobytes() for image in model.generate(**request).images]
            modules: Any = model.loaded._workshop.factory.models  # type: ignore[attr-defined]
            held = [contents(module) for _, module in sorted(modules.items())]
            return images, runtime.ledger.held("cpu", model.owner, "weights"), held

    first = drawn(found=False)
    assert len(folder.entries()) == 1
    assert drawn(found=True) == first


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of processes with a home of their own."""
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "OMP_NUM_THREADS")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    yield {**kept, "KAMADO_HOME": str(tmp_path / "home")}


PROGRAM = """
import json, sys
import kamado
import kamado.weights.prepared.folder as folder
import kamado_models.language.prepared as prepared
folder.room_bytes = lambda path: 1 << 40
prepared.LEAST_BYTES = 0
with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
    model = runtime.load(sys.argv[1], quant="int8", kv_tokens=512)
    result = model.generate(prompt_tokens=[3, 1, 4, 1, 5, 9], max_tokens=8, temperature=0.0, ignore_eos=True)
heavy = ("transformers", "torch.distributed.tensor", "sympy", "torch._dynamo")
print(json.dumps([list(result.tokens), [name for name in heavy if name in sys.modules]]))
"""


def run(path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(path)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> tuple[list[int], list[str]]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    tokens, heavy = json.loads(out)
    return tokens, heavy


@pytest.mark.slow
@pytest.mark.skipif(not has_steps, reason="there are no steps in C for this CPU")
def test_processes(smollm2: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """Two that load at once leave one file; later ones need no transformers."""
    first = [run(smollm2, alone) for _ in range(2)]
    tokens = [answer(process)[0] for process in first]
    assert tokens[0] == tokens[1]
    assert len(list((tmp_path / "home" / "prepared").iterdir())) == 1
    found, heavy = answer(run(smollm2, alone))
    assert found == tokens[0]
    assert heavy == []
