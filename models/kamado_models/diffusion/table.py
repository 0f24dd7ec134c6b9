"""What diffusers' pipeline classes make, and which must run by themselves. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

_ALONE = "-alone"


def makes(pipeline: str) -> str:
    """`image`, `video`, `audio`, ... A class that the table does not know is taken for one of pictures."""
    return _table().get(pipeline, "image").removesuffix(_ALONE)


def runs_alone(pipeline: str) -> bool:
    """Whether it changes its models while it runs, so that no other request may use them meanwhile."""
    return _table().get(pipeline, "").endswith(_ALONE)


@cache
def _table() -> Mapping[str, str]:
    text = resources.files(__package__).joinpath("pipelines.toml").read_text(encoding="utf-8")
    return {name: group for group, names in tomllib.loads(text).items() for name in names}
