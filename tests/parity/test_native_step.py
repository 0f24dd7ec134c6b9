"""Prompts and answers that one call in C computes, beside those of the model's modules: which models, and how near."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
from forwards import logits
from kamado.kernels.native import native
from kamado.memory.plan import KV_DTYPES
from kamado_models.language import native_probe, native_step
from kamado_models.language.native_probe import MAX_ERROR

kernels = native()
pytestmark = pytest.mark.skipif(
    kernels is None or kernels.step_functions() is None, reason="there are no steps in C for this CPU"
)

SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Smaller matrices are not quantized."""
KNOWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "llama angles": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama biases": {"attention_bias": True, "mlp_bias": True},
}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "not quantized": ({}, {"quant": None}),
    "other groups": ({}, {"quant": {"scheme": "int8-dynamic", "group_size": 64}}),
    "half precision": ({}, {"dtype": "bfloat16"}),
    "head size": ({"head_dim": 24}, {}),
    "another function": ({"hidden_act": "gelu"}, {}),
    "angles by length": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, {}),
}
QUANTS = {"int8": 8, "int8-weight-only": 16, "int4": 8}
"""With the bits of activations."""


def load(runtime: kamado.Runtime, folder: Path | str, **options: Any) -> tuple[kamado.Model, Any]:
    """The model and its lane."""
    model = runtime.load(folder, **{"quant": "int8-weight-only", "kv_tokens": 1024, **options})
    return model, model.loaded.lanes[0]


@pytest.mark.parametrize(
    ("name", "quant", "kv_dtype"),
    [
        *((name, quant, "auto") for name in KNOWN for quant in QUANTS),
        *(("llama", "int8-weight-only", kv_dtype) for kv_dtype in KV_DTYPES[1:]),
    ],
)
def test_logits_are_those_of_the_modules(
    name: str, quant: str, kv_dtype: str, runtime: kamado.Runtime, tmp_path: Path
) -> None:
    folder = tiny.build(name.split()[0], tmp_path, **SIZES | KNOWN[name])
    model, lane = load(runtime, folder, quant=quant, kv_dtype=kv_dtype)
    assert lane._native is not None
    tokens = [5 + (37 * i + i * i) % 200 for i in range(60)]
    found = logits(model, tokens, [7, *[1] * 53])
    lane._native = None
    wanted = logits(model, tokens, [7, *[1] * 53])
    assert not torch.equal(found, wanted), "both went one way"
    more = {"int8": 1e-2, "fp8": 5e-2}.get(kv_dtype, 0.0)  # few numbers are rounded to another code
    assert float((found - wanted).norm() / wanted.norm()) <= MAX_ERROR[QUANTS[quant]] + more


@pytest.mark.parametrize("name", OTHERS)
def test_others_go_through_the_modules(name: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    config, options = OTHERS[name]
    if options.get("dtype", "float32") not in runtime.device.good_dtypes:
        pytest.skip("this CPU has no instructions for it, and it is refused")
    model, lane = load(runtime, tiny.build("llama", tmp_path, **SIZES | config), **options)
    assert getattr(lane, "_native", None) is None
    assert len(model.generate(prompt_tokens=[3, 1, 4], max_tokens=3, temperature=0.0, ignore_eos=True).tokens) == 3


@pytest.mark.parametrize("name", ["mistral", "gemma", "olmo2", "granite"])
def test_other_architectures(name: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    assert load(runtime, tiny.build(name, tmp_path, **SIZES))[1]._native is None


def test_what_computes_something_else_is_not_used(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(native_step.FAMILIES, "granite", "Granite")  # its residuals are scaled
    folder = tiny.build("granite", tmp_path, **SIZES)
    _, lane = load(runtime, folder)
    assert lane._native is None
    monkeypatch.setitem(native_probe.MAX_ERROR, 16, float("inf"))
    assert load(runtime, folder, kv_tokens=512)[1]._native is not None, "so it was the comparison that refused it"


def test_modules_with_hooks_run(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model, lane = load(runtime, tiny.build("llama", tmp_path, **SIZES))
    module: Any = model.loaded.module  # type: ignore[attr-defined]
    assert native_step.recognised(module, lane.store) is not None
    module.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert native_step.recognised(module, lane.store) is None


def test_one_thread_or_two(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model, _ = load(runtime, tiny.build("llama", tmp_path, **SIZES))
    tokens, before = list(range(7, 40)), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(logits(model, tokens, [12, *[1] * 21]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_weights_are_held_once(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path, **SIZES)
    _, lane = load(runtime, folder)
    layer = lane._native._run._decoder.layers[0]
    module = lane._model.model.layers[0]
    assert layer.q.values.data_ptr() == module.self_attn.q_proj.weight.packed.parts["values"].data_ptr()
    assert layer.up.scales.data_ptr() == module.mlp.up_proj.weight.packed.parts["scale"].data_ptr()
    assert layer.keys.data_ptr() == lane.store.keys[0].data_ptr()


@pytest.fixture(scope="module")
def english(smollm2: Path) -> list[list[int]]:
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    with kamado.Runtime(device="cpu", memory="4GiB") as runtime:
        tokens = runtime.load(smollm2, kv_tokens=64).loaded.tokenizer.encode(text, add_special=False)  # type: ignore[attr-defined]
    return [tokens[29 * i : 29 * i + length] for i, length in enumerate((1, 3, 17, 40, 90, 150, 33, 64))]


@pytest.fixture
def wide() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="6GiB") as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("quant", QUANTS)
def test_smollm2(quant: str, wide: kamado.Runtime, smollm2: Path, english: list[list[int]]) -> None:
    """Greedy tokens alone, and all at once with pages for a part of them; logits beside those of the modules."""
    requests: list[dict[str, Any]] = [
        {"prompt_tokens": prompt, "max_tokens": 32, "temperature": 0.0, "ignore_eos": True} for prompt in english
    ]
    model, lane = load(wide, smollm2, quant=quant, kv_tokens=320)
    assert lane._native is not None
    alone = [list(model.generate(**request).tokens) for request in requests]
    jobs = []
    for request in requests:
        jobs.append(model.submit(**request))
        time.sleep(0.02)
    assert [list(job.result().tokens) for job in jobs] == alone
    assert wide.stats()["preemptions"]
    found = logits(model, english[4] + alone[4], [len(english[4]), *[1] * 32])
    lane._native = None
    wanted = logits(model, english[4] + alone[4], [len(english[4]), *[1] * 32])
    assert float((found - wanted).norm() / wanted.norm()) <= MAX_ERROR[QUANTS[quant]]
    if quant == "int8-weight-only":
        assert [list(model.generate(**request).tokens) for request in requests] == alone
