"""What kinds share whose models are one class of transformers and make sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint

from .kinds import About, architecture_of, num_parameters


class AudioKind:
    """See Kind; `options`, `parts` and `build` are left to each."""

    name: str
    about: About

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        return checkpoint.layout == "transformers" and architecture_of(checkpoint) in self.about.architectures

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return self.about.tasks

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("audio",)

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind."""
        return {
            "architecture": architecture_of(checkpoint),
            "parameters": num_parameters(checkpoint.tensors),
            **self.facts(checkpoint),
        }

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """More of them, for `kamado show`."""
        return {}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""


def json_beside(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """A JSON object among the checkpoint's files; empty where it is not there. Raises UnsupportedCheckpoint."""
    file = checkpoint.files.get(name)
    return {} if file is None else read_json_object(file)
