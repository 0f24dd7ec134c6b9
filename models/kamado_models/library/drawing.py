"""How tokens are chosen, and how far that has got."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .kinds import Bench


def drawing(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` of transformers is told of how tokens are chosen, by the options `temperature`, `top_k`, `top_p`;
    temperature 0 takes the likeliest ones. Nothing where nothing was asked: the model's own settings hold then."""
    found: dict[str, Any] = {name: asked[name] for name in ("temperature", "top_k", "top_p") if name in asked}
    if found.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **found} if found else {}


class StepCounter:
    """Tells of each step of a `generate`, which takes it as a criterion for stopping, that never stops it, or as a
    streamer: some of transformers' loops know the one only, some the other."""

    def __init__(self, bench: Bench, total: int) -> None:
        self._bench = bench
        self._total = total
        self._step = 0
        self._is_first = True

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """See StoppingCriteria."""
        self._count()
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)

    def put(self, value: Any) -> None:
        """See BaseStreamer. The first call has what was given."""
        if not self._is_first:
            self._count()
        self._is_first = False

    def end(self) -> None:
        """See BaseStreamer."""

    def _count(self) -> None:
        self._step += 1
        if self._step <= self._total:
            self._bench.progress(self._step, self._total)
