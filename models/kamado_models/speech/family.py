"""Models that speak. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .bark import BarkKind
from .csm import CsmKind
from .dia import DiaKind
from .fastspeech2 import FastSpeech2Kind
from .higgs import HiggsKind
from .pocket import PocketKind
from .speecht5 import SpeechT5Kind
from .vibevoice import VibeVoiceKind
from .vits import VitsKind

FAMILY = LibraryFamily(
    "speech",
    (
        BarkKind(),
        CsmKind(),
        DiaKind(),
        FastSpeech2Kind(),
        HiggsKind(),
        PocketKind(),
        SpeechT5Kind(),
        VibeVoiceKind(),
        VitsKind(),
    ),
)
