"""Models that take their voice from what was said before: a recording that is given with its words, or else the first
piece of a long text, so that all of it is said in one voice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamado.errors import InvalidRequest
from kamado.options import Check, text

from ..library.kinds import Bench
from .speaking import Speaker

if TYPE_CHECKING:
    from ..library.sound import Samples


def one_recording(name: str, value: Any) -> Any:
    """See kamado.options.Check."""
    if isinstance(value, list):
        raise InvalidRequest(f"{name} must be one recording, not {len(value)}")
    return value


CLONING: Mapping[str, Check] = {"voice": one_recording, "voice_text": text(longest=5000)}
"""`voice`: a recording of who shall speak. `voice_text`: what is said in it."""


def check_cloning(asked: Mapping[str, Any]) -> None:
    """Raise InvalidRequest where one of both options is missing."""
    if ("voice" in asked) != ("voice_text" in asked):
        raise InvalidRequest("voice is a recording and voice_text what is said in it: give both, or none")


def heard(voice: Any, rate: int, longest_s: float, advice: str) -> Any:
    """The samples (samples,) of a recording that was opened, at `rate` Hz, as numpy float32. Raises InvalidRequest for
    one that is empty or longer than `longest_s`, with `advice`."""
    from kamado.media.sounds import open_sound

    sound = open_sound(voice, rate=rate, channels=1)
    if not sound.samples.shape[1]:
        raise InvalidRequest("voice has no samples in it")
    if sound.duration_s > longest_s:
        raise InvalidRequest(
            f"voice is {sound.duration_s:.4g} s, and the model hears {longest_s:.4g} s at most: {advice}"
        )
    return sound.samples[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Words, and how they sound."""

    text: str
    samples: Any
    """numpy float32 (samples,), at the model's rate."""


class CloningSpeaker(Speaker):
    """See Speaker. Pieces are texts."""

    packs = True
    longest_voice_s: float
    """Of a recording: what is said after it must have room behind it."""

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        if "voice" in asked:
            samples = heard(asked["voice"], self.sample_rate, self.longest_voice_s, "cut it, and voice_text with it")
            asked = {**asked, "before": Said(text=asked["voice_text"].strip(), samples=samples)}
        return super().prepare(asked)

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """The text itself."""
        return text

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        before = asked.get("before")
        if before is None and said:
            before = Said(text=asked["pieces"][0], samples=said[0][0])
        return self.go_on(bench, piece, before, asked)

    def check_length(self, tokens: int, most: int) -> None:
        """Raise InvalidRequest where so many tokens of text, or of text and sound, are more than the model reads."""
        if tokens > most:
            raise InvalidRequest(
                f"the text, with what was said before, has {tokens} tokens, and the model reads {most}"
            )

    @abstractmethod
    def go_on(self, bench: Bench, text: str, before: Said | None, asked: Mapping[str, Any]) -> Any:
        """The sound of the text, in the voice of what was said before: see Speaker.speak."""
