"""What all models that speak share: text by sentences, each heard as soon as it is there, joined with short pauses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.errors import GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.events import Media
from kamado.media.sounds import MAX_RATE, MAX_VALUES, MIN_RATE
from kamado.outputs import Audio, Output

from ..library.kinds import Bench
from ..library.sound import as_samples
from .options import PAUSE_S
from .sentences import packed, sentences

if TYPE_CHECKING:
    from ..library.sound import Samples


LONGEST_S = 3 * 3600
"""Of an answer, which lies in memory as a whole; rates above 49 kHz have less, so that it can be read again."""


class Speaker(ABC):
    """See Generator. A kind says how text becomes inputs, and how inputs become a sound."""

    modules: Mapping[str, Any]
    sample_rate: int
    longest = 400
    """Characters of a sentence; longer ones are cut."""
    packs = False
    """Whether sentences are spoken together while they have at most `longest` characters: of models whose voice, or
    tone, follows from what they say."""

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        pieces = sentences(asked["prompt"], self.longest) if "prompt" in asked else [""]
        if self.packs:
            pieces = packed(pieces, self.longest)
        self._check_silence(len(pieces) - 1, asked)
        return {**asked, "pieces": [self.read(piece.strip(), asked) for piece in pieces]}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        import numpy as np

        pieces, sounds = asked["pieces"], []
        said: list[Samples] = []
        length = 0
        pause = round(asked.get("pause", PAUSE_S) * self.sample_rate)
        for number, piece in enumerate(pieces):
            sound = as_samples(self.speak(bench, piece, asked, said))
            said.append(sound)
            if number:
                sound = np.concatenate([np.zeros((len(sound), pause), np.float32), sound], axis=1)
            length += sound.shape[1]
            if length > self._longest_s * self.sample_rate:
                raise GenerationFailed(
                    f"piece {number + 1} of {len(pieces)} makes the answer longer than {self._longest_s / 3600:.3g} "
                    "hours: give less text at once"
                )
            sounds.append(sound)
            part = Audio(samples=sound, sample_rate=self.sample_rate)
            bench.emit(Media(bench.request_id, bench.index, "audio", part, is_part=True))
            bench.progress(number + 1, len(pieces))
        return Audio(samples=np.concatenate(sounds, axis=1), sample_rate=self.sample_rate)

    @property
    def _longest_s(self) -> float:
        return min(LONGEST_S, MAX_VALUES / self.sample_rate)

    def _check_silence(self, pauses: int, asked: Mapping[str, Any]) -> None:
        """Raise InvalidRequest where the pauses of all answers alone are too long."""
        pause, number = asked.get("pause", PAUSE_S), pauses * asked.get("n", 1)
        if number * pause > self._longest_s:
            raise InvalidRequest(
                f"pause: {number} pauses of {pause:g} s are {number * pause / 3600:.3g} hours of silence; "
                f"{self._longest_s / 3600:.3g} hours are the most: make them shorter, or give less text at once"
            )

    @abstractmethod
    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """Inputs of one piece of the text, on the CPU. Runs in the caller's thread. Raises InvalidRequest."""

    @abstractmethod
    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """The sound of one piece: a tensor (samples), (channels, samples) or (1, channels, samples). `said`: the pieces
        before."""


def known_rate(rate: Any, reference: str) -> int:
    """The sample rate that files of a model name. Raises UnsupportedCheckpoint for what is none."""
    if isinstance(rate, bool) or not isinstance(rate, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise UnsupportedCheckpoint(
            f"{reference}: its sample rate is {rate!r:.40}; it must be a whole number from {MIN_RATE} to {MAX_RATE}"
        )
    return rate


def check_durations(frames: Any, most: int) -> None:
    """Raise GenerationFailed for durations (a tensor) that a model foretells of one piece and that are not finite, or
    more than `most` frames together: all that comes behind takes memory for each."""
    total = float(frames.float().sum())
    if float(frames.min()) < 0 or not math.isfinite(total):
        raise GenerationFailed("the model's durations are no finite numbers: its weights or settings are damaged")
    if total > most:
        raise GenerationFailed(
            f"the model would speak for {total:.6g} frames, and {most} are the most of one piece: give shorter "
            "sentences, or a higher speed"
        )


def known_voice(voice: str, names: list[str], reference: str) -> str:
    """The name itself. Raises InvalidRequest where there is no such voice, which lists those that there are."""
    if voice in names:
        return voice
    if not names:
        raise InvalidRequest(f"{reference} has one voice only, so there is no voice {voice!r:.80}; leave it out")
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise InvalidRequest(f"{reference} has no voice {voice!r:.80}; it has {shown}")
