"""Plays a trace of requests to a model, as users would send them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import KamadoError
from .figures import gaps, peak_memory_bytes, percentile
from .options import Row
from .requests import GREEDY, Answered, Prompts, answered, guessed_shares
from .trace import Arrival

if TYPE_CHECKING:
    from ..api import Model
    from ..jobs import Job

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that came to nothing."""

    line: int
    error: KamadoError


@dataclass(slots=True)
class _Sent:
    arrival: Arrival
    due_s: float
    """From when on somebody waits for it."""
    job: Job


def replay_trace(
    model: Model,
    arrivals: Sequence[Arrival],
    *,
    concurrency: int | None,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[Row, list[Failed]]:
    """(the row, without what all rows share; the requests that failed).

    Each request is submitted when its time has come, in order; at most `concurrency` are in flight, and those that come
    earlier wait, which counts as part of their times. Requests without a time are submitted as soon as there is room,
    and count from then on. `report` is told how many were submitted."""
    prompts = Prompts(model.info.get("vocab_size"))
    # Drawing prompts takes time, which belongs to nobody.
    requests = [
        {**(arrival.asked or {"prompt_tokens": prompts.draw(arrival.prompt_length)}), **GREEDY}
        | {"max_tokens": arrival.max_tokens}
        for arrival in arrivals
    ]
    begin = time.monotonic()
    sent, failed = _send(model, arrivals, requests, concurrency, report, begin=begin)
    done: list[tuple[_Sent, Answered]] = []
    for one in sent:
        try:
            done.append((one, answered(one.job)))
        except KamadoError as error:
            failed.append(Failed(one.arrival.line, error))
    seconds = max((each.ended_s for _, each in done), default=time.monotonic()) - begin
    return _row(model, done, len(arrivals), len(failed), concurrency, seconds), sorted(failed, key=lambda one: one.line)


def _send(
    model: Model,
    arrivals: Sequence[Arrival],
    requests: Sequence[dict[str, Any]],
    concurrency: int | None,
    report: Callable[[int], None],
    *,
    begin: float,
) -> tuple[list[_Sent], list[Failed]]:
    """Returns when all have ended."""
    limit = concurrency or len(arrivals)
    room = threading.Semaphore(limit)
    sent: list[_Sent] = []
    failed: list[Failed] = []
    try:
        for number, (arrival, request) in enumerate(zip(arrivals, requests, strict=True)):
            due = None if arrival.at_s is None else begin + arrival.at_s
            if due is not None and (left := due - time.monotonic()) > 0:
                time.sleep(left)
            room.acquire()
            try:
                job = model.submit(**request)
            except KamadoError as error:
                failed.append(Failed(arrival.line, error))
                room.release()
                continue
            sent.append(_Sent(arrival, job.submitted_s if due is None else due, job))
            job.when_done(room.release)
            report(number + 1)
        for _ in range(limit):  # all room is there again once all have ended
            room.acquire()
    except BaseException:
        for one in sent:
            one.job.cancel()
        raise
    return sent, failed


def _row(
    model: Model,
    done: Sequence[tuple[_Sent, Answered]],
    asked: int,
    failed: int,
    concurrency: int | None,
    seconds: float,
) -> Row:
    made = sum(len(one.tokens_s) for _, one in done)
    read = sum(one.result.usage.prompt_tokens for _, one in done)
    waits = {
        "ttft_ms": [1000 * (one.tokens_s[0] - sent.due_s) for sent, one in done if one.tokens_s],
        "itl_ms": [1000 * gap for _, one in done for gap in gaps(one.tokens_s)],
        "total_ms": [1000 * (one.ended_s - sent.due_s) for sent, one in done],
    }
    return {
        "test": "load",
        "requests": asked,
        "failed": failed,
        "concurrency": concurrency,
        "duration_s": seconds,
        "requests_per_s": len(done) / seconds,
        "tokens_per_s": made / seconds,
        "prompt_tokens_per_s": read / seconds,
        **{
            f"{name}_{label}": percentile(values, share)
            for name, values in waits.items()
            for label, share in _SHARES.items()
        },
        **guessed_shares([one for _, one in done]),
        "peak_memory_bytes": peak_memory_bytes(model.plan.device),
    }
