"""Models that say what is where in a picture. Importing this loads no torch."""

from __future__ import annotations

from ..library.family import LibraryFamily
from .depth import DepthKind
from .pose import PoseKind
from .segments import SegmentKind

FAMILY = LibraryFamily("vision", (DepthKind(), PoseKind(), SegmentKind()))
