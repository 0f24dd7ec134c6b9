"""Small pictures of outputs of every kind, for sheets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from ..media.pictures import open_picture
from ..outputs import Audio, Embedding, Mesh, Output, Picture, Score, Scores, Transcript, Video
from ..units import format_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

INK, FAINT, GROUND, ACCENT, ALARM = "#22252b", "#8a909c", "#f2f3f6", "#3b6fb6", "#b3372f"
_TEXT_SIZE = 13
_MOST_FACES = 60_000
"""Of a larger mesh, so many faces are drawn: every second, third, ... one."""
_AZIMUTH, _ELEVATION = math.radians(35), math.radians(25)


def font(size: int) -> Any:
    """The one that Pillow carries."""
    return ImageFont.load_default(size)


def text_width(text: str, face: Any) -> int:
    """Pixels."""
    return math.ceil(float(face.getlength(text)))


def cut(text: str, width: int, face: Any) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if text_width(text, face) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(text[:middle] + "...", face) <= width else (low, middle - 1)
    return text[:low].rstrip() + "..."


def wrapped(text: str, width: int, face: Any, most: int) -> list[str]:
    """The text in at most so many lines; the last one is cut if more would follow."""
    lines: list[str] = []
    for part in text.splitlines():
        line = ""
        for word in part.split():
            longer = f"{line} {word}" if line else word
            if line and text_width(longer, face) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
        if len(lines) > most:
            break
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} {lines[most]}"]
    return [cut(line, width, face) for line in lines]


def thumbnail(output: Output | str | None, size: int) -> Image.Image:
    """A picture in RGB, `size` pixels on its longer side or less high: of a video the first frame, of a sound its
    waveform, of a mesh a shaded drawing, of notes a piano roll; texts as they are. None: nothing was made."""
    if isinstance(output, Picture):
        return fitted(output.image, size)
    if isinstance(output, Video):
        return _video(output, size)
    if isinstance(output, Audio):
        return _waveform(output, size)
    if isinstance(output, Mesh):
        return _mesh(output, size)
    if isinstance(output, Score):
        return _piano_roll(output, size)
    return text_card(_text_of(output), size)


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The whole picture within `size` x `size`, over white; small ones grow by whole factors, pixel by pixel."""
    if image.mode.startswith("I;16"):
        image = open_picture(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    scale = min(size / image.width, size / image.height)
    if scale >= 2:
        return image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    shape = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if shape == image.size else image.resize(shape, Image.Resampling.LANCZOS)


def text_card(text: str, size: int, *, ink: str = INK) -> Image.Image:
    """Text on a card, as much as there is room for."""
    card = Image.new("RGB", (size, size * 5 // 8), GROUND)
    face, step = font(_TEXT_SIZE), _TEXT_SIZE + 5
    draw = ImageDraw.Draw(card)
    for number, line in enumerate(wrapped(text, size - 20, face, max(1, (card.height - 16) // step))):
        draw.text((10, 8 + number * step), line, fill=ink, font=face)
    return card


def _text_of(output: Any) -> str:
    if isinstance(output, str):
        return output
    if isinstance(output, Transcript):
        return output.text
    if isinstance(output, Scores):
        return "\n".join(f"{item.score:.3f} {item.value}" for item in output.items)
    if isinstance(output, Embedding):
        numbers = " ".join(f"{value:.3g}" for value in output.vectors[0][:200].tolist())
        return f"{output.vectors.shape[1]} dimensions\n{numbers}"
    return ""


def _video(video: Video, size: int) -> Image.Image:
    card = fitted(Image.fromarray(video.frames[0]), size)
    draw, side = ImageDraw.Draw(card), max(12, size // 14)
    left, top = 6, card.height - side - 6
    draw.rectangle((left - 3, top - 3, left + side + 3, top + side + 3), fill=INK)
    draw.polygon([(left + 2, top), (left + 2, top + side), (left + side, top + side / 2)], fill="white")
    return card


def _waveform(audio: Audio, size: int) -> Image.Image:
    """The largest and smallest value of each column, loud ones at full height."""
    import numpy as np

    card = Image.new("RGB", (size, size * 7 // 16), GROUND)
    draw, face = ImageDraw.Draw(card), font(_TEXT_SIZE)
    samples = np.asarray(audio.samples, np.float32).mean(axis=0)
    middle, half = (card.height - 16) / 2, (card.height - 28) / 2
    draw.line((8, middle, size - 8, middle), fill=FAINT)
    columns = np.array_split(samples, size - 16) if len(samples) else []
    for number, column in enumerate(columns):
        if len(column):
            high, low = float(column.max()), float(column.min())
            draw.line((8 + number, middle - high * half, 8 + number, middle - low * half), fill=ACCENT)
    length = format_seconds(audio.samples.shape[-1] / audio.sample_rate)
    draw.text((8, card.height - 19), f"{length}, {audio.sample_rate} Hz", fill=FAINT, font=face)
    return card


def _piano_roll(score: Score, size: int) -> Image.Image:
    card = Image.new("RGB", (size, size * 5 // 8), GROUND)
    draw = ImageDraw.Draw(card)
    if not score.notes:
        return card
    low, high = min(note.pitch for note in score.notes), max(note.pitch for note in score.notes)
    end = max(note.start_s + note.duration_s for note in score.notes) or 1.0
    across, step = (size - 16) / end, (card.height - 16) / (high - low + 1)
    for note in score.notes:
        left, top = 8 + note.start_s * across, 8 + (high - note.pitch) * step
        right, bottom = max(left + 1, left + note.duration_s * across - 1), max(top + 1, top + min(step, 10) - 1)
        draw.rectangle((left, top, right, bottom), fill=INK if note.is_drum else ACCENT)
    return card


def _mesh(mesh: Mesh, size: int) -> Image.Image:
    """Seen from the front, a little from the right and above, y upwards; far faces first, darker as they turn away."""
    import numpy as np

    side = size * 2  # drawn twice as large, for smooth edges
    card = Image.new("RGB", (side, side), GROUND)
    step = max(1, math.ceil(len(mesh.faces) / _MOST_FACES))
    faces = np.asarray(mesh.faces)[::step]
    seen = _turned(np.asarray(mesh.vertices, np.float64))
    middle, extent = (seen.max(axis=0) + seen.min(axis=0)) / 2, float(np.ptp(seen, axis=0)[:2].max()) or 1.0
    flat = (seen - middle)[:, :2] * (0.86 * side / extent) * (1, -1) + side / 2
    corners = seen[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    facing = np.abs(normals / np.where(lengths == 0, 1, lengths) @ np.array([0.3, 0.5, 0.81]))
    colors = _face_colors(mesh, faces) * (0.35 + 0.65 * facing[:, None])
    draw = ImageDraw.Draw(card)
    for number in corners[:, :, 2].mean(axis=1).argsort():
        fill = tuple(int(value) for value in colors[number].clip(0, 255))
        draw.polygon([tuple(point) for point in flat[faces[number]]], fill=fill)
    return card.resize((size, size), Image.Resampling.LANCZOS)


def _turned(points: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    sin, cos = math.sin(_AZIMUTH), math.cos(_AZIMUTH)
    points = points @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    sin, cos = math.sin(_ELEVATION), math.cos(_ELEVATION)
    turned: NDArray[Any] = points @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    return turned


def _face_colors(mesh: Mesh, faces: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    if mesh.colors is None:
        return np.full((len(faces), 3), 205.0)
    return np.asarray(np.asarray(mesh.colors, np.float64)[faces, :3].mean(axis=1))
