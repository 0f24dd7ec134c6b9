"""Recipes for tests of pictures: a usual one, and strategies for unusual ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

RECIPE: dict[str, Any] = {
    "kamado": "0.1.0",
    "model": {
        "reference": "./models/dreamer_8.safetensors",
        "revision": None,
        "files": {"dreamer_8.safetensors": "879db523c3" + "0" * 54},
    },
    "options": {
        "prompt": "a lighthouse at dusk, (oil:1.2)\nwide",
        "negative": "blurry, low: quality",
        "width": 512,
        "height": 768,
        "steps": 20,
        "guidance": 7.0,
        "scheduler": "dpm++-karras",
        "seed": 1,
    },
    "device": "cpu",
    "dtype": "float32",
    "quant": "none",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
}

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
RECIPES = st.dictionaries(st.text(max_size=10), VALUES, max_size=5)
FIELDS = ("kamado", "model", "options", "adapters", "inputs", "device", "dtype", "quant", "versions", "batched")
INNER = ("reference", "revision", "files", "prompt", "negative", "width", "height", "seed", "weight", "sha256", "image")
ODD = st.recursive(
    st.sampled_from([None, True, 1, -2.5, 10**400, float("nan"), "", "x", "a/b", "\x1b[31m", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=5),
    max_leaves=8,
)
ODD_RECIPES = st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6)
"""The right fields with any content."""
