"""How the models of each type share forwards, as `kamado show` says it before anything is loaded.

What is really done is found out on the loaded model (`paged_probe`, `rows_probe`); a test holds that this table says
the same for every architecture that the tests can build.
"""

from __future__ import annotations

PAGED = "continuous: packed tokens over a paged KV cache"
ROWS_RAGGED = "continuous: rows of any length, padded"
ROWS_STATE = "continuous: state slots, rows of any length"
ROWS_EQUAL = "rows of equal length share a forward"
ALONE = "one at a time"
UNKNOWN = "found out when it is loaded"

_BY_TYPE: dict[str, str] = {}


def batching_of(model_type: str) -> str:
    """A sentence for people."""
    return _BY_TYPE.get(model_type, UNKNOWN)
