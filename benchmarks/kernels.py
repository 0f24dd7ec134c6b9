"""Linear layers of a model in every form that the CPU kernels know, beside torch's float32: time and tokens a second.

    python benchmarks/kernels.py [--rows 1 4 16 512] [--reps 9] [--threads 2] [--write NAME]

The shapes are SmolLM2-135M's: 30 layers (siblings joined) and the output matrix, which of a prompt only the last row
meets. All forms run in turn, again and again, on weights of their own; the shortest time counts, since what disturbs
only adds, and the median says how much it did.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import counting, description, run_program, write

from kamado.kernels.native import Native, installed
from kamado.kernels.tiles import GROUP, to_tiles
from kamado.weights.packed import pack

LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD = (49152, 576)
FORMS = {"int8": (8, 16), "int8, activations too": (8, 8), "int4": (4, 8)}
MOST_STREAMS = 64
"""More rows than that are a prompt."""

Run = Callable[[], None]
Tiles = tuple[torch.Tensor, torch.Tensor]


def tiled(out: int, columns: int, bits: int) -> Tiles:
    """Random weights, as the kernels want them."""
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    values = torch.randint(least, most + 1, (out, columns), dtype=torch.int8)
    return to_tiles(values, (torch.rand(out, columns // GROUP) * 0.01).half(), bits)


def weights(bits: int) -> tuple[list[tuple[tuple[int, int], Tiles]], Tiles]:
    """All layers, and the output matrix; token tables are held in 8 bits whatever the others are."""
    drawn = {shape: tiled(*shape, bits) for shape in SHAPES}
    layers = [
        (shape, (values.clone(), scales.clone())) for _ in range(LAYERS) for shape, (values, scales) in drawn.items()
    ]
    return layers, tiled(*HEAD, 8)


def kernel_run(kernels: Native, rows: int, bits: int, activation_bits: int, layers: Any, head: Tiles) -> Run:
    """One pass through all layers."""
    inputs = {columns: torch.randn(rows, columns) for _, columns in SHAPES}
    last = inputs[HEAD[1]][-(rows if rows <= MOST_STREAMS else 1) :]

    def run() -> None:
        for (out, columns), tiles in layers:
            kernels.linear(inputs[columns], *tiles, out, weight_bits=bits, activation_bits=activation_bits)
        kernels.linear(last, *head, HEAD[0], weight_bits=8, activation_bits=activation_bits)

    return run


def float_layers() -> list[Any]:
    """The same in float32, packed as Kamado holds it."""
    made = []
    for out, columns in [*SHAPES * LAYERS, HEAD]:
        linear = torch.nn.Linear(columns, out, bias=False, device="meta").to_empty(device="cpu")
        linear.weight.data.fill_(0.01)
        made.append(pack(linear)[0])
    return made


def float_run(layers: list[Any], rows: int) -> Run:
    """One pass through all layers."""
    inputs = {columns: torch.randn(1, rows, columns) for _, columns in SHAPES}
    last = inputs[HEAD[1]][:, -(rows if rows <= MOST_STREAMS else 1) :]

    def run() -> None:
        for layer in layers[:-1]:
            layer(inputs[layer.in_features])
        layers[-1](last)

    return run


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=counting, nargs="+", default=[1, 4, 16, 512])
    parser.add_argument("--reps", type=counting, default=9)
    parser.add_argument("--threads", type=counting, default=torch.get_num_threads())
    parser.add_argument("--write", metavar="NAME")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = [each for each in installed() if each.is_fast]
    if not found:
        raise SystemExit("there are no kernels for this CPU here: install Kamado where there is a C compiler")
    machine = description("cpu")
    print(machine)
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        full, held = float_layers(), {bits: weights(bits) for bits in (8, 4)}
        for rows in arguments.rows:
            runs = {"float32, torch": float_run(full, rows)}
            for kernels in found:
                for name, (bits, activation_bits) in FORMS.items():
                    runs[f"{name}, {kernels.name}"] = kernel_run(kernels, rows, bits, activation_bits, *held[bits])
            times: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(arguments.reps):
                for name, run in runs.items():
                    begin = time.perf_counter()
                    run()
                    times[name].append(time.perf_counter() - begin)
            for name, seconds in times.items():
                row = {
                    "rows": rows,
                    "form": name,
                    "ms": round(min(seconds) * 1e3, 2),
                    "median_ms": round(statistics.median(seconds) * 1e3, 2),
                    "tokens_per_s": round(rows / min(seconds), 1),
                }
                print(row, flush=True)
                results.append(row)
    if arguments.write:
        write(arguments.write, results, machine)


if __name__ == "__main__":
    run_program(main)
