"""Figures of sounds, videos, vectors, transcripts and whatever else models make besides texts and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import KamadoError
from ..outputs import KINDS, Audio, Embedding, Output, Picture, Scores, Transcript, Video
from .counting import counted
from .figures import joint_rate, mean_and_deviation, peak_memory_bytes
from .options import BenchOptions, Row
from .requests import Answered

if TYPE_CHECKING:
    from ..api import Model


class Runner(Protocol):
    """Runs requests that are new each time."""

    heard_s: float | None
    """Seconds of the sound that is put into one, where it is known."""

    def run(self, batch: int) -> list[Answered]:
        """So many at the same time. Raises what they raise."""


def bench_media(model: Model, options: BenchOptions, runner: Runner, report: Callable[[str], None]) -> list[Row]:
    """One row for each number of requests at the same time, without what all rows share. Raises what requests raise."""
    report("one request")
    with counted(model) as count:
        runner.run(1)
    rows = []
    for batch in options.batches:
        report(f"{batch} at once" if batch > 1 else "one at a time")
        begin = time.monotonic()
        first = runner.run(batch)[0]
        warmup_s = time.monotonic() - begin
        runs = [runner.run(batch) for _ in range(options.reps)]
        seconds = [(max(one.ended_s for one in each) - min(one.submitted_s for one in each)) / batch for each in runs]
        rates = [rate for each in runs if (rate := joint_rate([one.steps_s for one in each])) is not None]
        mean, deviation = mean_and_deviation(seconds)
        made = _made(first)
        in_steps = not isinstance(made[0], Embedding | Scores | Transcript)  # those announce parts of the input
        rows.append(
            {
                "test": KINDS[type(made[0])],
                "batch": batch,
                **figures(made, mean, heard_s=runner.heard_s, tokens=first.result.usage.prompt_tokens),
                "steps": first.num_steps or None if in_steps else None,
                "steps_per_s": mean_and_deviation(rates)[0] if rates and in_steps else None,
                "s_per_answer": mean,
                "stddev": deviation,
                "bandwidth_GB_s": None,
                "operations_G_s": None if count.operations is None else count.operations / mean / 1e9,
                "reps": options.reps,
                "warmup_s": warmup_s,
                "peak_memory_bytes": peak_memory_bytes(model.plan.device),
            }
        )
    return rows


def figures(made: Sequence[Output], seconds: float, *, heard_s: float | None, tokens: int) -> Row:
    """What there is to say of an answer that took `seconds`, by its kind. `heard_s`: seconds of the sound that was put
    in; `tokens`: that were read.

    `real_time_factor` is seconds of sound, made or heard, in each second."""
    first = made[0]
    if isinstance(first, Audio):
        length = sum(each.duration_s for each in made if isinstance(each, Audio))
        return {"seconds": length, "sample_rate": first.sample_rate, "real_time_factor": length / seconds}
    if isinstance(first, Video):
        frames, height, width = first.frames.shape[:3]
        count = frames * len(made)
        return {"width": width, "height": height, "frames": frames, "frames_per_s": count / seconds}
    if isinstance(first, Picture):
        return {"width": first.image.width, "height": first.image.height, "s_per_image": seconds / len(made)}
    if isinstance(first, Transcript):
        return {"seconds": heard_s, "real_time_factor": None if heard_s is None else heard_s / seconds}
    if isinstance(first, Embedding | Scores):
        inputs = len(first.vectors) if isinstance(first, Embedding) else len({item.index for item in first.items})
        return {
            "inputs": inputs,
            "tokens": tokens or None,
            "inputs_per_s": inputs / seconds,
            "tokens_per_s": tokens / seconds if tokens else None,
        }
    return {}


def _made(answer: Answered) -> list[Output]:
    result = answer.result
    made: list[Output] = [*(Picture(image=image) for image in result.images), *result.outputs]
    if not made:
        raise KamadoError("the request made nothing; nothing can be said about it")
    return made
