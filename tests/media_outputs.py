"""Sounds, videos, meshes and notes for tests."""

from __future__ import annotations

import numpy as np

from kamado.outputs import Audio, Mesh, Note, Score, Video


def tone(seconds: float = 0.5, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> Audio:
    """A sine at half of full scale; each channel one octave above the one before."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [0.5 * np.sin(2 * np.pi * hertz * 2**channel * time) for channel in range(channels)]
    return Audio(samples=np.array(waves, np.float32), sample_rate=rate)


def clip(frames: int = 12, width: int = 64, height: int = 48, fps: float = 12.0, audio: Audio | None = None) -> Video:
    """A slow gradient with four squares of full colour; each frame brighter."""
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([x * 2, y * 2, np.full_like(x, 60)], -1)
    moving = np.stack([gradient + 6 * number for number in range(frames)]).clip(0, 255).astype(np.uint8)
    for number, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]):
        moving[:, number * 8 : number * 8 + 8, :8] = color
    return Video(frames=moving, fps=fps, audio=audio)


def tetrahedron(colors: bool = True) -> Mesh:
    """Watertight, with a colour of its own at each vertex."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.1234567]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.int64)
    rgba = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [10, 20, 30, 255]], np.uint8)
    return Mesh(vertices=vertices, faces=faces, colors=rgba if colors else None)


def melody() -> Score:
    """Two instruments and drums."""
    return Score(
        notes=(
            Note(start_s=0.0, duration_s=0.5, pitch=60, velocity=90, program=0, is_drum=False),
            Note(start_s=0.0, duration_s=0.25, pitch=36, velocity=127, program=0, is_drum=True),
            Note(start_s=0.5, duration_s=1.0, pitch=60, velocity=70, program=0, is_drum=False),
            Note(start_s=0.5, duration_s=0.75, pitch=43, velocity=1, program=33, is_drum=False),
        )
    )
