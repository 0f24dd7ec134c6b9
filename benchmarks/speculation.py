"""What guessing tokens brings: the same requests with and without, in turns, on the same loaded weights' twins.

    python benchmarks/speculation.py [--model smollm2:135m] [--device cpu] [--dtype auto] [--tokens 128] [--reps 5]
                                     [--streams 1 4] [--tasks repeat edit free drawn] [--quant int8] [--write NAME]
                                     [--draft REF | --deepened N]

The model is loaded twice, with `speculation="auto"` and "off", and the two answer alternately; with --draft, the one
with "auto" has that draft. A figure is generated tokens over the time behind the first token, so that prompts do not
count; the ratio is the median of the paired ratios. Whether the answers were the same, token for token, is told beside
it.

With --deepened N the model answers with N times its layers, of which the new ones add nothing, and the model as it is
guesses for that: the most that a draft of an Nth of the size can bring, because it is right each time.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from machine import counting, description, model_name, run_program, write

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
        "draft": model_name(draft) if (draft := models["auto"].info.get("draft")) else None,
        "proposed": usage.proposed_tokens,
        "accepted": usage.accepted_tokens,
        "same": same,
    }


def deepened(runtime: kamado.Runtime, reference: str, times: int, folder: Path) -> tuple[Path, Path]:
    """Write a model of that many times the layers that computes the same, and the model itself. Returns the folders."""
    import torch
    from transformers import AutoModelForCausalLM

    from kamado_models.language.family import configured
    from kamado_models.language.loading import read_model
    from kamado_models.language.tokenizer import load_tokenizer

    checkpoint = configured(runtime.inspect(reference))
    model, _ = read_model(checkpoint, dtype="float32", device="cpu")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers *= times
    if getattr(config, "layer_types", None):
        config.layer_types = [kind for kind in config.layer_types for _ in range(times)]
    with torch.random.fork_rng(devices=[]):
        deep = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    parts = {name: part for name, part in model.named_children() if name != "model"}
    for name, part in parts.items():
        getattr(deep, name).load_state_dict(part.state_dict())
    for name, part in model.model.named_children():
        if name != "layers":
            getattr(deep.model, name).load_state_dict(part.state_dict())
    for place, layer in enumerate(deep.model.layers):
        layer.load_state_dict(model.model.layers[place // times].state_dict())
        if place % times:
            for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                torch.nn.init.zeros_(last.weight)
    tokenizer = load_tokenizer(checkpoint)
    for each, where in ((model, folder / "as-it-is"), (deep, folder / f"deepened-{times}")):
        each.save_pretrained(where)
        tokenizer.backend.save(str(where / "tokenizer.json"))
        (where / "tokenizer_config.json").write_text(json.dumps(tokenizer.as_config()), encoding="utf-8")
    tokenizer.close()
    return folder / f"deepened-{times}", folder / "as-it-is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--tokens", type=counting, default=128)
    parser.add_argument("--reps", type=counting, default=5)
    parser.add_argument("--streams", type=counting, nargs="+", default=[1])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--write", metavar="NAME")
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument("--draft", metavar="REF")
    drafts.add_argument("--deepened", type=counting, metavar="N")
    args = parser.parse_args()
    machine, rows = description(args.device), []
    with tempfile.TemporaryDirectory() as folder, kamado.Runtime(device=args.device) as runtime:
        model, draft = args.model, args.draft
        if args.deepened:
            model, draft = deepened(runtime, args.model, args.deepened, Path(folder))
        settings: Any = {"dtype": args.dtype, "quant": args.quant, "kv_tokens": 8192, "prepared": False}
        models = {
            "auto": runtime.load(model, draft=draft, **settings),
            "off": runtime.load(model, speculation="off", **settings),
        }
        name = (
            f"{model_name(args.model)}, {args.deepened} times the layers" if args.deepened else model_name(args.model)
        )
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
        print(write(args.write, [{"model": name, **row} for row in rows], machine))


if __name__ == "__main__":
    run_program(main)
