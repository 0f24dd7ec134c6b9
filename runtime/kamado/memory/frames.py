"""Errors without the memory of what was computed where they arose."""

from __future__ import annotations

import traceback


def forget_locals(error: BaseException | None) -> None:
    """Drop the variables of the functions that `error`, or what led to it, came through, but for those that still run.
    Who keeps an error would keep them, and all that a model was computing with."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
