"""The goals for a GPU, measured: decoding against the memory's rate, fewer bits, many streams, denoising.

    python benchmarks/gpu.py [--tests share ahead quantized streams flux flux-fp8 flux-joined]
                             [--layout llama-8b] [--flux flux-half] [--device cuda] [--tokens 128] [--reps 6]
                             [--steps 8] [--size 1024] [--write NAME]

share      one stream in bfloat16: the weights that a token reads, times tokens a second, over the rate of copying.
ahead      one stream, and 64, with the next step launched ahead of being asked for, over the same without.
quantized  one stream in each form of the weights over one in bfloat16, the same weights, in turns.
streams    64 requests at once over transformers' `generate_batch`, tokens a second, in turns.
flux       a picture through Kamado with compiled blocks, over diffusers' pipeline called directly (eager), in turns.
flux-fp8   the same with the denoiser in fp8-dynamic, over the pipeline in bfloat16.
flux-joined  neither compiled: projections that read the same input as one product, over layers by themselves, in turns.

Weights are random: nothing is downloaded, and speed is the same. Medians of paired ratios, see `pairs.py`. When it is
interrupted it writes what it has.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from flux_layout import FLUX_LAYOUTS, write_flux
from layouts import LAYOUTS, write_layout
from machine import counting, description, run_program, write
from pairs import in_turns, line, summary
from pictures import timed
from quant import runnable
from text import PEERS, kamado_engine

import kamado
from kamado.memory.rates import rates_of
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model

GOALS = {"share": 0.75, "int8": 1.45, "int4": 1.8, "fp8": 1.0, "streams": 5.0, "flux": 1.5, "flux-fp8": 2.2}
GOALS |= {"flux-joined": 1.0, "ahead": 1.0, "fp8-dynamic": 1.0, "nf4": 1.0, "bnb-int8": 1.0}
FORMS = ("int8", "int4", "fp8", "nf4", "bnb-int8", "fp8-dynamic")
TEXT = ("share", "ahead", "quantized", "streams")
PICTURES = ("flux", "flux-fp8", "flux-joined")
PROMPT = "a slice of pizza"


def decoding(model: kamado.Model, arguments: argparse.Namespace) -> Callable[[int], float]:
    """Tokens a second of one request behind its first token."""

    def measure(repetition: int) -> float:
        prompt = [random.Random(repetition).randrange(10, 500) for _ in range(arguments.prompt)]
        result = model.generate(prompt_tokens=prompt, max_tokens=arguments.tokens, temperature=0.0, ignore_eos=True)
        first = result.timings.ttft_s
        assert first is not None
        return (arguments.tokens - 1) / (result.timings.total_s - first)

    return measure


def share(runtime: kamado.Runtime, model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Of the measured rate of copying, in weights alone."""
    module = model.loaded.module  # type: ignore[attr-defined]
    tables = {id(module.get_input_embeddings().weight)} - {id(module.get_output_embeddings().weight)}
    read = sum(weight.nbytes for weight in module.parameters() if id(weight) not in tables)
    limit = rates_of(runtime.device).copy_bytes_per_s / read
    measure = decoding(model, arguments)
    measure(0)
    pairs = [(measure(repetition), limit) for repetition in range(1, arguments.reps + 1)]
    row = summary(pairs, goal=GOALS["share"]) | {"weight_bytes": read}
    return [{"test": "share", "ours": "kamado", "theirs": "copying", **row}]


def ahead(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Few and many streams; nothing where no steps are recorded."""
    steps = model.loaded.execution.ahead  # type: ignore[attr-defined]
    if steps is None:
        return []
    engine = kamado_engine(model)

    def side(number: int, note: str) -> Callable[[int], float]:
        def measure(repetition: int) -> float:
            draw = random.Random(repetition)
            prompts = [[draw.randrange(10, 500) for _ in range(arguments.prompt)] for _ in range(number)]
            steps.note = note  # nothing is launched ahead while there is one
            return number * arguments.tokens / timed(lambda: engine(prompts, arguments.tokens))

        return measure

    rows = []
    for number in (1, arguments.streams):
        pairs = in_turns(side(number, ""), side(number, "switched off"), arguments.reps)
        sides = {"ours": "ahead", "theirs": "in turn", "streams": number}
        rows.append({"test": "ahead", **sides, **summary(pairs, goal=GOALS["ahead"])})
    steps.note = ""
    return rows


def quantized(
    runtime: kamado.Runtime, reference: str, model: kamado.Model, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Each form over bfloat16."""
    for scheme in runnable(runtime.device, FORMS):
        other = runtime.load(reference, quant=scheme, dtype=arguments.dtype, kv_tokens=4096, speculation="off")
        pairs = in_turns(decoding(other, arguments), decoding(model, arguments), arguments.reps)
        sides = {"ours": f"kamado {scheme}", "theirs": f"kamado {arguments.dtype}"}
        yield {"test": scheme, **sides, **summary(pairs, goal=GOALS[scheme])}
        other.unload()


def streams(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Many requests at once, with their prompts."""
    peer, _ = read_model(configured(model.checkpoint), dtype=arguments.dtype, device=model.plan.device)
    engines = kamado_engine(model), PEERS["generate_batch"](peer)

    def side(number: int) -> Callable[[int], float]:
        def measure(repetition: int) -> float:
            draw = random.Random(repetition)
            prompts = [[draw.randrange(10, 500) for _ in range(arguments.prompt)] for _ in range(arguments.streams)]
            return arguments.streams * arguments.tokens / timed(lambda: engines[number](prompts, arguments.tokens))

        return measure

    pairs = in_turns(side(0), side(1), max(arguments.reps // 3, 1))
    sides = {"ours": "kamado", "theirs": "generate_batch"}
    return [{"test": "streams", "streams": arguments.streams, **sides, **summary(pairs, goal=GOALS["streams"])}]


def pictures(runtime: kamado.Runtime, reference: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compiled blocks over the pipeline called directly, and joined layers over layers apart."""
    model = runtime.load(reference, dtype=arguments.dtype, compile="full")
    pipeline = model.loaded.direct_pipeline()  # type: ignore[attr-defined]
    options = {"width": arguments.size, "height": arguments.size}

    def through(model: kamado.Model) -> Callable[[int], float]:
        return lambda seed: 1 / timed(lambda: model.generate(PROMPT, steps=arguments.steps, seed=seed, **options))

    def call(seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        pipeline(PROMPT, num_inference_steps=arguments.steps, generator=generator, **options)

    def directly(seed: int) -> float:
        return 1 / timed(lambda: runtime._session.call(lambda: call(seed)))

    for test in [test for test in arguments.tests if test in PICTURES]:
        ours, theirs, peer = model, directly, "diffusers eager"
        if test == "flux-fp8":
            form = {"scheme": "fp8-dynamic"} if runtime.device.kind == "cuda" else {"scheme": "int8-dynamic"}
            ours = runtime.load(reference, dtype=arguments.dtype, quant=form, compile="full")
        if test == "flux-joined":
            ours = runtime.load(reference, dtype=arguments.dtype)
            apart = runtime.load(reference, dtype=arguments.dtype, compile="off")
            theirs, peer = through(apart), "layers apart"
        through(ours)(0)  # compares, and makes the programs
        theirs(0)
        pairs = in_turns(through(ours), theirs, max(arguments.reps // 2, 1))
        told = runtime.stats()["models"][ours.owner]
        row = {"test": test, "ours": f"kamado {ours.plan.quant_json or ''}"[:20], "theirs": peer}
        row |= summary(pairs, goal=GOALS[test], unit="pictures_per_s")
        yield row | {"steps": arguments.steps, "compile_s": told.get("compile_s", 0.0), **told.get("compiled", {})}


def shown(found: Iterable[dict[str, Any]], model: str, dtype: str, rows: list[dict[str, Any]]) -> None:
    """Each row printed, and put to the others, as soon as it is there."""
    for row in found:
        print(line(row, "pictures_per_s" if "steps" in row else "tokens_per_s"), flush=True)
        rows.append({"model": model, "dtype": dtype, **row})


def texts(runtime: kamado.Runtime, folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of a language model."""
    reference = str(write_layout(arguments.layout, folder, device=arguments.device))
    kv_tokens = max(arguments.streams * (arguments.prompt + arguments.tokens + 16), 4096)
    model = runtime.load(reference, dtype=arguments.dtype, kv_tokens=kv_tokens, speculation="off")
    if "share" in arguments.tests:
        yield from share(runtime, model, arguments)
    if "streams" in arguments.tests:
        yield from streams(model, arguments)
    if "ahead" in arguments.tests:
        yield from ahead(model, arguments)
    if "quantized" in arguments.tests:
        yield from quantized(runtime, reference, model, arguments)
    told = runtime.stats()["models"][model.owner]
    print(told.get("graphs"), told.get("ahead"))
    model.unload()
    gc.collect()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="+", choices=(*TEXT, *PICTURES), default=[*TEXT, *PICTURES])
    parser.add_argument("--layout", choices=LAYOUTS, default="llama-8b")
    parser.add_argument("--flux", choices=FLUX_LAYOUTS, default="flux-half")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompt", type=counting, default=32, help="tokens of each prompt")
    parser.add_argument("--tokens", type=counting, default=128, help="tokens of each answer")
    parser.add_argument("--streams", type=counting, default=64)
    parser.add_argument("--steps", type=counting, default=8, help="of a picture")
    parser.add_argument("--size", type=counting, default=1024, help="of a picture, in pixels")
    parser.add_argument("--reps", type=counting, default=6)
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    arguments.dtype = "float32" if arguments.device == "cpu" else "bfloat16"
    machine = description(arguments.device)
    print(machine)
    rows: list[dict[str, Any]] = []
    try:
        with kamado.Runtime(device=arguments.device) as runtime:
            if set(arguments.tests) & set(TEXT):
                with tempfile.TemporaryDirectory() as folder:
                    shown(texts(runtime, Path(folder), arguments), arguments.layout, arguments.dtype, rows)
            if set(arguments.tests) - set(TEXT):
                with tempfile.TemporaryDirectory() as folder:
                    reference = write_flux(arguments.flux, Path(folder), dtype=arguments.dtype, device=arguments.device)
                    shown(pictures(runtime, str(reference), arguments), arguments.flux, arguments.dtype, rows)
    finally:
        if arguments.write and rows:
            print(write(arguments.write, rows, machine))


if __name__ == "__main__":
    run_program(main)
