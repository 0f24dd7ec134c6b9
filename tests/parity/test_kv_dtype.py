"""A KV cache in 16 or 8 bits: how far answers are from those of the plain one, and that company changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kamado
import tiny
import tiny_media
from forwards import logits
from kamado.cli.plan import describe
from kamado.memory.plan import KV_DTYPES
from unit.sampling.test_scratch import Peak

# Grouped heads; one wide head and a window; a softcap; sinks and a window; latents.
NAMES = ("llama", "gemma", "gemma2", "gemma3", "gpt_oss", "deepseek_v3")
LOGITS_ERROR = {"float16": 4e-3, "int8": 0.06, "fp8": 0.3}
"""Median of the relative error of logits. Random weights make more of a small error than trained ones do."""
SAME_CHOICE = {"float16": 0.98, "int8": 0.9, "fp8": 0.65}
ROUNDED = tuple(LOGITS_ERROR)
PROMPTS = [[5 + i, 9, 40 + i, 7, 12] * (2 + 3 * i) for i in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tiny")
    return {name: tiny.build(name, base / name) for name in NAMES}


def _requests(num_tokens: int = 16) -> list[dict[str, Any]]:
    return [
        {"prompt_tokens": prompt, "max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
        for prompt in PROMPTS
    ]


def _load(runtime: kamado.Runtime, folder: Path, kv_dtype: str, **options: Any) -> kamado.Model:
    return runtime.load(folder, kv_dtype=kv_dtype, **{"kv_tokens": 1024, **options})


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_near_those_of_the_plain_cache(name: str, folders: dict[str, Path]) -> None:
    """Token by token over the same text: at most so far off, and mostly with the same choice."""
    tokens = [5 + (37 * i + i * i) % 200 for i in range(90)]
    pieces = [20, *[1] * 60, 10]
    found = {}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for kv_dtype in KV_DTYPES:
            model = _load(runtime, folders[name], kv_dtype)
            found[kv_dtype] = logits(model, tokens, pieces)
            model.unload()
    plain = found["auto"]
    assert torch.equal(found["float32"], plain)
    for kv_dtype in ROUNDED:
        error = float(((found[kv_dtype] - plain).norm(dim=-1) / plain.norm(dim=-1)).median())
        assert 0 < error < LOGITS_ERROR[kv_dtype], f"{kv_dtype}: {error:.3g}"
        same = float((found[kv_dtype].argmax(-1) == plain.argmax(-1)).float().mean())
        assert same >= SAME_CHOICE[kv_dtype], f"{kv_dtype}: {same}"


@pytest.mark.parametrize("kv_dtype", ROUNDED)
@pytest.mark.parametrize("name", NAMES)
def test_pieces_change_nothing(name: str, kv_dtype: str, folders: dict[str, Path]) -> None:
    """The whole prompt in one forward, or in pieces: a token sees those before it as they are kept, in both. What
    remains is the rounding of float32, which seldom makes one number take the next code."""
    tokens = [5 + (37 * i + i * i) % 200 for i in range(60)]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = _load(runtime, folders[name], kv_dtype)
        whole = logits(model, tokens, [60])[-1]
        others = [logits(model, tokens, pieces)[-1] for pieces in ([17, 30, 13], [1] * 60, [59, 1])]
        errors = sorted(float((other - whole).norm() / whole.norm()) for other in others)
        assert errors[1] < 1e-4 and errors[2] < 2e-2


@pytest.mark.parametrize("kv_dtype", ROUNDED)
@pytest.mark.parametrize("name", NAMES)
def test_alone_in_a_crowd_from_the_prefix_cache_and_after_preemption(
    name: str, kv_dtype: str, folders: dict[str, Path]
) -> None:
    """The same tokens each time, and memory that is what the plan says."""
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = _load(runtime, folders[name], kv_dtype, step_budget=40)
        store: Any = model.loaded.lanes[0].store  # type: ignore[attr-defined]
        assert model.plan.kv_dtype == kv_dtype
        assert runtime.ledger.snapshot()["cpu"][model.owner]["kv"] == store.nbytes == model.plan.kv_bytes
        crowd = [result.tokens for result in model.generate_many(_requests())]
        again = model.generate_many(_requests())
        assert [result.tokens for result in again] == crowd
        assert sum(result.usage.cached_tokens for result in again) > 100
        assert runtime.stats()["models"][model.owner]["kv_dtype"] == kv_dtype
        model.unload()
        tight = _load(runtime, folders[name], kv_dtype, step_budget=40, kv_tokens=160)
        assert [result.tokens for result in tight.generate_many(_requests())] == crowd
        assert runtime.stats()["preemptions"] > 0
        tight.unload()
    with kamado.Runtime(device="cpu", memory="1GiB", deterministic=True) as runtime:
        model = _load(runtime, folders[name], kv_dtype)
        assert [model.generate(**request).tokens for request in _requests()] == crowd


def test_more_tokens_fit_in_the_same_memory(tmp_path: Path) -> None:
    """Heads of 64 numbers: 64 bytes and a scale of 4 for what takes 256 in float32."""
    layers, limit = 24, 64 * 2**20
    folder = tiny.build("llama", tmp_path / "llama", head_dim=64, num_hidden_layers=layers)
    with kamado.Runtime(device="cpu", memory=limit) as runtime:
        plain, less = runtime.plan(folder), runtime.plan(folder, kv_dtype="int8")
        assert (plain.kv_dtype, less.kv_dtype) == ("auto", "int8")
        assert plain.kv_bytes_per_token == layers * 2 * 2 * 64 * 4
        assert less.kv_bytes_per_token == layers * 2 * 2 * (64 + 4)
        assert runtime.plan(folder, kv_dtype="fp8").kv_tokens == less.kv_tokens > 2 * plain.kv_tokens
        assert max(plain.total_bytes, less.total_bytes) <= limit
        model = runtime.load(folder, kv_dtype="int8")
        assert model.loaded.lanes[0].store.nbytes == less.kv_bytes  # type: ignore[attr-defined]
        assert runtime.ledger.held() <= limit


@pytest.mark.parametrize("kv_dtype", ROUNDED)
def test_temporaries_stay_within_the_plan(kv_dtype: str, tmp_path: Path) -> None:
    """Rounded copies of new tokens, and what is restored of all earlier ones."""
    folder = tiny.build("llama", tmp_path / "llama", num_attention_heads=8, num_key_value_heads=8, head_dim=64)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = _load(runtime, folder, kv_dtype)
        lane: Any = model.loaded.lanes[0]
        peak, run = Peak(), lane.run

        def watched(works: Any) -> Any:
            with peak:
                return run(works)

        lane.run = watched
        model.generate_many(_requests(4))
        assert model.plan.activation_bytes / 20 < peak.peak_bytes < model.plan.activation_bytes


@pytest.mark.parametrize("kv_dtype", ROUNDED)
def test_nan_fails_alone_and_leaves_no_trace(kv_dtype: str, folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = _load(runtime, folders["llama"], kv_dtype, kv_tokens=512)
        module: Any = model.loaded.module  # type: ignore[attr-defined]
        alone = [result.tokens for result in model.generate_many(_requests())]
        poison = next(token for token in range(100, 200) if not any(token in tokens for tokens in (*alone, *PROMPTS)))
        with torch.inference_mode():
            module.get_input_embeddings().weight[poison] = float("nan")
        bad = {**_requests()[5], "prompt_tokens": [*PROMPTS[5], poison, 8, 9]}
        outcomes = dict(model.map([*_requests(), bad]))
        assert isinstance(outcomes[6], kamado.GenerationFailed)
        assert [outcomes[i].tokens for i in range(6)] == alone  # type: ignore[union-attr]
        store: Any = model.loaded.lanes[0].store  # type: ignore[attr-defined]
        assert not any(bool(each.isnan().any()) for each in store._tensors())


@pytest.mark.parametrize("name", ["bloom", "mamba2", "jamba", "t5", "qwen3_next"])
def test_models_that_run_by_rows_refuse_before_anything_is_read(name: str, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for make in (runtime.plan, runtime.load):
            with pytest.raises(kamado.InvalidRequest, match=r"kv_dtype 'int8' .* run over pages.* \(--kv-dtype\)"):
                make(folder, kv_dtype="int8")
        assert runtime.ledger.held() == 0


QUANTIZED: dict[str, Any] = {
    "int8": "int8",
    "int8-weight-only": "int8-weight-only",
    "int4": "int4",
    "none": None,
    "nf4": "nf4",
    "other groups": {"scheme": "int8", "group_size": 64},
    "plain tables": {"scheme": "int8", "embeddings": None},
    "a layer less": {"scheme": "int8", "skip": ["*.0.*"]},
}


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "llava"])
def test_what_nobody_asked_for(name: str, tmp_path: Path) -> None:
    """float16 where a CPU's forward of quantized weights reads it as it is; the compute precision for all others."""
    if name == "llava":  # a Llama that sees
        folder = tiny_media.KINDS[name].make(tmp_path)
    else:
        folder = tiny.build(name, tmp_path / name, hidden_size=128, intermediate_size=256, head_dim=32)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        fast = name == "llama" and {"avx2", "fma", "f16c"} <= {*runtime.device.features}
        for form, quant in QUANTIZED.items():
            plan = runtime.plan(folder, quant=quant)
            halves = fast and form in list(QUANTIZED)[:3]
            assert plan.kv_dtype == ("float16" if halves else "auto"), form
            wide = runtime.plan(folder, quant=quant, kv_dtype="float32")
            assert wide.kv_dtype == "float32"
            assert wide.kv_bytes_per_token == (2 if halves else 1) * plan.kv_bytes_per_token
        model = runtime.load(folder, quant="int8", kv_tokens=256)
        lane: Any = model.loaded.lanes[0]
        assert lane.store.keys[0].dtype == (torch.float16 if fast else torch.float32)
        assert fast == (getattr(lane, "_native", None) is not None)


@pytest.mark.parametrize("quant", ["int8", "int4", "nf4"])
def test_what_is_written_quantized_has_the_same_form(quant: str, tmp_path: Path) -> None:
    folder = tiny.build("llama", tmp_path / "llama", hidden_size=128, intermediate_size=256, head_dim=32)
    written = kamado.quantize(folder, tmp_path / "written", quant, device="cpu", compare=False)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        wanted = runtime.plan(folder, quant=quant).kv_dtype
        assert runtime.plan(written.path).kv_dtype == runtime.plan(written.path, quant="stored").kv_dtype == wanted
        assert runtime.plan(written.path, quant="fp8").kv_dtype == "auto"


def test_a_form_that_there_is_not(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        with pytest.raises(
            kamado.InvalidRequest, match="kv_dtype must be one of auto, float32, float16, int8, fp8, not 'int4'"
        ):
            runtime.plan(folders["llama"], kv_dtype="int4")
        with pytest.raises(kamado.InvalidRequest, match="dtype must be one of auto, float32"):
            runtime.plan(folders["llama"], dtype="int8")
        with pytest.raises(kamado.InvalidRequest, match=r"kv_dtype \(--kv-dtype\) is for language models"):
            runtime.plan("emoji-diffusion:64", kv_dtype="int8")
        if "bfloat16" in runtime.device.good_dtypes:
            with pytest.raises(kamado.InvalidRequest, match=r"'float32' saves nothing beside bfloat16.*--kv-dtype"):
                runtime.plan(folders["llama"], dtype="bfloat16", kv_dtype="float32")


def test_show_and_recipe_say_it(folders: dict[str, Path]) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = _load(runtime, folders["deepseek_v3"], "fp8")
        each = 3 * (16 + 8)
        assert model.info["kv_bytes_per_token"] == {
            "bfloat16": 2 * each,
            "float32": 4 * each,
            "float16": 2 * each,
            "int8": each + 24,
            "fp8": each + 24,
        }
        assert model.plan.as_dict()["kv_dtype"] == "fp8"
        assert any("tokens (96 B each) in fp8" in line for line in describe(model.plan))
        result = model.generate(prompt_tokens=[5, 6], max_tokens=1)
        assert result.recipe["kv_dtype"] == "fp8"
