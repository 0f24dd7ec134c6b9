"""Chains as TOML files.

inputs = ["topic"]                       # may be left out: what steps refer to and nobody makes is an input

[[step]]
name = "idea"
model = "smollm2:135m"
load = { quant = "int8" }                # settings of Runtime.load
prompt = "Say in one line what a picture of {topic} shows."
max_tokens = 40

[[step]]
name = "picture"
model = "emoji-diffusion:64"
prompt = "{idea}"
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..checkpoint.reference import must_be_path
from ..errors import InvalidRequest
from .chain import Chain, ChainStep

MAX_BYTES = 1 << 20


def read_chain(path: str | Path) -> Chain:
    """The chain in a TOML file. Models that are paths start from the file's folder. Raises InvalidRequest."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidRequest(f"cannot read the chain {str(path)!r}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise InvalidRequest(f"the chain {str(path)!r} is longer than {MAX_BYTES} bytes; that is no chain")
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the chain {str(path)!r} is not TOML: {error}") from None
    try:
        return _chain(document, path.parent)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from None


def _chain(document: dict[str, Any], folder: Path) -> Chain:
    if unknown := sorted(document.keys() - {"inputs", "step"}):
        raise InvalidRequest(f"unknown key {unknown[0]!r}; a chain has inputs and [[step]]")
    inputs, steps = document.get("inputs", []), document.get("step", [])
    if not isinstance(inputs, list):
        raise InvalidRequest(f"inputs must be a list of names, not {inputs!r:.80}")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InvalidRequest("a chain has steps: tables called [[step]]")
    return Chain([_step(step, number, folder) for number, step in enumerate(steps, 1)], inputs=inputs)


def _step(table: dict[str, Any], number: int, folder: Path) -> ChainStep:
    options = dict(table)
    name, model, load = options.pop("name", None), options.pop("model", None), options.pop("load", {})
    if not isinstance(name, str) or not isinstance(model, str) or not model:
        raise InvalidRequest(f"step {number} must have a name and a model, which are texts")
    if not isinstance(load, dict):
        raise InvalidRequest(f'step {name}: load must be a table like {{ quant = "int8" }}')
    if must_be_path(model) and not Path(model).expanduser().is_absolute():
        model = str(folder / Path(model).expanduser())
    return ChainStep(name, model, load=load, **options)
