"""What each form of the KV cache costs and saves: bytes, the time of a step, and how far answers move.

    python benchmarks/kv_cache.py [--model smollm2:135m] [--quant int8] [--forms float32 float16 int8 fp8]
                                  [--device cpu] [--steps 1x128 8x500 ...] [--reps 5] [--write NAME]

All forms are loaded, and run in turns, so that what else the machine does hits all alike. `--steps`: decoding steps of
so many requests that are so many tokens long; times are medians. KL divergence (in nats), agreement and perplexity are
over the text that comes with Kamado, against the first form.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from machine import counting, description, model_name, run_program, write
from torch import Tensor

import kamado
from kamado.memory.plan import KV_DTYPES
from kamado.requests import Sampling
from kamado.sequence import TextStep, TokenSequence
from kamado_models.language.family import configured
from kamado_models.language.quality import figures, tokens_of_text

SPARE = 64
"""Tokens of room for decoding."""


def attached(model: Any, tokens: list[int]) -> TokenSequence:
    """A sequence with pages of its own, for itself alone."""
    memory = model.loaded.execution.memory
    sequence = TokenSequence(id="bench", tokens=tokens, num_prompt=1, sampling=Sampling(), seed=0)
    memory.share_prefixes = False
    memory.attach(sequence)
    assert memory.acquire(sequence, len(tokens) + SPARE), "more KV tokens are needed"
    return sequence


def logits(model: Any, tokens: list[int]) -> Tensor:
    """Logits (T, vocab) behind each token of the text. One forward does: it sees its tokens as the cache keeps them."""
    lane, sequence = model.loaded.lanes[0], attached(model, tokens)
    positions = torch.arange(len(tokens), device=lane.device)
    step = lane._pack([TextStep(sequence, len(tokens), True)])
    found: Tensor = lane._modules(lane._tensor([tokens]), positions[None], step, positions).float().cpu()
    model.loaded.execution.memory.release(sequence)
    return found


def decoding(model: Any, num_rows: int, length: int, num_steps: int = 4) -> list[float]:
    """Seconds of decoding steps, the first left out."""
    lane, memory = model.loaded.lanes[0], model.loaded.execution.memory
    sequences = [attached(model, [10 + (7 * i + row) % 900 for i in range(length)]) for row in range(num_rows)]
    seconds = []
    for sequence in sequences:
        sequence.num_computed = length - 1
    for _ in range(num_steps):
        begin = time.perf_counter()
        lane.forward([TextStep(sequence, 1, True) for sequence in sequences]).sum().item()
        seconds.append(time.perf_counter() - begin)
    for sequence in sequences:
        memory.release(sequence)
    return seconds[1:]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--quant", help="of the weights")
    parser.add_argument("--forms", nargs="+", choices=KV_DTYPES, help="on a CPU all but auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", nargs="+", default=["1x128", "1x1900", "8x500", "8x1800"])
    parser.add_argument("--reps", type=counting, default=5)
    parser.add_argument("--write", metavar="NAME")
    arguments = parser.parse_args()
    print(machine := description(arguments.device))
    rows: list[dict[str, Any]] = []
    with kamado.Runtime(device=arguments.device) as runtime, torch.inference_mode():
        tokens = tokens_of_text(configured(runtime.inspect(arguments.model))).tolist()
        options = {"quant": arguments.quant, "kv_tokens": 17408}
        forms = arguments.forms or (KV_DTYPES[1:] if arguments.device == "cpu" else ("auto", "int8", "fp8"))
        models = {form: runtime.load(arguments.model, kv_dtype=form, **options) for form in forms}
        plain = logits(models[forms[0]], tokens)
        for form, model in models.items():
            row = {"model": model_name(arguments.model), "quant": arguments.quant or "none", "kv_dtype": form}
            row |= {"step": model.loaded.execution.step, "bytes": model.plan.kv_bytes_per_token}
            found = figures(plain, logits(model, tokens), torch.tensor(tokens))
            rows.append(row | {key: round(value, 5) for key, value in found.items()})
            print(rows[-1], flush=True)
        for case in arguments.steps:
            num_rows, length = map(int, case.split("x"))
            seconds: dict[str, list[float]] = {form: [] for form in models}
            for _ in range(arguments.reps):
                for form, model in models.items():
                    seconds[form] += decoding(model, num_rows, length)
            for row in rows:
                row[f"step_{case}_ms"] = round(1000 * statistics.median(seconds[row["kv_dtype"]]), 1)
            print(case, {row["kv_dtype"]: row[f"step_{case}_ms"] for row in rows}, flush=True)
    if arguments.write:
        print(write(arguments.write, rows, machine))


if __name__ == "__main__":
    run_program(main)
