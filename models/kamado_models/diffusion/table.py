"""What diffusers' pipeline classes make, and which must run by themselves. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

RUN = ("image", "video", "audio", "mesh", "map")
"""What can be made of what the table names."""
_ALONE = "-alone"


def makes(pipeline: str) -> str:
    """`image`, `video`, `audio`, ... A class that the table does not know is taken for one of pictures."""
    return _table().get(pipeline, "image").removesuffix(_ALONE)


def comes_out(pipeline: str) -> str:
    """What outputs are, by their names in `kamado.outputs.KINDS`: maps are pictures."""
    made = makes(pipeline)
    return "image" if made == "map" else made


def words(made: str) -> str:
    """For people: the plural of what a pipeline makes."""
    return {"image": "pictures", "video": "videos", "audio": "sounds", "mesh": "meshes"}.get(made, f"{made}s")


def runs_alone(pipeline: str) -> bool:
    """Whether it changes its models while it runs, so that no other request may use them meanwhile."""
    return _table().get(pipeline, "").endswith(_ALONE)


def takes(pipeline: str) -> str | None:
    """The names of what its models can be asked, after commas; None where that is not known without the class."""
    return _takes().get(pipeline)


@cache
def _takes() -> Mapping[str, str]:
    return tomllib.loads(resources.files(__package__).joinpath("takes.toml").read_text(encoding="utf-8"))


@cache
def _table() -> Mapping[str, str]:
    text = resources.files(__package__).joinpath("pipelines.toml").read_text(encoding="utf-8")
    return {name: group for group, names in tomllib.loads(text).items() for name in names}
