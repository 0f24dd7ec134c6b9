"""A model that makes pictures at once and always the same: what commands need of `kamado.api`, without weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
from PIL import Image

from fake_model import make_plan
from kamado.errors import GenerationFailed, InvalidRequest, KamadoError
from kamado.events import Event, Finished, Media, Preview, Progress, Started
from kamado.media.inputs import described_inputs
from kamado.media.pictures import open_picture
from kamado.memory.plan import Plan
from kamado.picture_requests import PictureOptions, resolve_picture_options
from kamado.results import Failure, Result, Timings, failure_notes

SIDE = 8


def draw(seed: int, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """The picture of a seed."""
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


class FakePictureJob:
    """A request that runs as its events are read."""

    def __init__(self, model: FakePictureModel, options: PictureOptions) -> None:
        self._model = model
        self._options = options
        self.cancelled = False

    def events(self) -> Iterator[Event]:
        options, steps = self._options, self._options.steps or 2
        yield Started("r1")
        for step in range(1, steps + 1):
            if step == self._model.interrupt_at:
                raise KeyboardInterrupt
            for index in range(options.n):
                yield Progress("r1", step, steps, index)
                if options.preview_every and step % options.preview_every == 0:
                    yield Preview("r1", step, draw(step), index)
        for index in range(options.n):
            if options.seed + index in self._model.failing:
                yield Finished("r1", "failed", index, error=GenerationFailed("it is black"))
                continue
            yield Media("r1", index, "image", draw(options.seed + index))
            yield Finished("r1", "complete", index)

    def result(self) -> Result:
        return self._model.result(self._options)

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakePictureModel:
    """Draws noise of the seed. A prompt with `boom` fails while it runs; without a prompt it needs `needs_prompt`."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[FakePictureJob] = field(default_factory=list)
    interrupt_at: int | None = None
    needs_prompt: bool = True
    reference: str = "fake"
    plan: Plan = field(default_factory=make_plan)
    capabilities: tuple[str, ...] = ("image",)
    changes: dict[str, Any] = field(default_factory=dict)
    """What its recipes say otherwise."""
    noise: int = 0
    """Added to the first value of each picture."""
    notes: tuple[str, ...] = ()
    batched: bool = False
    """Whether its pictures share forwards with others."""
    failing: frozenset[int] = frozenset()
    """Seeds of which it makes no picture."""

    def submit(self, prompt: str | None = None, **options: Any) -> FakePictureJob:
        job = FakePictureJob(self, self._resolved(prompt, options))
        self.jobs.append(job)
        return job

    def generate(self, prompt: str | None = None, **options: Any) -> Result:
        return self.result(self._resolved(prompt, options))

    def unload(self) -> None:
        """Nothing is loaded."""

    def check(self, requests: Iterable[Mapping[str, Any]]) -> None:
        for request in requests:
            try:
                self._resolved(None, request)
            finally:
                self.requests.pop()  # it is not made

    def map(
        self, requests: Iterable[Mapping[str, Any]], concurrency: int | None = None
    ) -> Iterator[tuple[int, Result | KamadoError]]:
        for position, request in enumerate(requests):
            try:
                yield position, self.generate(**request)
            except KamadoError as error:
                yield position, error

    def result(self, options: PictureOptions) -> Result:
        if "boom" in (options.prompt or ""):
            raise GenerationFailed("the request failed: boom")
        indices = [index for index in range(options.n) if options.seed + index not in self.failing]
        failures = tuple(
            Failure(index=index, seed=options.seed + index, error=GenerationFailed("it is black"))
            for index in range(options.n)
            if index not in indices
        )
        if not indices:
            raise failures[0].error
        seeds = tuple(options.seed + index for index in indices)
        images = tuple(draw(seed, options.width or SIDE, options.height or SIDE) for seed in seeds)
        for image in images:
            red, *others = image.getpixel((0, 0))  # type: ignore[misc]
            image.putpixel((0, 0), ((red + self.noise) % 256, *others))
        files = {"image": options.image, "mask": options.mask, "control": options.control}
        files["ip_adapter_image"] = options.extra.get("ip_adapter_image")
        inputs, extra = described_inputs(files), {n: v for n, v in options.extra.items() if n not in files}
        names = ("prompt", "negative", "width", "height", "steps", "seed", "n")
        asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        recipe = {
            "kamado": "0.1.0",
            "model": {"reference": self.reference, "revision": None, "files": {"a.safetensors": "00"}},
            "options": {**asked, **extra},
            "device": "cpu",
            "dtype": "float32",
            "quant": "none",
            **({"inputs": inputs} if inputs else {}),
        }
        return Result(
            request_id="r1",
            images=images,
            seeds=seeds,
            timings=Timings(queued_s=0.0, total_s=0.1),
            batched=(self.batched,) * len(images),
            failures=failures,
            notes=(*self.notes, *failure_notes(failures, options.n)),
            recipe={**recipe, **self.changes},
        )

    def _resolved(self, prompt: str | None, options: Mapping[str, Any]) -> PictureOptions:
        request = {**options} if prompt is None else {"prompt": prompt, **options}
        self.requests.append(request)
        resolved = resolve_picture_options(request)
        if resolved.prompt is None and self.needs_prompt:
            raise InvalidRequest("give a prompt: a text that says what the picture shows")
        if "unknown" in resolved.extra:
            raise InvalidRequest("FakePipeline takes no unknown")
        files = {name: getattr(resolved, name) for name in ("image", "mask", "control")}
        for name, value in files.items():
            if value is not None:
                opened = [open_picture(item) for item in value] if isinstance(value, list) else open_picture(value)
                object.__setattr__(resolved, name, opened)
        return resolved
