"""Kamado beside transformers on the same weights, in one process, one after the other, again and again.

    python benchmarks/text.py [--model smollm2:135m | --layout llama-1b] [--device cpu] [--streams 1 8 16]
                              [--tokens 64] [--reps 3] [--engines generate generate_batch] [--write NAME]

Every engine gets the same prompts (token ids) and makes the same number of tokens, greedily, in one dtype: float32 on a
CPU, bfloat16 on a GPU, unless told otherwise. A figure is generated tokens over the wall time of the whole call, with
prefill. Engines alternate within a repetition; what is printed is the median over repetitions, and the ratio is the
median of the paired ratios. On a noisy machine many short repetitions tell more than few long ones.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layouts import LAYOUTS, write_layout
from machine import counting, description, model_name, run_program, write
from transformers import GenerationConfig

import kamado
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model

Prompts = list[list[int]]
Engine = Callable[[Prompts, int], list[list[int]]]


def transformers_generate(model: Any) -> Engine:
    """`generate` over one padded batch; the prompts are of equal length, so nothing is padded."""

    def run(prompts: Prompts, tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        return [row[ids.shape[1] :].tolist() for row in made]

    return run


def transformers_generate_batch(model: Any) -> Engine:
    """transformers' own continuous batching."""

    def run(prompts: Prompts, tokens: int) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        return [list(output.generated_tokens) for output in outputs.values()]

    return run


def kamado_engine(model: kamado.Model) -> Engine:
    """Requests submitted one by one, as a program would."""

    def run(prompts: Prompts, tokens: int) -> list[list[int]]:
        requests = [
            {"prompt_tokens": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
            for prompt in prompts
        ]
        return [list(result.tokens) for result in model.generate_many(requests)]

    return run


def measure(engines: dict[str, Engine], streams: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one number of streams."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    random.seed(0)
    for repetition in range(arguments.reps + 1):
        # New prompts each time: nobody profits from what was cached before.
        prompts = [[random.randrange(10, 30_000) for _ in range(arguments.prompt)] for _ in range(streams)]
        answers = {}
        for name, engine in engines.items():
            begin = time.perf_counter()
            answers[name] = engine(prompts, arguments.tokens)
            seconds = time.perf_counter() - begin
            made = sum(map(len, answers[name]))
            assert made == streams * arguments.tokens, f"{name} made {made} tokens"
            if repetition:  # the first one warms up
                speeds[name].append(made / seconds)
        if "generate" in answers and sorted(answers["kamado"]) != sorted(answers["generate"]):
            print(f"note: answers of {streams} streams differ (a tie, or a fault)")
    ours = speeds["kamado"]
    return [
        {
            "test": f"streams{streams}",
            "engine": name,
            "tokens_per_s": round(statistics.median(values), 2),
            "runs": [round(value, 2) for value in values],
            "kamado_over_this": round(statistics.median(a / b for a, b in zip(ours, values, strict=True)), 3),
        }
        for name, values in speeds.items()
    ]


PEERS = {"generate": transformers_generate, "generate_batch": transformers_generate_batch}


def main() -> None:
    """See the module's docstring."""
    arguments = parse()
    machine = description(arguments.device)
    print(machine)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.layout:
            write_layout(arguments.layout, Path(folder), device=arguments.device)
        rows = compare(folder if arguments.layout else arguments.model, arguments)
    shared = {
        "model": arguments.layout or model_name(arguments.model),
        "dtype": arguments.dtype,
        "prompt": arguments.prompt,
    }
    if arguments.write:
        print(write(arguments.write, [shared | row for row in rows], machine))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--layout", choices=LAYOUTS, help="random weights of this layout instead of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--memory", help="Kamado's budget; by default 8GiB on a CPU, 40GiB on a GPU")
    parser.add_argument("--streams", type=counting, nargs="+", default=[1, 8, 16])
    parser.add_argument("--prompt", type=counting, default=32, help="tokens of each prompt")
    parser.add_argument("--tokens", type=counting, default=64, help="tokens made for each prompt")
    parser.add_argument("--reps", type=counting, default=3)
    parser.add_argument("--engines", nargs="*", choices=PEERS, default=list(PEERS), help="what to compare with")
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    arguments.memory = arguments.memory or ("8GiB" if on_cpu else "40GiB")
    return arguments


def compare(reference: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of every number of streams."""
    rows: list[dict[str, Any]] = []
    with kamado.Runtime(device=arguments.device, memory=arguments.memory) as runtime:
        model = runtime.load(
            reference, dtype=arguments.dtype, kv_tokens=32_768 if arguments.layout else None, speculation="off"
        )
        engines: dict[str, Engine] = {"kamado": kamado_engine(model)}
        # The same weights in modules of transformers alone: one each, since `generate_batch` changes its model.
        for name in arguments.engines:
            peer, _ = read_model(configured(model.checkpoint), dtype=arguments.dtype, device=arguments.device)
            engines[name] = PEERS[name](peer)
        for streams in arguments.streams:
            found = measure(engines, streams, arguments)
            rows += found
            for row in found:
                print(
                    f"{row['test']:>10}  {row['engine']:<15} {row['tokens_per_s']:8.1f} token/s   "
                    f"kamado is {row['kamado_over_this']:.2f} times that   {row['runs']}",
                    flush=True,
                )
            gc.collect()
    return rows


if __name__ == "__main__":
    run_program(main)
