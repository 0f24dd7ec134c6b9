"""What a kind of model is, for families of models that a library's own code runs (ADR 0023). No torch.

Kind        from header data: whether it is one, what it can do, which options it takes, how large it is
Generator   once loaded: models, and the code that makes an answer of a request
Bench       what that code gets in hand: stand-ins for the models, random numbers, progress
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.events import Event
from kamado.options import Options
from kamado.outputs import Output

if TYPE_CHECKING:
    import torch

    from .loading import Loader

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component, which becomes a lane."""

    tensors: Mapping[str, TensorEntry]
    activation_bytes: Callable[[int], int]
    """About what its temporary tensors take in the largest usual call, by the bytes of one number: until a real one was
    measured."""
    keeps_dtype: bool = False
    """Whether it runs in float32 whatever the precision of the others is, and is never quantized."""
    is_whole: bool = False
    """Whether library code makes it of its tensors (`Loader.made`): it can be neither quantized nor held in part."""
    stays: Callable[[str], bool] = lambda name: False
    """Whether a tensor, by its name, must be on the device always: one that a class keeps as a buffer."""
    entries_per_position: int = 1
    """How many entries of its first input cost about what one position of a model costs: raw sound has hundreds. How
    many calls share a forward depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What docs/models.md says of a kind."""

    architectures: tuple[str, ...]
    """Classes, or layouts, as people know them."""
    tasks: tuple[str, ...]
    """All that `Kind.tasks` may say."""
    oracle: str
    """What the tests compare it with: "transformers' generate, tiny random checkpoints"."""
    batching: str
    """What requests share: "encoder calls of equal shape; steps one request at a time"."""


class Kind(Protocol):
    """One kind of checkpoint, of one or several architectures.

    It may also have `sample_request(checkpoint)`: options of a usual request, with which `kamado bench` measures where
    a sentence, or a file of noise, would not do."""

    name: str
    about: About

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is one, by its configuration, tensor names and shapes."""

    def tasks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it can do, by the names that hubs have for tasks: "text-to-speech", ..."""

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What comes out: see `kamado.outputs.KINDS`."""

    def options(self, checkpoint: Checkpoint) -> Options:
        """What it can be asked."""

    def describe(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Facts for `kamado show`; `architecture` is among them."""

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """Its components, by lane."""

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """Bring it into memory. Imports torch. Raises UnsupportedCheckpoint."""

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for what can be told to be wrong with checked options before weights are read."""


class Generator(Protocol):
    """A loaded model."""

    modules: Mapping[str, Any]
    """Its components (`nn.Module`), by lane, as `Kind.parts` names them. One may be a part of another: its calls have a
    lane of their own."""

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        """Checked options with inputs opened, and whatever else can be found out in the caller's thread: what is
        returned goes to `generate`; a list makes one answer of each entry (several recordings, say), where `n` is not
        taken. `prompt_tokens` in it is how many tokens are read, for `Result.usage`. Runs no model. Raises
        InvalidRequest, ContextOverflow."""

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """One answer. Runs on the loop's thread, and sleeps in every call of a model. Models are called through
        `bench` alone. What is drawn without a generator comes from the answer's seed. Raises what is wrong."""


class Bench(Protocol):
    """What the code of one answer works with."""

    index: int
    """Which of the request's answers it makes, from 0."""
    seed: int
    """Of this answer."""
    device: str
    dtype: torch.dtype
    """The precision that models compute in."""
    generator: torch.Generator
    """On the CPU, seeded with `seed`."""

    def model(self, name: str) -> Any:
        """A stand-in for the component: `forward`, `encode` and `decode` are made by the loop, together with the same
        calls of other requests where that gives the same. What is set on it holds for this answer alone."""

    def run(self, name: str, function: Callable[[], T], cost: int = 1) -> T:
        """Have the loop call `function()` as one forward of the component's lane, alone. It may use the component
        itself (`Generator.modules`); what it draws without a generator comes from this answer's seed."""

    def progress(self, step: int, total: int) -> None:
        """`step` of `total` are done."""

    def emit(self, event: Event) -> None:
        """An event for the caller."""

    def note(self, text: str) -> None:
        """What the caller should know of how it was made. One sentence."""

    @property
    def request_id(self) -> str:
        """For events."""


def architecture_of(checkpoint: Checkpoint) -> str:
    """The class that a configuration of transformers or diffusers names; "" where it names none."""
    names = checkpoint.config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    name = checkpoint.config.get("_class_name")
    return name if isinstance(name, str) else ""


def num_parameters(tensors: Mapping[str, TensorEntry]) -> int:
    """Numbers in all of them."""
    return sum(entry.numel for entry in tensors.values())


def with_prefix(checkpoint: Checkpoint, *prefixes: str) -> dict[str, TensorEntry]:
    """The tensors whose names begin with one of these."""
    return {name: entry for name, entry in checkpoint.tensors.items() if name.startswith(prefixes)}
