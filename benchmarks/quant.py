"""What each form of the weights costs and saves: bytes, speed, and how far answers move.

    python benchmarks/quant.py [--model smollm2:135m | --layout llama-8b] [--schemes none int8 int4 ...]
                               [--files OTHER.gguf ...] [--device cpu] [--tokens 32] [--prompt 256] [--reps 3]
                               [--write NAME]

Each scheme is loaded in turn, again and again. `decode` is tokens a second of one stream, `prefill` prompt tokens a
second, both medians; `load` is seconds. KL divergence (in nats), agreement and perplexity are over the text that comes
with Kamado, against the model itself in the compute precision. `--files`: the same model as another program has
quantized it, as GGUF; its weights are decoded, so what is compared is the weights, not the other program's arithmetic.
`--layout`: random weights, whose answers mean nothing: speeds alone. `ratio` is the decoding speed by that of `none`;
a form below 1 saves memory and costs time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from layouts import LAYOUTS, write_layout
from machine import counting, description, model_name, run_program, write

import kamado
from kamado.memory.devices import DeviceFacts
from kamado.quant import SCHEMES, Quant, parse_quant
from kamado_models.language.family import configured
from kamado_models.language.quality import figures, logits_of, tokens_of_text


def speeds(runtime: kamado.Runtime, model: kamado.Model, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of one request."""
    draw = random.Random(0)
    decode, prefill = [], []
    for _ in range(arguments.reps):
        prompt = [draw.randrange(10, 1000) for _ in range(arguments.prompt)]
        result = model.generate(prompt_tokens=prompt, max_tokens=arguments.tokens, temperature=0.0, ignore_eos=True)
        first = result.timings.ttft_s
        assert first is not None
        prefill.append(arguments.prompt / first)
        decode.append((arguments.tokens - 1) / (result.timings.total_s - first))
    return {
        "decode_tokens_per_s": round(statistics.median(decode), 2),
        "prefill_tokens_per_s": round(statistics.median(prefill), 1),
    }


def runnable(facts: DeviceFacts, schemes: Iterable[str] = SCHEMES) -> list[str]:
    """Those that the device can run."""
    found = []
    for scheme in schemes:
        with suppress(kamado.InvalidRequest):
            Quant(scheme=scheme).check_device(facts.name, facts.features)
            found.append(scheme)
    return found


def table(reference: str, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """A row for each scheme, and for each other file, as soon as it is there."""
    with kamado.Runtime(device=arguments.device) as runtime:
        dtype, device = runtime.plan(reference).dtype, runtime.device.name
        quality = None if arguments.layout else Quality(runtime, reference, dtype)
        runs = [(reference, scheme) for scheme in arguments.schemes or ["none", *runnable(runtime.device)]]
        for name, scheme in (*runs, *((file, "none") for file in arguments.files)):
            begin = time.perf_counter()
            room = arguments.prompt + arguments.tokens + 64
            model = runtime.load(name, quant=scheme, kv_tokens=room, prepared=False, speculation="off")
            row: dict[str, Any] = {
                "model": arguments.layout or model_name(name),
                "dtype": dtype,
                "scheme": scheme,
                "bytes": runtime.ledger.snapshot()[device][model.owner]["weights"],
                "stored_bytes": model.checkpoint.weight_bytes,
                "load_s": round(time.perf_counter() - begin, 2),
                **speeds(runtime, model, arguments),
            }
            model.unload()
            rows.append(row)
            row["ratio"] = round(row["decode_tokens_per_s"] / rows[0]["decode_tokens_per_s"], 2)
            if quality is not None:
                row |= quality.of(name, scheme)
            print(row, flush=True)


class Quality:
    """How far other forms of a model are from it."""

    def __init__(self, runtime: kamado.Runtime, reference: str, dtype: str) -> None:
        self._runtime = runtime
        self._options: dict[str, Any] = {"dtype": dtype, "device": runtime.device.name}
        checkpoint = configured(runtime.inspect(reference))
        self._tokens = tokens_of_text(checkpoint)
        self._wanted = logits_of(checkpoint, self._tokens, **self._options)

    def of(self, name: str, scheme: str) -> dict[str, float]:
        """KL divergence, agreement and perplexity."""
        checkpoint = configured(self._runtime.inspect(name))
        form = parse_quant(scheme)
        form = form.on(self._runtime.device.kind) if form is not None else None
        got = logits_of(checkpoint, self._tokens, quant=form, **self._options)
        return {key: round(value, 5) for key, value in figures(self._wanted, got, self._tokens).items()}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--layout", choices=LAYOUTS, help="random weights of this layout instead of a model")
    parser.add_argument("--schemes", nargs="+", help="default: none, and every one that the device can run")
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=counting, default=32)
    parser.add_argument("--prompt", type=counting, default=256)
    parser.add_argument("--reps", type=counting, default=3)
    parser.add_argument("--write", metavar="NAME")
    arguments = parser.parse_args()
    machine = description(arguments.device)
    print(machine)
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.layout:
                write_layout(arguments.layout, Path(folder), device=arguments.device)
            table(folder if arguments.layout else arguments.model, arguments, rows)
    finally:
        if arguments.write and rows:
            print(write(arguments.write, rows, machine))


if __name__ == "__main__":
    run_program(main)
