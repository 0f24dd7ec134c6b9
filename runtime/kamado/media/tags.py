"""A recipe as the text of a comment field: how files of sound, video, meshes and notes carry it.

The field is the comment that the format has for everybody, so that programs which convert a file carry it along. It
says `kamado:` and then the JSON text of the recipe in ASCII alone, since formats differ in what else they take. Where
lines or fields are short it is cut, and each piece begins with `kamado:`; together they are the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .recipe import MAX_RECIPE_BYTES, recipe_json

MARK = "kamado:"
MAX_TAG_BYTES = 6 * MAX_RECIPE_BYTES
"""An escape takes six characters."""
_BEYOND_ASCII = re.compile(r"[^\x20-\x7e]")
_EDGE = re.compile(r"^ | $")
"""Spaces of compact JSON are all within strings, where there is an escape for them."""


def tagged(recipe: Mapping[str, Any]) -> str:
    """The text for a comment field: printable ASCII, without two spaces in a row. Raises InvalidRequest for a recipe
    without a JSON form, or over MAX_RECIPE_BYTES."""
    text = _BEYOND_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], recipe_json(recipe))
    return MARK + text.replace("  ", " \\u0020")


def tagged_lines(recipe: Mapping[str, Any], length: int) -> list[str]:
    """The same, cut into lines of about `length` characters, none of which begins or ends with a space."""
    text = tagged(recipe)[len(MARK) :]
    pieces = [text[begin : begin + length] for begin in range(0, len(text), length)]
    return [MARK + _EDGE.sub(r"\\u0020", piece) for piece in pieces]


def untagged(text: str) -> str | None:
    """The JSON text in a comment field; None if it holds no recipe. Nothing of it is checked yet."""
    text = text.strip("\0 \t\r\n")
    return text[len(MARK) :] if text.startswith(MARK) else None


def untagged_lines(lines: Iterable[str]) -> str | None:
    """The JSON text that `tagged_lines` cut; other lines are passed over. None if there is none."""
    pieces = [piece for line in lines if (piece := untagged(line)) is not None]
    return "".join(pieces) if pieces else None
