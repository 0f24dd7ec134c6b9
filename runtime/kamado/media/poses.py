"""Skeletons of people, drawn as OpenPose draws them, which pose ControlNets read.

Z. Cao et al., "OpenPose: realtime multi-person 2D pose estimation using part affinity fields", 2018: 18
points, 17 limbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

COCO_POINTS = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle"),
    "right ankle",
)
"""What models tell, by number."""
_NECK = 1
_OF_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""OpenPose's points; the neck lies between the shoulders."""
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0)),
    *((0, 14), (14, 16), (0, 15), (15, 17)),
)
_COLORS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
_LIMB_SHADE = 0.6
_USUAL_SIDE = 512
"""Of a picture in which points and limbs are four pixels thick."""


def draw_poses(picture: Image.Image, people: Sequence[Mapping[int, tuple[float, float]]]) -> Any:
    """The picture with skeletons over it. `people`: of each, places (x, y) in pixels by COCO's numbers; what is missing
    was not seen."""
    from PIL import ImageDraw

    found = picture.convert("RGB")
    draw = ImageDraw.Draw(found)
    thick = max(round(4 * max(found.size) / _USUAL_SIDE), 1)
    bodies = [_with_neck(person) for person in people]
    for body in bodies:
        for (one, other), color in zip(_LIMBS, _COLORS, strict=False):
            if one in body and other in body:
                shade = tuple(int(channel * _LIMB_SHADE) for channel in color)
                draw.line([body[one], body[other]], fill=shade, width=2 * thick)
    for body in bodies:
        for number, (x, y) in body.items():
            draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=_COLORS[number])
    return found


def _with_neck(person: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    body = {number: person[coco] for number, coco in enumerate(_OF_COCO) if coco is not None and coco in person}
    left, right = person.get(5), person.get(6)
    if left is not None and right is not None:
        body[_NECK] = ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)
    return body
