"""From the start of a process to the first token of `kamado run`, beside `import torch`, in turns.

    python benchmarks/cold_start.py [--model smollm2:135m] [--quant int8] [--device cpu] [--memory 4GiB] [--reps 7]
                                    [--no-prepared] [--stages] [--write NAME]

Both are processes of their own, measured from outside: until `kamado run` has written the first byte of its answer (one
token), and until `python -c "import torch"` has ended. Runs alternate; what is printed is the median of each and the
median of the paired ratios. One run before them leaves the prepared weights and warms the disk. `--stages` prints where
the time goes inside such a process, in the same order: seconds of the wall clock and of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from machine import counting, description, model_name, run_program, write

PROMPT = "Why is the sky blue?"
STAGES = """
import json, sys, time
begin = time.time() - float(sys.argv[1]), time.process_time()
laps = [("the interpreter", *begin)]
last = [time.perf_counter(), time.process_time()]
def lap(name):
    now = time.perf_counter(), time.process_time()
    laps.append((name, now[0] - last[0], now[1] - last[1]))
    last[:] = time.perf_counter(), time.process_time()
reference, quant, device, memory = sys.argv[2:6]
import kamado.cli.run
lap("the command line")
from kamado.checkpoint.inspect import inspect
from kamado.families import find
family = find(inspect(reference))
lap("headers of the model")
import torch
lap("import torch")
import kamado_models.language.loading
lap("Kamado's modules")
from kamado_models.language.tokenizer import load_tokenizer
from kamado_models.language.family import configured
tokenizer = load_tokenizer(configured(inspect(reference)))
lap("the tokenizer")
if tokenizer.has_chat_template:
    tokenizer.chat_prompt([{"role": "user", "content": "Hello"}])
tokenizer.close()
lap("the chat template's process")
import kamado
runtime = kamado.Runtime(device=device, memory=memory)
model = runtime.load(reference, quant=quant)
lap("plan, weights, memory (and the tokenizer again)")
is_light = "transformers" not in sys.modules
next(iter(model.stream(prompt_tokens=list(range(30, 66)), max_tokens=1)))
lap("the request until it starts")
model.generate(prompt_tokens=list(range(40, 76)), max_tokens=1)
lap("a first token")
runtime.close()
print(json.dumps([laps, is_light]))
"""


def command(arguments: argparse.Namespace) -> list[str]:
    """`kamado run`, for one token."""
    more = ["--no-prepared"] if arguments.no_prepared else []
    return [
        *(sys.executable, "-m", "kamado.cli.main", "run", arguments.model, PROMPT, "--max-tokens", "1"),
        *("--temperature", "0", "--quant", arguments.quant, "--device", arguments.device),
        *("--memory", arguments.memory, "--offline", *more),
    ]


def until_first_byte(argv: list[str]) -> float:
    """Seconds from the start of the process to the first byte that it writes."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - begin
        process.stdout.read()
    if not first or process.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}")
    return seconds


def until_end(argv: list[str]) -> float:
    """Seconds that the process takes."""
    begin = time.perf_counter()
    subprocess.run(argv, check=True)
    return time.perf_counter() - begin


def stages(arguments: argparse.Namespace) -> None:
    """Print where the time goes."""
    argv = [sys.executable, "-c", STAGES, str(time.time()), arguments.model, arguments.quant]
    found = subprocess.run(
        [*argv, arguments.device, arguments.memory], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    laps, is_light = json.loads(found)
    for name, wall, processor in laps:
        print(f"{name:<50} {wall:7.3f} s {processor:7.3f} s")
    print("without transformers" if is_light else "with transformers")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--reps", type=counting, default=7)
    parser.add_argument("--no-prepared", action="store_true", help="quantize in every run")
    parser.add_argument("--stages", action="store_true", help="print where the time goes")
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    ours, unit = command(arguments), [sys.executable, "-c", "import torch"]
    until_first_byte(ours)
    seconds: dict[str, list[float]] = {"kamado": [], "torch": []}
    for _ in range(arguments.reps):
        seconds["torch"].append(until_end(unit))
        seconds["kamado"].append(until_first_byte(ours))
    ratios = [one / other for one, other in zip(seconds["kamado"], seconds["torch"], strict=True)]
    row: dict[str, Any] = {
        "test": "cold_start",
        "model": model_name(arguments.model),
        "quant": arguments.quant,
        "prepared": not arguments.no_prepared,
        **{f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(row))
    if arguments.stages:
        stages(arguments)
    if arguments.write:
        print(write(arguments.write, [row], description(arguments.device)))


if __name__ == "__main__":
    run_program(main)
