"""Prefill, decoding and batches of a text model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from .figures import gaps, joint_rate, mean_and_deviation, peak_memory_bytes, percentile
from .options import BenchOptions, Row
from .requests import GREEDY, Answered, Prompts, check_length, guessed_shares, run_together
from .traffic import Traffic

if TYPE_CHECKING:
    from ..api import Model


def bench_texts(
    model: Model, options: BenchOptions, traffic: Traffic | None, report: Callable[[str], None]
) -> list[Row]:
    """One row a test, without what all rows share. `report` is told which test comes. Raises InvalidRequest for tests
    that the model has no room for, and what requests raise."""
    tests = planned(options)
    check_room(model, options, tests)
    prompts = Prompts(model.info.get("vocab_size"))
    rows = []
    for name, batch in tests:
        report(name)
        is_prefill = name.startswith("pp")
        lengths = (options.prompt_tokens, 1) if is_prefill else (options.depth, options.new_tokens)
        begin = time.monotonic()
        _run(model, prompts, batch, *lengths)
        warmup_s = time.monotonic() - begin
        before = _steps(model)
        runs = [_run(model, prompts, batch, *lengths) for _ in range(options.reps)]
        row: Row = {"test": name, "prompt_tokens": lengths[0], "new_tokens": lengths[1], "batch": batch}
        row |= _prefill(runs, lengths[0]) if is_prefill else _decoding(runs)
        mean_batch = _mean_batch(before, _steps(model))
        row |= _reached(row, traffic, is_prefill, mean_batch or batch, lengths)
        row |= {
            "mean_batch": mean_batch,
            "reps": options.reps,
            "warmup_s": warmup_s,
            "peak_memory_bytes": peak_memory_bytes(model.plan.device),
        }
        rows.append(row)
    return rows


def planned(options: BenchOptions) -> list[tuple[str, int]]:
    """(name, requests at the same time) of each test. Raises InvalidRequest if there is none."""
    tests = [(f"pp{options.prompt_tokens}", 1)] if options.prompt_tokens else []
    if options.new_tokens:
        tests += [(f"tg{options.new_tokens}" if batch == 1 else f"batch{batch}", batch) for batch in options.batches]
    if not tests:
        raise InvalidRequest("there is nothing to measure: both -p and -n are 0")
    return tests


def check_room(model: Model, options: BenchOptions, tests: Sequence[tuple[str, int]]) -> None:
    """Raise InvalidRequest for tests that are too long for the model's context, or for the memory it has."""
    context, held = model.plan.context_tokens, model.plan.kv_tokens
    for name, batch in tests:
        is_prefill = name.startswith("pp")
        length = options.prompt_tokens + 1 if is_prefill else options.depth + options.new_tokens
        if context and length > context:
            raise InvalidRequest(
                f"{name} needs {length} tokens, but the context of {model.reference} is {context} tokens"
            )
        if held and batch * length > held:
            raise InvalidRequest(
                f"{name} needs {batch * length} tokens of attention state, but there are {held}; "
                f"--kv-tokens {batch * length} asks for that many"
            )


def _run(model: Model, prompts: Prompts, batch: int, length: int, new_tokens: int) -> list[Answered]:
    requests = [{"prompt_tokens": prompts.draw(length), "max_tokens": new_tokens, **GREEDY} for _ in range(batch)]
    done = run_together(model, requests)
    for one in done:
        check_length(one, new_tokens)
    return done


def _prefill(runs: Sequence[Sequence[Answered]], length: int) -> Row:
    ttft = [run[0].ttft_s for run in runs]
    mean, deviation = mean_and_deviation([length / seconds for seconds in ttft])
    row: Row = {"tokens_per_s": mean, "stddev": deviation, "ttft_ms": 1000 * mean_and_deviation(ttft)[0]}
    return row | {"itl_ms_p50": None, "itl_ms_p99": None, "proposed_share": 0.0, "accepted_share": 0.0}


def _decoding(runs: Sequence[Sequence[Answered]]) -> Row:
    mean, deviation = mean_and_deviation([decoding_rate(run) for run in runs])
    ttft = [one.ttft_s for run in runs for one in run]
    between = [1000 * gap for run in runs for one in run for gap in gaps(one.tokens_s)]
    return {
        "tokens_per_s": mean,
        "stddev": deviation,
        "ttft_ms": 1000 * mean_and_deviation(ttft)[0],
        "itl_ms_p50": percentile(between, 0.5),
        "itl_ms_p99": percentile(between, 0.99),
        **guessed_shares([one for run in runs for one in run]),
    }


def decoding_rate(run: Sequence[Answered]) -> float:
    """Tokens a second while all requests decode; where they never do at the same time, over the whole run."""
    rate = joint_rate([one.tokens_s for one in run])
    if rate is not None:
        return rate
    seconds = max(one.ended_s for one in run) - min(one.submitted_s for one in run)
    return sum(len(one.tokens_s) for one in run) / seconds


def _reached(row: Row, traffic: Traffic | None, is_prefill: bool, mean_batch: float, lengths: tuple[int, int]) -> Row:
    """Bytes read and operations done a second, as far as they can be told. Requests that share a forward share what is
    read for it."""
    found: Row = {"bandwidth_GB_s": None, "operations_G_s": None}
    if traffic is None:
        return found
    rate = row["tokens_per_s"]
    length, new_tokens = lengths
    if is_prefill:
        found["operations_G_s"] = traffic.prefill_operations(length) * rate / length / 1e9
    else:
        context = length + new_tokens / 2
        # A guessed token that was right needed no step of its own; one that was wrong was computed for nothing.
        steps = rate * (1 - row["accepted_share"]) / mean_batch
        computed = rate * (1 - row["accepted_share"] + row["proposed_share"])
        found["bandwidth_GB_s"] = traffic.step_bytes(mean_batch, context) * steps / 1e9
        found["operations_G_s"] = traffic.token_operations() * computed / 1e9
    return found


def _steps(model: Model) -> tuple[int, int]:
    """Forwards of the model's lanes up to now, and the rows in them."""
    lanes: Mapping[str, Any] = model.runtime.stats().get("lanes", {})
    own = [figures for name, figures in lanes.items() if name.startswith(f"{model.owner}/")]
    return sum(figures["steps"] for figures in own), sum(figures["rows"] for figures in own)


def _mean_batch(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    steps, rows = (late - early for early, late in zip(before, after, strict=True))
    return rows / steps if steps else None
