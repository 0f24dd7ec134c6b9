"""Requests that can be compared: greedy, of fixed length, with random prompts that no cache knows."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import KamadoError
from ..events import Progress, Token
from ..results import Result

if TYPE_CHECKING:
    from ..api import Model
    from ..jobs import Job

GREEDY: Mapping[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,
}
_SMALL_VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request that ran. Times are those of `time.monotonic`."""

    result: Result
    submitted_s: float
    ended_s: float
    tokens_s: tuple[float, ...]
    """When each token came out of the loop."""
    steps_s: tuple[float, ...]
    """When each denoising step was done."""
    num_steps: int
    """As announced; 0 of texts."""

    @property
    def ttft_s(self) -> float:
        """From submission to the first token."""
        return self.tokens_s[0] - self.submitted_s


class Prompts:
    """Draws token ids: the same ones in every program run, never the same twice."""

    def __init__(self, vocab_size: int | None, seed: int = 0) -> None:
        self._random = random.Random(seed)
        size = vocab_size or _SMALL_VOCABULARY
        # Special tokens are among the first and the last.
        self._range = (size // 4, max(size * 3 // 4, size // 4 + 1))

    def draw(self, length: int) -> list[int]:
        """A prompt of so many tokens."""
        return [self._random.randrange(*self._range) for _ in range(length)]


def run_together(model: Model, requests: Sequence[Mapping[str, Any]]) -> list[Answered]:
    """Submit them all, and wait for all. Raises what the first that failed raises."""
    jobs: list[Job] = []
    try:
        for request in requests:
            jobs.append(model.submit(**request))
        wait_for(jobs)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    return [answered(job) for job in jobs]


def wait_for(jobs: Sequence[Job]) -> None:
    """Until all have ended, well or not. Results are made later: that is work, beside requests that still run."""
    ended = threading.Semaphore(0)
    for job in jobs:
        job.when_done(ended.release)
    for _ in jobs:
        ended.acquire()


def answered(job: Job) -> Answered:
    """What a finished job tells. Raises what ended it."""
    result = job.result()
    if result.failures:
        raise result.failures[0].error
    arrivals = job.arrivals()
    steps = [(event, when) for event, when in arrivals if isinstance(event, Progress)]
    return Answered(
        result=result,
        submitted_s=job.submitted_s,
        ended_s=job.submitted_s + result.timings.total_s,
        tokens_s=tuple(when for event, when in arrivals if isinstance(event, Token)),
        steps_s=tuple(when for _, when in steps),
        num_steps=steps[0][0].total if steps else 0,
    )


def guessed_shares(answers: Sequence[Answered]) -> dict[str, float]:
    """For each token that was made: how many were guessed, and how many of these were right."""
    made = max(sum(len(one.tokens_s) for one in answers), 1)
    usages = [one.result.usage for one in answers]
    return {
        "proposed_share": sum(usage.proposed_tokens for usage in usages) / made,
        "accepted_share": sum(usage.accepted_tokens for usage in usages) / made,
    }


def check_length(one: Answered, new_tokens: int) -> None:
    """Raises KamadoError if the answer has not exactly so many tokens: its figures would be of another test."""
    if len(one.tokens_s) != new_tokens:
        raise KamadoError(f"a request for {new_tokens} tokens made {len(one.tokens_s)}; nothing can be said about it")
