"""Pictures through Kamado beside diffusers' pipeline called directly, in one process, again and again.

    python benchmarks/pictures.py [--model emoji-diffusion:64 | --layout sd15] [--device cpu] [--steps 25] [--reps 10]
                                  [--write NAME]
                                  [--tests overhead loop host together chat] [--chat smollm2:135m]

overhead   one request through the loop, beside diffusers' pipeline as that loads it, in turns: pictures a second, and
           their ratio. Never slower is the goal.
loop       the same beside a pipeline over the same components, whose weights Kamado has laid out: what the loop costs.
host       the same in calls of functions, Python's and C's, for each step and for a picture beside its steps: figures
           that a busy machine does not change.
together   eight requests with prompts and seeds of their own at once, over one after another, both through Kamado.
chat       tokens of a chat while a picture with 50 steps is made in the same runtime: the 99th percentile of the time
           between tokens, beside what it may be: that of one denoising step and of one decoding step, each alone.

Prompts are read anew each time: what encoders made of them before is dropped.
What is printed is the median over repetitions, and the median of the paired ratios (see `pairs.py`).
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layouts import PICTURE_LAYOUTS, write_picture_layout
from machine import counting, description, model_name, run_program, write
from pairs import in_turns, summary

import kamado
from kamado.events import Progress, Token

PROMPTS = ("a red heart", "a panda", "a green apple", "a slice of pizza", "a cat face", "a rocket", "a sun", "a tree")
GUIDANCE = 1.5


def timed(call: Callable[[], Any]) -> float:
    """Seconds that the call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compared(test: str, names: tuple[str, str], pairs: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """A row for each side of a comparison."""
    ratio = round(statistics.median(a / b for a, b in pairs), 4)
    columns = zip(names, zip(*pairs, strict=True), strict=True)
    return [
        {"test": test, "engine": name, "seconds": round(statistics.median(times), 4), "first_over_second": ratio}
        for name, times in columns
    ]


def overhead(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One request, through the loop and by diffusers alone, in turns."""
    from diffusers import DiffusionPipeline

    dtype = getattr(torch, model.plan.dtype)
    pipeline = DiffusionPipeline.from_pretrained(model.checkpoint.root, torch_dtype=dtype).to(model.plan.device)
    pipeline.set_progress_bar_config(disable=True)

    def as_by_itself(*given: Any, **options: Any) -> None:
        # The loop's thread is in torch's inference mode; diffusers by itself only leaves gradients out.
        with torch.inference_mode(False):
            pipeline(*given, **options)

    return beside("overhead", model, as_by_itself, arguments)


def loop(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One request, through the loop and by a pipeline over the same components, in turns."""
    return beside("loop", model, direct_pipeline(model), arguments)


def direct_pipeline(model: kamado.Model) -> Any:
    """diffusers' pipeline over the model's components."""
    from kamado_models.diffusion.model import PipelineModel

    assert isinstance(model.loaded, PipelineModel)
    return model.loaded.direct_pipeline()


def beside(
    test: str, model: kamado.Model, pipeline: Callable[..., Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row: one request through the loop, and by the pipeline."""

    def through(seed: int) -> float:
        forget(model)
        return 1 / timed(lambda: model.generate(PROMPTS[0], steps=arguments.steps, guidance=GUIDANCE, seed=seed))

    def call(seed: int) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        pipeline(PROMPTS[0], num_inference_steps=arguments.steps, guidance_scale=GUIDANCE, generator=generator)

    def directly(seed: int) -> float:
        # On the loop's thread, for one pool of worker threads: two on the same cores would hinder each other.
        return 1 / timed(lambda: model.runtime._session.call(lambda: call(seed)))

    pairs = in_turns(through, directly, arguments.reps)
    sides = {"ours": "kamado", "theirs": "diffusers pipeline"}
    return [{"test": test, **sides, **summary(pairs, goal=1.0, unit="pictures_per_s")}]


def forget(model: kamado.Model) -> None:
    """Drop what encoders made of prompts."""
    model.runtime._session.call(model.loaded.trim)


def host(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Calls of functions on the loop's thread, C's among them, through the loop and directly."""
    pipeline = direct_pipeline(model)

    def through(steps: int) -> None:
        model.generate(PROMPTS[0], steps=steps, guidance=GUIDANCE, seed=1)

    def directly(steps: int) -> None:
        options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE}
        generator = torch.Generator("cpu").manual_seed(1)
        model.runtime._session.call(lambda: pipeline(PROMPTS[0], generator=generator, **options))

    def calls(run: Callable[[int], None], steps: int) -> int:
        run(steps)
        forget(model)
        profile = cProfile.Profile()
        model.runtime._session.call(profile.enable)
        run(steps)
        model.runtime._session.call(profile.disable)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    few, many = max(arguments.steps // 2, 2), arguments.steps + 2
    rows = []
    for name, run in (("kamado", through), ("diffusers pipeline", directly)):
        first, second = calls(run, few), calls(run, many)
        step = (second - first) / (many - few)
        rows.append({"test": "host", "engine": name, "calls_a_step": round(step), "others": round(first - few * step)})
    return rows


def together(model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Eight requests at once, and one after another."""
    requests = [
        {"prompt": prompt, "seed": seed, "steps": arguments.steps, "guidance": GUIDANCE}
        for seed, prompt in enumerate(PROMPTS)
    ]

    def at_once() -> None:
        forget(model)
        model.generate_many(requests)

    def in_turn() -> None:
        forget(model)
        for request in requests:
            model.generate(**request)

    at_once()
    pairs = [(timed(in_turn), timed(at_once)) for _ in range(max(arguments.reps // 4, 2))]
    return compared("together", ("one after another", "at once"), pairs)


def chat(runtime: kamado.Runtime, model: kamado.Model, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Times between tokens while a picture is made."""
    speaker = runtime.load(arguments.chat)
    options = {"max_tokens": 1_000_000, "ignore_eos": True, "temperature": 0.0}
    steps: list[float] = []
    for event in model.stream(PROMPTS[0], steps=150, guidance=GUIDANCE, seed=1):
        if isinstance(event, Progress):
            steps.append(time.perf_counter())
    denoise = [b - a for a, b in itertools.pairwise(steps)]

    def gaps(stop: Callable[[], bool]) -> list[float]:
        times = []
        stream = speaker.stream("Tell me a long story.", **options)
        for event in stream:
            if isinstance(event, Token):
                times.append(time.perf_counter())
                if stop():
                    break
        stream.close()
        return [b - a for a, b in itertools.pairwise(times)]

    count = itertools.count()
    alone = gaps(lambda: next(count) >= 100)
    beside: list[float] = []
    for repetition in range(max(arguments.reps // 4, 2)):
        job = model.submit(PROMPTS[1], steps=50, guidance=GUIDANCE, seed=repetition)
        beside += gaps(job.done)
    row: dict[str, Any] = {"test": "chat", "tokens": len(beside)}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        decode, step, both = (quantile(values, share) * 1e3 for values in (alone, denoise, beside))
        row |= {
            f"decode_{name}_ms": round(decode, 1),
            f"denoise_{name}_ms": round(step, 1),
            f"beside_{name}_ms": round(both, 1),
            f"bound_{name}_ms": round(decode + step, 1),
        }
    return [row]


def quantile(values: list[float], share: float) -> float:
    """The value below which this share lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-diffusion:64")
    parser.add_argument("--layout", choices=PICTURE_LAYOUTS, help="random weights of this layout instead of a model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--chat", default="smollm2:135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=counting, default=25)
    parser.add_argument("--reps", type=counting, default=12)
    parser.add_argument(
        "--tests", nargs="+", choices=("overhead", "loop", "host", "together", "chat"), default=["overhead", "together"]
    )
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    machine = description(arguments.device)
    print(machine)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, kamado.Runtime(device=arguments.device) as runtime:
        reference = arguments.model
        if arguments.layout:
            reference = str(write_picture_layout(arguments.layout, Path(folder), device=arguments.device))
        model = runtime.load(reference, dtype=arguments.dtype)
        for test in arguments.tests:
            if test == "chat":
                rows += chat(runtime, model, arguments)
            else:
                rows += {"overhead": overhead, "loop": loop, "host": host, "together": together}[test](model, arguments)
            print(*rows, sep="\n", flush=True)
    if arguments.write:
        shared = {"model": arguments.layout or model_name(arguments.model), "steps": arguments.steps}
        print(write(arguments.write, [shared | row for row in rows], machine))


if __name__ == "__main__":
    run_program(main)
