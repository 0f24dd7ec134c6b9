"""Steps and seconds of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from .counting import counted
from .figures import joint_rate, mean_and_deviation, peak_memory_bytes
from .options import BenchOptions, Row
from .requests import Answered, run_together
from .samples import medium

if TYPE_CHECKING:
    from ..api import Model

_PROMPT = "{number}: a lighthouse at dusk"
_INPUTS = (("prompt",), (), ("prompt", "image"), ("image",), ("prompt", "image", "mask"), ("prompt", "video"))
"""What models are tried with, in turn."""


def bench_pictures(model: Model, options: BenchOptions, report: Callable[[str], None]) -> list[Row]:
    """One row for each number of pictures at the same time, without what all rows share. Raises what requests raise."""
    rows = []
    pictures = Prompted(model, options.picture)
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


class Prompted:
    """Requests with a seed of their own each, and a prompt, a picture or a video of noise where the model wants such,
    so that nothing is known of them before."""

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = options
        self._number = 0
        self._inputs: Sequence[str] | None = None
        """What the model is given; None: it was not asked yet."""
        self.heard_s: float | None = None
        """Nothing is put in that is as long as what comes out."""

    def run(self, batch: int) -> list[Answered]:
        """So many at the same time."""
        seeds = range(self._number + 1, self._number + batch + 1)
        self._number += batch
        if self._inputs is None:
            return self._first(seeds)
        return run_together(self._model, self._requests(seeds, self._inputs))

    def _first(self, seeds: Sequence[int]) -> list[Answered]:
        """Models refuse what they do not take, and ask for what they need: the first that goes is kept. What they say
        to a prompt alone is raised if nothing goes."""
        refused: InvalidRequest | None = None
        for inputs in _INPUTS:
            try:
                done = run_together(self._model, self._requests(seeds, inputs))
            except InvalidRequest as error:
                refused = refused or error
            else:
                self._inputs = inputs
                return done
        assert refused is not None, "each way was refused"
        raise refused

    def _requests(self, seeds: Sequence[int], inputs: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for seed in seeds:
            own = {name: _PROMPT.format(number=seed) if name == "prompt" else medium(name, seed) for name in inputs}
            found.append({**own, **self._options, "seed": seed})
        return found
