"""Requests to measure models with that say what they take: each one new, so that nothing is known of it before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..options import Options
from ..outputs import Audio, Note, Score, Video
from .requests import Answered, run_together

if TYPE_CHECKING:
    from ..api import Model

_TEXT = "{number}: a lighthouse stands at the end of the long pier, and its light goes round and round in the dusk"
_SIDE = 256
_SOUND_S = 10.0
_SAMPLE_RATE = 16_000
_FRAMES = 8


class Declared:
    """Requests to a model that declares its options."""

    def __init__(self, model: Model, takes: Options, sample: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """`sample`, `given`: see `sample_request`."""
        self.heard_s: float | None = None
        """Seconds of the sound that is put into one, where it is known."""
        self._model = model
        self._takes = takes
        self._sample = sample
        self._given = given
        self._number = 0
        self._is_first = True
        self._file: str | None = None
        """An option that must be a file, which the declaration does not say."""

    def run(self, batch: int) -> list[Answered]:
        """So many at the same time. Raises what they raise."""
        is_first, self._is_first = self._is_first, False
        try:
            return self._run(batch)
        except InvalidRequest as error:
            files = [name for name in self._takes.inputs if name not in self._given]
            if not is_first or not files:
                raise
            self._file = files[0]
            try:
                return self._run(batch)
            except InvalidRequest:
                raise error from None

    def _run(self, batch: int) -> list[Answered]:
        requests = []
        for _ in range(batch):
            self._number += 1
            request = sample_request(self._takes, self._sample, self._given, self._number)
            if self._file is not None:
                request.setdefault(self._file, medium(self._takes.inputs[self._file], self._number))
            requests.append(request)
        sounds = [value for value in requests[0].values() if isinstance(value, Audio)]
        self.heard_s = sum(each.duration_s for each in sounds) if sounds else None
        return run_together(self._model, requests)


def sample_request(takes: Options, sample: Mapping[str, Any], given: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A request: `given` by whoever measures, over `sample`, what the model's family takes as usual, over a sentence
    for models that take a prompt, and noise for those that need a file. `number` goes into the seed, and into the
    sentence."""
    usual: dict[str, Any] = {}
    if "prompt" in takes.names and (not takes.needs or "prompt" in takes.needs):
        usual["prompt"] = _TEXT.format(number=number)
    told = {**usual, **sample, **given}
    if takes.needs and not any(name in told for name in takes.needs):
        files = [name for name in takes.inputs if name in takes.needs]
        told |= {name: medium(takes.inputs[name], number) for name in files[:1]}
    own = {name: value.replace("{number}", str(number)) for name, value in told.items() if isinstance(value, str)}
    return {**told, **own, **({"seed": number} if "seed" not in given else {})}


def medium(kind: str, number: int) -> Any:
    """A picture (256 x 256), a sound (10 s), or a video (8 frames) of noise; or a scale of notes."""
    import numpy

    if kind == "notes":
        return Score(
            notes=tuple(Note(start_s=each / 2, duration_s=0.5, pitch=60 + (each + number) % 12) for each in range(8))
        )

    noise = numpy.random.default_rng(number)
    if kind == "audio":
        samples = noise.uniform(-0.1, 0.1, (1, int(_SOUND_S * _SAMPLE_RATE))).astype(numpy.float32)
        return Audio(samples=samples, sample_rate=_SAMPLE_RATE)
    if kind == "video":
        return Video(frames=noise.integers(0, 256, (_FRAMES, _SIDE, _SIDE, 3), dtype=numpy.uint8), fps=8.0)
    from PIL import Image

    return Image.fromarray(noise.integers(0, 256, (_SIDE, _SIDE, 3), dtype=numpy.uint8))
