"""What a finished request gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .errors import InvalidRequest, KamadoError
from .events import Event, Finished, FinishReason, TokenLogprob
from .outputs import Audio, Embedding, Mesh, Output, Picture, Scored, Scores, Segment, Transcript, Video

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens spent."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Over all answers of the request."""
    cached_tokens: int = 0
    """Prompt tokens whose state came from the prefix cache."""
    proposed_tokens: int = 0
    """Tokens that were guessed ahead and checked, over all answers; of them, `accepted_tokens` were right."""
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds, on a monotonic clock, counted from the moment of submission."""

    queued_s: float = 0.0
    """Until the first forward."""
    ttft_s: float | None = None
    """Until the first token; None where no token came."""
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChoice:
    """One generated token with what else was likely."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the `n` answers."""

    index: int
    text: str
    tokens: tuple[int, ...]
    """Generated token ids, the end token included where one came."""
    finish_reason: FinishReason
    stop: str | int | None = None
    """The stop string or end token that ended it."""
    logprobs: tuple[TokenChoice, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One of the `n` answers that came to nothing, while others of the request were made."""

    index: int
    """Which one, from 0."""
    seed: int | None
    """Of a picture. Texts have none of their own."""
    error: KamadoError

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"index": self.index, "seed": self.seed, "error": str(self.error)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished request. Fields of one answer speak of the first that was made; `choices`, `images` and `outputs` have
    all."""

    request_id: str
    choices: tuple[Choice, ...] = ()
    usage: Usage = field(default_factory=Usage)
    outputs: tuple[Output, ...] = field(default=(), repr=False)
    """What was made besides text and pictures, one for each answer: see `kamado.outputs`."""
    images: tuple[Any, ...] = ()
    """Pictures, as PIL images."""
    pixels: tuple[Any, ...] = field(default=(), repr=False)
    """The same before rounding: numpy float32 (height, width, channels), in [0, 1]."""
    seeds: tuple[int, ...] = ()
    """The seed that makes each picture, or other output, again by itself."""
    batched: tuple[bool, ...] = ()
    """Whether each of them shared forwards with others, and so differs by rounding from one that is made alone."""
    failures: tuple[Failure, ...] = ()
    """The answers that were not made, in order. `choices`, or `images`, `pixels`, `outputs` and `seeds`, are of the
    others."""
    timings: Timings = field(default_factory=Timings)
    notes: tuple[str, ...] = ()
    """What the caller should know of how it was made: a prompt that was cut, say. One sentence each."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All that is needed to make the output again: model hashes, parameters, seed, versions."""

    @property
    def num_asked(self) -> int:
        """How many answers were asked for."""
        return len(self.images or self.outputs or self.choices) + len(self.failures)

    @property
    def indices(self) -> tuple[int, ...]:
        """Which of the request's `n` answers was made, from 0: that of each in `images` or `outputs`."""
        failed = {failure.index for failure in self.failures}
        return tuple(index for index in range(self.num_asked) if index not in failed)

    @property
    def failure_notes(self) -> tuple[str, ...]:
        """Of `notes`, the sentences about `failures`."""
        return failure_notes(self.failures, self.num_asked, "picture" if self.images else "answer")

    def recipe_of(self, index: int) -> dict[str, Any]:
        """The recipe of one output by itself: that of `images[index]` or `outputs[index]`."""
        options = {**self.recipe.get("options", {}), "seed": self.seeds[index], "n": 1}
        is_batched = any(self.batched[index : index + 1])
        return {**self.recipe, "options": options, **({"batched": True} if is_batched else {})}

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures or other media, each with its recipe inside: to `path` if one was asked for, else to
        `name-1.png`, `name-2.png`, ...; one that was not made leaves its number out. Returns the paths. Raises
        InvalidRequest for a suffix that is none of what was made, or a result that has no files."""
        from .media.saving import save_output

        made: list[Output] = [*(Picture(image=image) for image in self.images)] or list(self.outputs)
        if not made:
            raise InvalidRequest("this result has no pictures or other media to save")
        numbered = numbered_paths(Path(path), self.num_asked)
        paths = [numbered[index] for index in self.indices]
        for index, (output, each) in enumerate(zip(made, paths, strict=True)):
            save_output(output, each, self.recipe_of(index))
        return paths

    @property
    def audio(self) -> Any:
        """numpy float32 (channels, samples) in [-1, 1]: the sound, or that of the video; None where there is none."""
        sound = self._sound()
        return None if sound is None else sound.samples

    @property
    def sample_rate(self) -> int | None:
        """Samples a second of `audio`."""
        sound = self._sound()
        return None if sound is None else sound.sample_rate

    @property
    def video(self) -> Any:
        """numpy uint8 (frames, height, width, 3); None where there is none."""
        found = self._first(Video)
        return None if found is None else found.frames

    @property
    def fps(self) -> float | None:
        """Frames a second of `video`."""
        found = self._first(Video)
        return None if found is None else found.fps

    @property
    def mesh(self) -> Mesh | None:
        """Vertices, faces and colours; None where there are none."""
        return self._first(Mesh)

    @property
    def embedding(self) -> Any:
        """numpy float32 (dimensions,); (inputs, dimensions) where several inputs were given; None where there is
        none."""
        found = self._first(Embedding)
        if found is None:
            return None
        return found.vectors[0] if len(found.vectors) == 1 else found.vectors

    @property
    def scores(self) -> tuple[Scored, ...]:
        """What was scored, the best first."""
        found = self._first(Scores)
        return () if found is None else found.items

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What was said when."""
        found = self._first(Transcript)
        return () if found is None else found.segments

    def _sound(self) -> Audio | None:
        moving = self._first(Video)
        return self._first(Audio) or (None if moving is None else moving.audio)

    def _first(self, kind: type[T]) -> T | None:
        return next((output for output in self.outputs if isinstance(output, kind)), None)

    @property
    def text(self) -> str:
        """The answer; of a transcript, what was said; of scores for the gaps of a text, that text with the best."""
        if self.choices:
            return self.choices[0].text
        said = self._first(Transcript) or self._first(Scores)
        return "" if said is None else said.text

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.choices[0].tokens if self.choices else ()

    @property
    def logprobs(self) -> tuple[TokenChoice, ...] | None:
        return self.choices[0].logprobs if self.choices else None

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason if self.choices else "complete"


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Where `count` outputs go that were asked for under one name: `path`, or `name-1.png`, `name-2.png`, ..."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def failures_in(events: Iterable[Event], seed_of: Callable[[int], int | None]) -> tuple[Failure, ...]:
    """The answers that failed, by the events of the request. `seed_of(index)`: see Failure."""
    ends = sorted((event for event in events if isinstance(event, Finished)), key=lambda event: event.index)
    return tuple(
        Failure(index=end.index, seed=seed_of(end.index), error=end.error)
        for end in ends
        if isinstance(end.error, KamadoError)
    )


def failure_notes(failures: Sequence[Failure], num_asked: int, what: str = "picture") -> tuple[str, ...]:
    """A sentence for each of the `num_asked` answers that was not made. `what` is the word for one."""
    seeds = ["" if failure.seed is None else f" (seed {failure.seed})" for failure in failures]
    return tuple(
        f"{what} {failure.index + 1} of {num_asked}{seed} was not made: {failure.error}"
        for failure, seed in zip(failures, seeds, strict=True)
    )
