"""Kernels for GPUs beside the same in torch's operations, by Triton's interpreter: see `test_gpu.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

import tiny
from kamado.kernels.gpu import attention as attention_kernels
from kamado.kernels.gpu import layers, products
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.requests import Sampling
from kamado.sequence import TextStep, TokenSequence
from kamado.weights.quantized import few_rows
from kamado.weights.quantized.floats import quantize_floats
from kamado.weights.quantized.integers import quantize_integers
from kamado_models.language.captured import FixedRows
from kamado_models.language.fused_step import fused_step
from kamado_models.language.paged import PagedLane
from kamado_models.language.paged_probe import probe_paged
from kamado_models.language.pages import PageStore

HALVES = (torch.float32, torch.float16)


@pytest.fixture(scope="module")
def kernels() -> Any:
    return SimpleNamespace(attention=attention_kernels, layers=layers)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    assert error <= (1e-5 if wanted.dtype == torch.float32 else 2e-3)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor, scale: float, **more: Any
) -> Tensor:
    """Row by row, as plainly as it can be said."""
    window, softcap, sinks = (more.get(name) for name in ("window", "softcap", "sinks"))
    rows = []
    for row, length in enumerate(lengths.tolist()):
        first = max(length - window, 0) if window else 0
        key = keys[tables[row]].flatten(0, 1)[first:length].double()
        value = values[tables[row]].flatten(0, 1)[first:length].double()
        groups = query.shape[1] // keys.shape[2]
        scores = torch.einsum("hd,khd->hk", query[row].double(), key.repeat_interleave(groups, 1)) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None]], 1)
        weights = scores.softmax(1)[:, : len(key)]
        rows.append(torch.einsum("hk,khd->hd", weights, value.repeat_interleave(groups, 1)))
    return torch.stack(rows).to(query.dtype)


@pytest.mark.parametrize(
    ("heads", "shared", "dim", "width", "pages", "more"),
    [
        (4, 2, 16, 16, 4, {}),
        (3, 1, 20, 12, 24, {}),
        (2, 2, 16, 16, 32, {"window": 37}),
        (4, 1, 16, 16, 24, {"softcap": 3.0, "sinks": True}),
        (2, 1, 32, 32, 3, {"sinks": True, "window": 5}),
    ],
)
@pytest.mark.parametrize("dtype", HALVES)
def test_attention(kernels: Any, heads: int, shared: int, dim: int, width: int, pages: int, more: dict[str, Any],
                   dtype: torch.dtype) -> None:  # fmt: skip
    page, rows = 16, 3
    if more.get("sinks"):
        more = more | {"sinks": drawn(heads, seed=5, dtype=dtype)}
    keys = drawn(rows * pages + 2, page, shared, dim, seed=1, dtype=dtype)
    values = drawn(rows * pages + 2, page, shared, width, seed=2, dtype=dtype)
    tables = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(3)).view(rows, pages)
    lengths = torch.tensor([pages * page, 1, pages * page // 2 + 3])
    query = drawn(heads, rows, dim, seed=4, dtype=dtype).transpose(0, 1)
    for behind in (tables, tables.clone()):
        behind[1, 1:] = -(10**6)  # nobody looks there
    keys[tables[2, -1]] = values[tables[2, -1]] = float("nan")
    found = kernels.attention.paged_attention(query, keys, values, tables, lengths, scale=0.3, **more)
    close(found, attention(query, keys, values, tables.clamp(min=0), lengths, 0.3, **more))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [16, 40])
def test_norms(kernels: Any, size: int, dtype: torch.dtype) -> None:
    x, residual, weight = (drawn(3, size, seed=n, dtype=dtype) for n in range(3))
    weight = weight[0].contiguous()

    def norm(x: Tensor) -> Tensor:
        full = x.float()
        return weight * (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)

    total, normed = kernels.layers.add_norm(x, None, weight, 1e-5)
    assert total is x
    close(normed, norm(x))
    total, normed = kernels.layers.add_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    close(normed, norm(x + residual))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dim", [16, 24])
def test_rotation_and_writing(kernels: Any, dim: int, normed: bool, dtype: torch.dtype) -> None:
    tokens, heads, shared = 3, 4, 2
    joined = drawn(tokens, (heads + 2 * shared) * dim, dtype=dtype)
    query, key, value = joined.split([heads * dim, shared * dim, shared * dim], 1)
    angle = drawn(tokens, dim, seed=1)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    norms = (drawn(dim, seed=2, dtype=dtype), drawn(dim, seed=3, dtype=dtype), 1e-5) if normed else None
    pages = torch.zeros(4, 16, shared, dim, dtype=dtype), torch.zeros(4, 16, shared, dim, dtype=dtype)
    slots = torch.tensor([5, 63, 17])
    found = kernels.layers.turn_and_write(query, key, value, (cos, sin), slots, pages, norms)

    def turned(x: Tensor, weight: Tensor | None) -> Tensor:
        x = x.reshape(tokens, -1, dim)
        if weight is not None:
            full = x.float()
            x = weight * (full * torch.rsqrt(full.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
        low, high = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]

    close(found, turned(query, norms[0] if norms else None))
    close(pages[0].flatten(0, 1)[slots], turned(key, norms[1] if norms else None))
    assert torch.equal(pages[1].flatten(0, 1)[slots], value.reshape(tokens, shared, dim))
    for store in pages:
        assert int((store.flatten(0, 1).abs().sum((1, 2)) > 0).sum()) == tokens, "nothing else is written"


@pytest.mark.parametrize("dtype", HALVES)
def test_silu(kernels: Any, dtype: torch.dtype) -> None:
    gate, up = drawn(3, 2 * 1500, dtype=dtype).chunk(2, 1)
    close(kernels.layers.silu_times(gate, up), functional.silu(gate) * up)


@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
@pytest.mark.parametrize(("out", "columns", "group"), [(24, 256, 32), (5, 1280, 64), (33, 288, 0), (16, 2080, 16)])
def test_products(out: int, columns: int, group: int, form: str, rows: int) -> None:
    """Beside the weights restored by torch, rounded to the rows' precision as the kernels do it."""
    weight, bias = drawn(out, columns), drawn(out, seed=2)
    if form == "fp8":
        packed: Any = quantize_floats(weight, group_size=group)
    else:
        packed = quantize_integers(weight, bits=int(form[3]), group_size=group, scale_dtype=torch.float16)
    parts = packed.parts
    for dtype in HALVES:
        x = drawn(rows, 2 * columns, seed=1, dtype=dtype)[:, :columns]
        wanted = functional.linear(x.float(), packed.dequantize(dtype).float(), bias)
        found = products.product(x, parts["values"], parts["scale"], bias.to(dtype))
        assert found.dtype == dtype and (found.float() - wanted).norm() <= 2e-3 * wanted.norm()
        found = products.product(x, parts["values"], parts["scale"], None)
        assert (found.float() + bias - wanted).norm() <= 2e-3 * wanted.norm()


def test_a_product_that_comes_out_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    few_rows.can_multiply.cache_clear()
    assert few_rows.can_multiply(cpu, torch.float16, torch.int8, 32)
    assert few_rows.can_multiply(cpu, torch.float32, torch.uint8, 64)
    assert not few_rows.can_multiply(cpu, torch.float16, torch.int8, 24), "no such groups"
    few_rows.can_multiply.cache_clear()
    monkeypatch.setattr(few_rows, "_product", lambda x, values, scale, bias: x.new_zeros((len(x), len(scale))))
    assert not few_rows.can_multiply(cpu, torch.float16, torch.int8, 32)
    few_rows.can_multiply.cache_clear()


def a_step(lane: PagedLane, memory: PagedMemory) -> FixedRows:
    """Two sequences that have been read, and a row that only pads, as the next step has them."""
    prompts = [[5, 9, 40, 7, 12, 33, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 90, 91, 20], [60, 61, 62]]
    sequences = []
    for index, prompt in enumerate(prompts):
        sequence = TokenSequence(id=str(index), tokens=prompt, num_prompt=1, sampling=Sampling(), seed=0)
        memory.attach(sequence)
        assert memory.acquire(sequence, len(prompt))
        sequences.append(sequence)
    lane.forward([TextStep(sequence, len(sequence.tokens) - 1, False) for sequence in sequences])
    pages = [sequence.state.held for sequence in sequences]
    lengths = [len(sequence.tokens) for sequence in sequences]
    slots = [held[(length - 1) // 16] * 16 + (length - 1) % 16 for held, length in zip(pages, lengths, strict=True)]
    return FixedRows(
        tokens=torch.tensor([prompt[-1] for prompt in prompts] + [0]),
        positions=torch.tensor([length - 1 for length in lengths] + [0]),
        slots=torch.tensor([*slots, 4 * 16]),
        lengths=torch.tensor([*lengths, 1]),
        tables=torch.tensor([(held + held[-1:] * 16)[:16] for held in [*pages, [4]]]),
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt_oss"])
def test_whole_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused, through the modules with attention in place, and through the modules alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny.build(name, tmp_path)).eval()
    with torch.inference_mode():
        verdict = probe_paged(model, 64, known=True)
        assert verdict.layers is not None
        memory = PagedMemory(BlockPool(4), 16, salt=b"", share_prefixes=False)
        store = PageStore(verdict.layers, 5, 16, torch.float32, "cpu")
        lane = PagedLane("lm", model, store, memory, step_budget=64, max_rows=4)
        rows = a_step(lane, memory)
        monkeypatch.setattr("kamado_models.language.attention.has_kernels", lambda device: True)
        wanted = lane.fixed_forward(rows, in_place=False)
        written = [store.keys[-1].clone(), store.values[-1].clone()]
        calls: list[int] = []
        real = attention_kernels.paged_attention
        monkeypatch.setattr(attention_kernels, "paged_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
        close(lane.fixed_forward(rows, in_place=True), wanted)
        assert len(calls) == len(store.keys)
        monkeypatch.setattr("kamado_models.language.fused_step.has_kernels", lambda device: True)
        fused = fused_step(model, store)
        assert (fused is not None) == (name in ("llama", "qwen2", "qwen3"))
        if fused is not None:
            close(lane.fixed_forward(rows, in_place=False), wanted)  # joined matrices are what they were
            block = model.model.layers[0]
            together = block.mlp.gate_proj.weight.untyped_storage(), block.mlp.up_proj.weight.untyped_storage()
            assert together[0].data_ptr() == together[1].data_ptr()
            for page in (*store.keys, *store.values):
                page[rows.tables[0, 1], 2:] = 7.0  # what this step writes is to be written again
            close(fused(rows), wanted)
            slots = rows.slots[:2]
            for now, then in zip((store.keys[-1], store.values[-1]), written, strict=True):
                close(now.flatten(0, 1)[slots], then.flatten(0, 1)[slots])
        lane.close()
