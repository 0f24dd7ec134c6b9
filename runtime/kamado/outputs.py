"""What models make besides text and pictures, as plain values over numpy arrays. Importing this loads no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """A sound."""

    samples: Any = field(repr=False)
    """numpy float32 (channels, samples), in [-1, 1]."""
    sample_rate: int
    """Samples a second, of each channel."""

    @property
    def duration_s(self) -> float:
        return float(self.samples.shape[-1]) / self.sample_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """Pictures that move."""

    frames: Any = field(repr=False)
    """numpy uint8 (frames, height, width, 3), RGB."""
    fps: float
    """Frames a second."""
    audio: Audio | None = None
    """The sound track."""

    @property
    def duration_s(self) -> float:
        return len(self.frames) / self.fps


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """A surface of triangles."""

    vertices: Any = field(repr=False)
    """numpy float32 (vertices, 3)."""
    faces: Any = field(repr=False)
    """numpy int64 (faces, 3): numbers of vertices, counter-clockwise as seen from outside."""
    colors: Any = field(default=None, repr=False)
    """numpy uint8 (vertices, 4), RGBA; None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One note of a score."""

    start_s: float
    duration_s: float
    pitch: int
    """As MIDI has it: 60 is the middle C. [0, 127]"""
    velocity: int = 80
    """How hard it is struck. [1, 127]"""
    program: int = 0
    """The instrument, by General MIDI's numbers, from 0. [0, 127]"""
    is_drum: bool = False
    """Whether `pitch` names a drum; `program` says nothing then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Symbolic music."""

    notes: tuple[Note, ...]
    """In order of their starts."""
    tempos: tuple[tuple[float, float], ...] = ((0.0, 120.0),)
    """Where its beats are: (second, beats a minute from there on), in order, the first at second 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What was said between two moments."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What somebody says."""

    text: str
    segments: tuple[Segment, ...] = ()
    """With time stamps, where the model tells them; in order."""
    language: str | None = None
    """Of the text, which may be translated, as an ISO 639 code, where the model tells it or was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Vectors, one for each input."""

    vectors: Any = field(repr=False)
    """numpy float32 (inputs, dimensions)."""
    shape: tuple[int, ...] = ()
    """Of what each vector holds the numbers of: (channels, height, width) of latents, say; empty: it is a vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One of several things with what the model thinks of it."""

    value: str
    """A filled-in text, a label, a document."""
    score: float
    """A probability, or a relevance: what the kind says."""
    index: int | None = None
    """Which of the inputs it is about, from 0; None where there is one only."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, as JSON has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A list of what was scored, the best first."""

    items: tuple[Scored, ...]
    text: str = ""
    """What the best of them make of the input: a text with its gaps filled. Empty where they make none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture."""

    image: Any
    """PIL image."""
    pixels: Any = field(default=None, repr=False)
    """The same before rounding: numpy float32 (height, width, channels), in [0, 1]; None where there is no such."""


Output = Audio | Video | Mesh | Score | Transcript | Embedding | Scores | Picture
"""One answer of a model that makes no plain text."""

KINDS: Mapping[type, str] = {
    Audio: "audio",
    Video: "video",
    Mesh: "mesh",
    Score: "score",
    Transcript: "transcript",
    Embedding: "embedding",
    Scores: "scores",
    Picture: "image",
}
"""What each is called in `Family.makes`, in events and in documents."""
