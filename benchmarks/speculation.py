"""What guessing tokens brings: the same requests with and without, in turns, on the same loaded weights' twins.

    python benchmarks/speculation.py [--model smollm2:135m] [--device cpu] [--dtype auto] [--tokens 128] [--reps 5]
                                     [--streams 1 4] [--tasks repeat edit free drawn] [--quant int8] [--write NAME]

The model is loaded twice, with `speculation="auto"` and "off", and the two answer alternately. A figure is generated
tokens over the time behind the first token, so that prompts do not count; the ratio is the median of the paired ratios.
Whether the answers were the same, token for token, is told beside it.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
from typing import Any

from machine import description, model_name, write

import kamado
from kamado.sampling import stops

CODE = inspect.getsource(stops)[:1500]
TEXT = (
    "The lighthouse at Kettle Point had stood for two hundred years before anybody thought of painting it. Its keeper, "
    "a patient woman called Ines, kept three goats, nine clocks and one telescope, none of which agreed. "
)
TASKS: dict[str, dict[str, Any]] = {
    "repeat": {"prompt": f"{TEXT}\n\n{TEXT}\n\n{TEXT}\n\n", "chat": False},
    "edit": {"prompt": f"Write this file again, with the class called Finder:\n```python\n{CODE}\n```"},
    "free": {"prompt": "Tell a story about a lighthouse keeper, nine clocks and a whale."},
    "drawn": {
        "prompt": "Tell a story about a lighthouse keeper, nine clocks and a whale.",
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": 7,
    },
}
"""Copying, changing little, and two that hold nothing to copy."""


def answered(model: kamado.Model, options: dict[str, Any], streams: int) -> tuple[float, list[Any]]:
    """(tokens a second behind the first ones, results) of that many equal requests; prompts come from the prefix cache
    after the first call."""
    jobs = [model.submit(**options) for _ in range(streams)]
    results = [job.result() for job in jobs]
    seconds = [result.timings.total_s - (result.timings.ttft_s or 0.0) for result in results]
    made = sum(result.usage.completion_tokens - 1 for result in results)
    return made / max(seconds), results


def compared(models: dict[str, kamado.Model], task: str, streams: int, tokens: int, reps: int) -> dict[str, Any]:
    """Figures of one task, both ways in turns."""
    options = {"temperature": 0.0, **TASKS[task], "max_tokens": tokens, "ignore_eos": True}
    speeds: dict[str, list[float]] = {how: [] for how in models}
    same, usage = True, None
    for rep in range(-1, reps):
        found = {}
        for how in sorted(models, reverse=rep % 2 == 0):
            speed, results = answered(models[how], options, streams)
            found[how] = [result.tokens for result in results]
            if rep >= 0:
                speeds[how].append(speed)
            if how == "auto":
                usage = results[0].usage
        same = same and found["auto"] == found["off"]
    ratios = [one / other for one, other in zip(speeds["auto"], speeds["off"], strict=True)]
    assert usage is not None
    return {
        "task": task,
        "streams": streams,
        "tokens_per_s": {how: statistics.median(values) for how, values in speeds.items()},
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "proposed": usage.proposed_tokens,
        "accepted": usage.accepted_tokens,
        "same": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--write", metavar="NAME")
    args = parser.parse_args()
    machine, rows = description(args.device), []
    with kamado.Runtime(device=args.device) as runtime:
        settings: Any = {"dtype": args.dtype, "quant": args.quant, "kv_tokens": 8192}
        models = {how: runtime.load(args.model, speculation=how, **settings) for how in ("auto", "off")}
        for streams in args.streams:
            for task in args.tasks:
                row = compared(models, task, streams, args.tokens, args.reps)
                rows.append(row)
                speed = row["tokens_per_s"]
                print(
                    f"{task:7} x{streams}: {speed['off']:6.1f} -> {speed['auto']:6.1f} token/s, "
                    f"ratio {row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][-1]:.2f}), "
                    f"{row['accepted']} of {row['proposed']} right, "
                    f"{'same' if row['same'] else 'OTHER'} tokens",
                    flush=True,
                )
    if args.write:
        print(write(args.write, [{"model": model_name(args.model), **row} for row in rows], machine))


if __name__ == "__main__":
    main()
