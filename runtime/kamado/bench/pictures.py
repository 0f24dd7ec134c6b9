"""Steps and seconds of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from .counting import counted
from .figures import joint_rate, mean_and_deviation, peak_memory_bytes
from .options import BenchOptions, Row
from .requests import Answered, run_together

if TYPE_CHECKING:
    from ..api import Model

_PROMPT = "{number}: a lighthouse at dusk"


def bench_pictures(model: Model, options: BenchOptions, report: Callable[[str], None]) -> list[Row]:
    """One row for each number of pictures at the same time, without what all rows share. Raises what requests raise."""
    rows = []
    pictures = _Pictures(model, options.picture)
    report("one picture")
    with counted(model) as count:
        pictures.run(1)
    for batch in options.batches:
        name = "image" if batch == 1 else f"image, {batch} at once"
        report(name)
        begin = time.monotonic()
        first = pictures.run(batch)[0]
        warmup_s = time.monotonic() - begin
        runs = [pictures.run(batch) for _ in range(options.reps)]
        rates = [joint_rate([one.steps_s for one in run]) for run in runs]
        known = [rate for rate in rates if rate is not None]
        seconds = [(max(one.ended_s for one in run) - min(one.submitted_s for one in run)) / batch for run in runs]
        mean, deviation = mean_and_deviation(seconds)
        width, height = first.result.images[0].size
        rows.append(
            {
                "test": "image",
                "width": width,
                "height": height,
                "steps": first.num_steps or None,
                "batch": batch,
                "steps_per_s": mean_and_deviation(known)[0] if known else None,
                "s_per_image": mean,
                "stddev": deviation,
                "bandwidth_GB_s": None,
                "operations_G_s": None if count.operations is None else count.operations / mean / 1e9,
                "reps": options.reps,
                "warmup_s": warmup_s,
                "peak_memory_bytes": peak_memory_bytes(model.plan.device),
            }
        )
    return rows


class _Pictures:
    """Requests with a prompt and a seed of their own each, so that nothing is known of them before."""

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = options
        self._number = 0
        self._takes_prompt: bool | None = None

    def run(self, batch: int) -> list[Answered]:
        requests = []
        for _ in range(batch):
            self._number += 1
            requests.append({**self._options, "seed": self._number})
        if self._takes_prompt is None:
            return self._first(requests)
        return run_together(self._model, self._prompted(requests) if self._takes_prompt else requests)

    def _first(self, requests: list[dict[str, Any]]) -> list[Answered]:
        """Models without a text encoder refuse a prompt: what they say is raised only if they do not run without."""
        try:
            done = run_together(self._model, self._prompted(requests))
        except InvalidRequest as error:
            try:
                done = run_together(self._model, requests)
            except InvalidRequest:
                raise error from None
            self._takes_prompt = False
        else:
            self._takes_prompt = True
        return done

    def _prompted(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"prompt": _PROMPT.format(number=request["seed"]), **request} for request in requests]
