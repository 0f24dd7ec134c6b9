"""Models that write down what is said. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .ctc import CtcKind
from .seq2seq import Seq2SeqKind
from .transducer import TransducerKind
from .whisper import WhisperKind

FAMILY = LibraryFamily("hearing", (WhisperKind(), CtcKind(), Seq2SeqKind(), TransducerKind()))
