"""Models that their budget has not room for: they answer as they would with all weights in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
import tiny_pipelines
from kamado.kernels.native import native
from kamado.memory.plan import Plan
from kamado.weights.quantized.tiled import TiledIntegers

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 10},
    "qwen3_moe": {"num_hidden_layers": 10},
    "gpt2": {"n_layer": 10},
    "t5": {"num_layers": 6, "num_decoder_layers": 6},
    "mamba": {"num_hidden_layers": 10},
}


def answers(folder: Path, memory: str | int, **options: Any) -> tuple[list[Any], Plan]:
    with kamado.Runtime(device="cpu", memory=memory) as runtime:
        model = runtime.load(folder, kv_tokens=256, **options)
        assert model.plan.total_bytes <= runtime.budget_bytes
        assert runtime.ledger.held() <= runtime.budget_bytes
        requests = [{"prompt": text, "max_tokens": 8, "temperature": 0} for text in ("Hello there", "One", "A b c")]
        return [result.tokens for result in model.generate_many(requests)], model.plan


@pytest.mark.parametrize("quant", [None, "nf4", "int8"])
@pytest.mark.parametrize("name", DEEP)
def test_text(tmp_path: Path, name: str, quant: str | None) -> None:
    folder = tiny.build(name, tmp_path / name, **DEEP[name])
    wanted, whole = answers(folder, "1GiB", quant=quant)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        least = runtime.plan(folder, kv_tokens=256, quant=quant).minimum_bytes
    got, plan = answers(folder, least - whole.weight_bytes // 3, quant=quant)
    assert plan.outside_bytes > whole.weight_bytes // 4 and plan.tier == "disk"
    assert got == wanted
    with pytest.raises(kamado.DoesNotFit, match="needs at least"):
        answers(folder, least - whole.weight_bytes // 3, quant=quant, offload="never")


def test_what_lies_outside_is_in_the_kernels_order(tmp_path: Path) -> None:
    if native() is None:
        pytest.skip("there are no kernels for this CPU")
    folder = tiny.build("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256, num_hidden_layers=10)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plan = runtime.plan(folder, kv_tokens=256, quant="int8")
    with kamado.Runtime(device="cpu", memory=plan.minimum_bytes - plan.weight_bytes // 2) as runtime:
        model = runtime.load(folder, kv_tokens=256, quant="int8")
        assert model.plan.outside_bytes > plan.weight_bytes // 3
        layers = model.loaded.module.model.layers  # type: ignore[attr-defined]
        forms = {type(part.weight.packed) for part in layers.modules() if isinstance(part, torch.nn.Linear)}
        assert forms == {TiledIntegers}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3", "pixart-sigma"])
def test_pictures(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Plans of one model are to have the same figures here.
    monkeypatch.setattr("kamado.memory.learned.PeakBook.note", lambda *_: None)
    folder = tiny_pipelines.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        whole = runtime.plan(folder).minimum_bytes
    with kamado.Runtime(device="cpu", memory=1) as runtime:
        least = runtime.plan(folder).minimum_bytes
    pictures = []
    for memory in (whole, (whole + least) // 2, least):
        with kamado.Runtime(device="cpu", memory=memory) as runtime:
            model = runtime.load(folder)
            assert (model.plan.outside_bytes > 0) == (memory < whole)
            assert runtime.ledger.held() <= memory
            assert runtime.ledger.held("cpu", model.owner) <= model.plan.held_weight_bytes * 1.01 + 50_000
            pictures.append(model.generate(**tiny_pipelines.arguments(name), seed=1).pixels[0])
    assert all((picture == pictures[0]).all() for picture in pictures)
    with kamado.Runtime(device="cpu", memory=least - 1) as runtime, pytest.raises(kamado.DoesNotFit):
        runtime.load(folder)


def test_the_smallest_budget_of_a_trained_model() -> None:
    """Blocks of blocks: the loader cuts them as the plan does."""
    with kamado.Runtime(device="cpu", memory=1) as runtime:
        least = runtime.plan("emoji-diffusion:64").minimum_bytes
    pictures = []
    for memory in ("1GiB", least):
        with kamado.Runtime(device="cpu", memory=memory) as runtime:
            model = runtime.load("emoji-diffusion:64")
            assert runtime.ledger.held("cpu", model.owner) <= model.plan.held_weight_bytes * 1.01
            pictures.append(model.generate("a red heart", steps=2, seed=1).pixels[0])
    assert (pictures[0] == pictures[1]).all()


_RUN = """
import json, sys
import kamado

def anonymous():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return sum(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))

def measure(memory):
    with kamado.Runtime(device="cpu", memory=memory) as runtime:
        model = runtime.load("smollm2:135m", kv_tokens=256)
        tokens = model.generate("Why is the sky blue?", max_tokens=12, temperature=0).tokens
        return tokens, anonymous(), model.plan.held_weight_bytes, model.plan.weight_bytes, model.plan.outside_bytes

small = measure(int(sys.argv[1]))
large = measure("4GiB")
print(json.dumps([small, large]))
"""


@pytest.mark.slow
def test_a_model_of_one_and_a_half_times_the_budget(smollm2: Path) -> None:
    """A real one, a GGUF file, in a process of its own: what the ledger says is what the system says."""
    with kamado.Runtime(device="cpu", memory="4GiB") as runtime:
        weights = runtime.plan("smollm2:135m", kv_tokens=256, quant=None).weight_bytes - 49152 * 576 * 4
    budget = weights * 2 // 3
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(budget)], check=True, capture_output=True, text=True, timeout=300
    )
    (tokens, resident, held, all_, outside), (wanted, whole_resident, whole_held, _, nothing) = json.loads(done.stdout)
    assert tokens == wanted
    assert all_ == weights and outside > weights // 3 and nothing == 0
    saved, wanted_saving = whole_resident - resident, whole_held - held
    assert saved > 0.9 * wanted_saving, (saved, wanted_saving)
