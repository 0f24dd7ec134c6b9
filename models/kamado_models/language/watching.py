"""Measuring the forwards of a language lane, the first time that so large a one comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from kamado.memory.learned import Learning
from kamado.sequence import TextStep
from kamado.tasks.library.live_bytes import measuring

from .learning import Shape


def step_shape(steps: Sequence[TextStep], *, padded: bool = False) -> Shape:
    """The shape of a forward, see `learning.Shape`. An encoder's tokens count in the forward that runs it. `padded`:
    rows are padded to the longest, and a mask says so."""
    sources = [len(step.sequence.source) for step in steps]
    read = [0 if step.sequence.num_computed else source for step, source in zip(steps, sources, strict=True)]
    new = [step.num_new + source for step, source in zip(steps, read, strict=True)]
    lengths = [step.sequence.num_computed + step.num_new for step in steps]
    computed = len(new) * max(new) if padded else sum(new)
    rows = len(steps) + sum(len(step.proposed) for step in steps)
    masked = computed if padded else sum(step.num_new for step in steps if step.sequence.num_computed)
    return sum(new), rows, max(*lengths, *sources), sum(lengths) + sum(sources), computed, masked


@contextmanager
def watched(learning: Learning | None, shape: Shape, device: str) -> Iterator[list[Tensor]]:
    """Measure the forward inside, where there is something to learn. What it puts into the list are its results; what
    else is left of it is state of the sequences, which plans count by itself."""
    results: list[Tensor] = []
    if learning is None or not learning.wants(shape):
        yield results
        return
    with measuring(device) as found:
        yield results
    if found.bytes is not None:
        state = found.left - sum(tensor.untyped_storage().nbytes() for tensor in results)
        learning.note(shape, found.bytes - max(state, 0))
