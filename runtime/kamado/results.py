"""What a finished request gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidRequest
from .events import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens spent."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Over all answers of the request."""
    cached_tokens: int = 0
    """Prompt tokens whose state came from the prefix cache."""

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
class Result:
    """A finished request. Text fields speak of the first answer; `choices` has all."""

    request_id: str
    choices: tuple[Choice, ...] = ()
    usage: Usage = field(default_factory=Usage)
    images: tuple[Any, ...] = ()
    """Pictures, as PIL images."""
    pixels: tuple[Any, ...] = field(default=(), repr=False)
    """The same before rounding: numpy float32 (height, width, channels), in [0, 1]."""
    seeds: tuple[int, ...] = ()
    """The seed that makes each picture again, by itself."""
    timings: Timings = field(default_factory=Timings)
    notes: tuple[str, ...] = ()
    """What the caller should know of how it was made: a prompt that was cut, say. One sentence each."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All that is needed to make the output again: model hashes, parameters, seed, versions."""

    def picture_recipe(self, index: int) -> dict[str, Any]:
        """The recipe of one picture by itself."""
        options = {**self.recipe.get("options", {}), "seed": self.seeds[index], "n": 1}
        return {**self.recipe, "options": options}

    def save(self, path: str | Path) -> list[Path]:
        """Write the pictures, each with its recipe inside: one to `path`, several to `name-1.png`, `name-2.png`, ...
        Returns the paths. Raises InvalidRequest for a suffix that is none of a picture, or a result without any."""
        from .media.pictures import save_picture

        if not self.images:
            raise InvalidRequest("this result has no pictures to save")
        paths = numbered_paths(Path(path), len(self.images))
        for index, (image, each) in enumerate(zip(self.images, paths, strict=True)):
            save_picture(image, each, self.picture_recipe(index))
        return paths

    @property
    def text(self) -> str:
        return self.choices[0].text if self.choices else ""

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
