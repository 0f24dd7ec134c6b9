"""Chat, pictures, speech and embeddings in one process, under one budget: does each get what it gets alone, and how
much slower.

    python benchmarks/kinds.py [--seconds 4] [--rounds 3] [--least 1] [--memory 2GiB] [--device cpu] [--write NAME]
                               [--chat smollm2:135m] [--picture emoji-diffusion:64] [--embedding minilm:l6]
                               [--speech FOLDER]

Each kind keeps some requests in flight: first by itself, for `--seconds`, then all four at once, for as long; that
`--rounds` times, in turns, for a machine whose speed wanders. A kind's slowdown is how long a request takes beside the
others, over how long it takes by itself (the median of the rounds). Where four share a device evenly it is about 4 for
each; a kind with more is neglected. That says the share of the least favoured, and Jain's index (R. Jain, D. Chiu,
W. Hawe, 1984): 1 where all are slowed down alike, 1/4 where one gets everything.

Every answer is compared with the first one to the same request alone: texts must be equal, pictures, sounds and vectors
must agree within 1e-4. Exit status 1 if one does not.

The speech model is a VITS with random weights, unless a folder is given: it says nothing that can be understood.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from machine import counting, description, model_name, run_program, write
from speech_layout import write_speech_layout

import kamado
from kamado.errors import KamadoError
from kamado.results import Result

DIFFERENT = 8
"""Requests of a kind; then they come again."""
TOLERANCE = 1e-4
"""Of a pixel in [0, 1], a sample in [-1, 1], a number of a vector of length 1."""
SENTENCES = (
    "the lamp at the end of the pier goes round",
    "a man is playing a guitar",
    "prices fell again",
    "somebody plays an instrument in the street below while it rains",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """One kind of requests."""

    name: str
    reference: str
    concurrency: int
    """Requests that it keeps in flight."""
    request: Callable[[int], Mapping[str, Any]]
    """The request of a number; the same one each time."""
    value: Callable[[Result], Any]
    """What is compared: a text, or an array."""


def sorts(arguments: argparse.Namespace, speech: str) -> tuple[Sort, ...]:
    """The four kinds."""
    asked = "Tell me of the number {} in one long sentence."
    return (
        Sort(
            name="chat",
            reference=arguments.chat,
            concurrency=2,
            request=lambda i: {
                "prompt": asked.format(i % DIFFERENT),
                "max_tokens": 24,
                "temperature": 0.0,
                "ignore_eos": True,
            },
            value=lambda result: result.text,
        ),
        Sort(
            name="picture",
            reference=arguments.picture,
            concurrency=2,
            request=lambda i: {"prompt": "a red heart", "seed": i % DIFFERENT, "steps": 10},
            value=lambda result: result.pixels[0],
        ),
        Sort(
            name="speech",
            reference=speech,
            concurrency=2,
            request=lambda i: {"prompt": SENTENCES[i % 4], "seed": i % DIFFERENT},
            value=lambda result: result.audio,
        ),
        Sort(
            name="embedding",
            reference=arguments.embedding,
            concurrency=8,
            request=lambda i: {"prompt": f"{SENTENCES[i % 4]} {i % DIFFERENT}"},
            value=lambda result: result.embedding,
        ),
    )


def feed(model: kamado.Model, sort: Sort, stop: Callable[[int], bool]) -> dict[int, Result]:
    """Results by the number of their requests, which are sent until `stop(how many are done)`. Those in flight then are
    cancelled."""
    done: dict[int, Result] = {}
    requests = (sort.request(number) for number in itertools.count())
    for position, result in model.map(requests, concurrency=sort.concurrency):
        if isinstance(result, KamadoError):
            raise result
        done[position] = result
        if stop(len(done)):
            break
    return done


def alone(model: kamado.Model, sort: Sort, seconds: float, least: int) -> dict[int, Result]:
    """One kind by itself. Its first request does not count."""
    model.generate(**sort.request(0))
    end = time.monotonic() + seconds
    return feed(model, sort, lambda count: count >= least and time.monotonic() >= end)


def together(
    models: Mapping[str, kamado.Model], kinds: tuple[Sort, ...], seconds: float, least: int
) -> dict[str, dict[int, Result]]:
    """All kinds at once, until each has had `least` answers. Raises what one that failed raised."""
    counts = dict.fromkeys(models, 0)
    end = time.monotonic() + seconds
    gone = threading.Event()

    def run(sort: Sort) -> dict[int, Result]:
        def stop(count: int) -> bool:
            counts[sort.name] = count
            return gone.is_set() or (time.monotonic() >= end and min(counts.values()) >= least)

        try:
            return feed(models[sort.name], sort, stop)
        except Exception:
            gone.set()
            raise

    with ThreadPoolExecutor(len(kinds)) as pool:
        running = {sort.name: pool.submit(run, sort) for sort in kinds}
        return {name: future.result() for name, future in running.items()}


def difference(one: Any, other: Any) -> float:
    """The largest between two values; of texts 0 or infinity, as of arrays of other shapes."""
    if isinstance(one, str) or one.shape != other.shape:
        return 0.0 if isinstance(one, str) and one == other else float("inf")
    return float(numpy.abs(one.astype(numpy.float64) - other).max())


Round = tuple[dict[int, Result], dict[int, Result]]
"""Results of a kind by itself, and beside the others."""


def row_of(sort: Sort, rounds: list[Round]) -> dict[str, Any]:
    """What is said of a kind."""
    seconds = [tuple(statistics.fmean(r.timings.total_s for r in part.values()) for part in each) for each in rounds]
    first: dict[int, Any] = {}
    worst, compared = 0.0, 0
    for number, result in itertools.chain.from_iterable(part.items() for each in rounds for part in each):
        value = sort.value(result)
        if number % DIFFERENT in first:
            worst = max(worst, difference(first[number % DIFFERENT], value))
            compared += 1
        first.setdefault(number % DIFFERENT, value)
    return {
        "test": "kinds",
        "kind": sort.name,
        "model": model_name(sort.reference),
        "requests": sum(len(beside) for _, beside in rounds),
        "s_alone": round(statistics.median(before for before, _ in seconds), 4),
        "s_together": round(statistics.median(beside for _, beside in seconds), 4),
        "slowdown": round(statistics.median(beside / before for before, beside in seconds), 3),
        "compared": compared,
        "difference": worst,
    }


def fairness(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Jain's index over what is left of each kind's speed, and the least of that beside an even share."""
    speeds = [1 / row["slowdown"] for row in rows]
    return {
        "test": "fairness",
        "jain": round(sum(speeds) ** 2 / (len(speeds) * sum(speed**2 for speed in speeds)), 3),
        "least_share": round(min(speeds) * len(speeds), 3),
        "speed_of_all": round(sum(speeds), 3),
    }


def line(row: dict[str, Any]) -> str:
    """For people."""
    if row["test"] == "fairness":
        return (
            f"fairness: Jain's index {row['jain']:.3f}; the least favoured has {row['least_share']:.2f} of an even "
            f"share; all together do {row['speed_of_all']:.2f} times the work of one"
        )
    return (
        f"{row['kind']:<10} {row['model']:<24} alone {row['s_alone'] * 1e3:>8.0f} ms a request   together "
        f"{row['s_together'] * 1e3:>8.0f} ms   slowdown {row['slowdown']:>6.2f}   {row['compared']} compared, "
        f"differ by {row['difference']:.1e} at most"
    )


def measured(arguments: argparse.Namespace, speech: str) -> list[dict[str, Any]]:
    """A row for each kind, and one for all."""
    kinds = sorts(arguments, speech)
    found: dict[str, list[Round]] = {sort.name: [] for sort in kinds}
    with kamado.Runtime(device=arguments.device, memory=arguments.memory) as runtime:
        models = {sort.name: runtime.load(sort.reference, pinned=True) for sort in kinds}
        for _ in range(arguments.rounds):
            before = {sort.name: alone(models[sort.name], sort, arguments.seconds, arguments.least) for sort in kinds}
            beside = together(models, kinds, arguments.seconds, arguments.least)
            for name, rounds in found.items():
                rounds.append((before[name], beside[name]))
    rows = [row_of(sort, found[sort.name]) for sort in kinds]
    return [*rows, fairness(rows)]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", default="smollm2:135m")
    parser.add_argument("--picture", default="emoji-diffusion:64")
    parser.add_argument("--embedding", default="minilm:l6")
    parser.add_argument("--speech", help="a speech model instead of one with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="2GiB", help="of all four")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=counting, default=3)
    parser.add_argument("--least", type=counting, default=1, help="answers of each kind")
    parser.add_argument("--write", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    arguments = parser.parse_args()
    machine = description(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        speech = arguments.speech or str(write_speech_layout(Path(folder) / "vits"))
        rows = measured(arguments, speech)
    for row in rows:
        print(line(row))
    if arguments.write is not None:
        print(write(arguments.write, rows, machine))
    if others := [row["kind"] for row in rows if row.get("difference", 0.0) > TOLERANCE]:
        raise KamadoError(f"not the same as alone: {', '.join(others)}")


if __name__ == "__main__":
    run_program(main)
