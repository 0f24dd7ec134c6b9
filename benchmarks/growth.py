"""How speed changes as work grows: with the number of streams, and with the length of the context. Kamado alone.

    python benchmarks/growth.py [--model smollm2:135m | --layout llama-1b] [--quant int8] [--device cpu]
                                [--streams 1 2 4 8 16 32 64] [--contexts 128 256 512 1024 2048 4096 8192]
                                [--tokens 32] [--reps 3] [--write NAME] [--plots FOLDER]
    python benchmarks/growth.py --from NAME.jsonl --plots FOLDER      # plots of results that are there

`streams`: so many requests at once, each with a prompt of `--depth` (32) tokens. `context`: one request; reading a
prompt so long that it and the answer fill the context, and decoding behind it. Of each: prefill and decoding, tokens a
second and milliseconds a token, medians over `--reps` after one run that does not count. Prompts are random, no cache
knows them, and no tokens are guessed.

What is to be expected, with W bytes of weights, K bytes of keys and values for each token of context:

decoding, streams   a step reads W once for all, so its time is W / bandwidth plus a part for each stream: tokens a
                    second grow nearly as the streams do while weights dominate, then level off at what the arithmetic
                    allows. The time between tokens of one stream may grow as the streams do, never faster.
decoding, context   a step reads W and K for each token before: its time is a constant plus a part for each token of
                    context. It may grow as the context does, and much slower while K times context is less than W.
prefill, streams    prompts are read together: tokens a second stay as they are, or grow while prompts are short.
prefill, context    time a token is a constant (matrices) plus a part for each token before (attention): the time of a
                    whole prompt grows as its length at first, and never faster than the square of it.

So for each series the program tells the greatest exponent, log(time ratio) / log(size ratio) of sizes that are two
places apart, beside the one that it must not exceed; plots have it as a dashed line. `limit_tokens_per_s` is what
reading weights, keys and values once a step at the device's measured rate would allow decoding (`kamado devices`; the
rates are measured first where that was not done yet).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from growth_plots import plot
from layouts import LAYOUTS, write_layout
from machine import counting, description, model_name, run_program, write
from pairs import rounded

import kamado
from kamado.bench.fallback import check_as_asked
from kamado.bench.figures import gaps, percentile
from kamado.bench.requests import GREEDY, Answered, Prompts, check_length, run_together
from kamado.bench.texts import decoding_rate
from kamado.bench.traffic import text_traffic
from kamado.memory.rates import Rates, rates_of

BOUNDS = {
    ("streams", "decode"): 1.0,
    ("streams", "prefill"): 1.0,
    ("context", "decode"): 1.0,
    ("context", "prefill"): 2.0,
}
"""The most that times may grow by: the exponent of the size. Of decoding the time of a step, of prefill that until all
prompts are read."""
NOISE = 0.15
"""A measured exponent may be so much greater."""
MARGIN = 16
"""Tokens of state beside what a request needs: pages are held as a whole."""


def measured(model: kamado.Model, prompts: Prompts, streams: int, prompt: int, arguments: Any) -> dict[str, Any]:
    """Figures of so many requests at once, each with a prompt so long."""
    runs: list[list[Answered]] = []
    for repetition in range(arguments.reps + 1):
        requests = [
            {"prompt_tokens": prompts.draw(prompt), "max_tokens": arguments.tokens, **GREEDY} for _ in range(streams)
        ]
        done = run_together(model, requests)
        for one in done:
            check_length(one, arguments.tokens)
        if repetition:
            runs.append(done)
    read_s = [max(one.tokens_s[0] for one in run) - min(one.submitted_s for one in run) for run in runs]
    between = [gap for run in runs for one in run for gap in gaps(one.tokens_s)]
    decode = statistics.median(decoding_rate(run) for run in runs)
    prefill = statistics.median(streams * prompt / seconds for seconds in read_s)
    found = {
        "decode_tokens_per_s": decode,
        "decode_ms": 1000 * statistics.median(between),
        "decode_ms_p99": 1000 * (percentile(between, 0.99) or 0.0),
        "prefill_tokens_per_s": prefill,
        "prefill_ms": 1000 / prefill,
        "prefill_s": statistics.median(read_s),
    }
    return {"prompt_tokens": prompt, "streams": streams, **{name: rounded(value) for name, value in found.items()}}


def series(model: kamado.Model, rates: Rates, arguments: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """A row for each size of each series."""
    prompts, limit = Prompts(model.info.get("vocab_size")), limits(model, rates)
    sizes = [("streams", streams, streams, arguments.depth) for streams in arguments.streams]
    sizes += [("context", context, 1, context - arguments.tokens) for context in arguments.contexts]
    for name, size, streams, prompt in sizes:
        row = {"series": name, "size": size} | measured(model, prompts, streams, prompt, arguments)
        yield row | {"limit_tokens_per_s": limit(streams, prompt + arguments.tokens / 2)}


def limits(model: kamado.Model, rates: Rates) -> Callable[[int, float], float | None]:
    """Of streams and the tokens of context of each: tokens a second, if a step took only as long as reading what it
    needs takes at the device's measured rate. None where it is not known what that is."""
    runtime = model.runtime
    traffic = text_traffic(model, runtime.stats()["ledger"][runtime.device.name][model.owner])
    if traffic is None:
        return lambda streams, context: None
    return lambda streams, context: rounded(streams * rates.read_bytes_per_s / traffic.step_bytes(streams, context))


def exponents(sizes: Sequence[float], times: Sequence[float]) -> list[float]:
    """How times grow between sizes: 1 is as the size, 2 as its square. Sizes two places apart are compared, which
    halves what noise does; of two sizes, these."""
    points = list(zip(sizes, times, strict=True))
    apart = min(2, len(points) - 1)
    return [
        math.log(after[1] / before[1]) / math.log(after[0] / before[0])
        for before, after in zip(points, points[apart:], strict=False)
    ]


def growths(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each series, the greatest exponent and whether it is within its bound."""
    found = []
    for (name, what), bound in BOUNDS.items():
        chosen = [row for row in rows if row["series"] == name]
        if len(chosen) < 2:
            continue
        times = [row["decode_ms" if what == "decode" else "prefill_s"] for row in chosen]
        greatest = max(exponents([row["size"] for row in chosen], times))
        row = {"series": name, "test": what, "greatest_exponent": round(greatest, 3), "bound": bound}
        found.append(row | {"verdict": "met" if greatest <= bound + NOISE else "missed"})
    return found


def run(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows, the machine)"""
    machine = description(arguments.device)
    print(machine)
    streams = max(arguments.streams, default=1)
    room = max(streams * (arguments.depth + arguments.tokens + MARGIN), max(arguments.contexts, default=0) + MARGIN)
    settings: dict[str, Any] = {"dtype": arguments.dtype, "quant": arguments.quant, "kv_tokens": room}
    rows = []
    with tempfile.TemporaryDirectory() as folder, kamado.Runtime(arguments.device, arguments.memory) as runtime:
        reference = arguments.model
        if arguments.layout:
            reference = str(write_layout(arguments.layout, Path(folder), device=arguments.device))
        rates = rates_of(runtime.device)
        model = runtime.load(reference, speculation="off", max_rows=streams, **settings)
        runtime._keeping.finish()  # what is written for later loads is not to be written beside the work
        check_as_asked(runtime, model, settings)
        limit = model.plan.context_tokens
        if limit:
            arguments.contexts = [context for context in arguments.contexts if context <= limit]
        shared = {
            "model": arguments.layout or model_name(arguments.model),
            "dtype": model.plan.dtype,
            "quant": model.plan.quant_json,
            "weight_bytes": model.plan.held_weight_bytes,
            "kv_bytes_per_token": model.plan.kv_bytes_per_token,
        }
        for row in series(model, rates, arguments):
            rows.append(shared | row)
            print(json.dumps(row), flush=True)
    return rows, machine


def main() -> None:
    """See the module's docstring."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.given:
        lines = Path(arguments.given).read_text(encoding="utf-8").splitlines()
        found = [json.loads(each) for each in lines]
        newest = found[-1]["machine"]["time"]
        rows = [row for row in found if row["machine"]["time"] == newest]
        machine = rows[-1]["machine"]
    else:
        rows, machine = run(arguments)
    for growth in growths(rows):
        print(growth)
    if arguments.write and not arguments.given:
        print(write(arguments.write, rows, machine))
    if arguments.plots:
        quant = rows[0]["quant"] if isinstance(rows[0]["quant"], str) else rows[0]["quant"]["scheme"]
        form = rows[0]["dtype"] if quant == "none" else quant
        threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
        title = f"{rows[0]['model']}, {form}, {machine['device']}, {threads}"
        for path in plot(rows, BOUNDS, title, Path(arguments.plots)):
            print(path)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--layout", choices=LAYOUTS, help="random weights of this layout instead of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--memory", help="Kamado's budget  [most of what is free]")
    parser.add_argument("--threads", type=counting)
    parser.add_argument("--streams", type=counting, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--contexts", type=counting, nargs="*", default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--depth", type=counting, default=32, help="tokens of prompt of each of several streams")
    parser.add_argument("--tokens", type=counting, default=32, help="made in each answer")
    parser.add_argument("--reps", type=counting, default=3)
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    parser.add_argument("--plots", metavar="FOLDER", help="write growth-*.png there")
    parser.add_argument(
        "--from", dest="given", metavar="FILE", help="plot the newest run of this file; measure nothing"
    )
    arguments = parser.parse_args()
    least = min(arguments.contexts, default=arguments.tokens + 1)
    if arguments.tokens < 2 or least <= arguments.tokens:
        parser.error("--tokens must be at least 2, and less than the shortest of --contexts")
    return arguments


if __name__ == "__main__":
    run_program(main)
