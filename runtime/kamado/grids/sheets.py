"""Sheets: many small pictures with the values of their axes beside them, on as many pages as it takes.

The last axis runs across, the one before it down; each combination of the axes before those has a part of its own under
a band that names it, and parts lie side by side where there is room. One axis alone runs across and wraps, with its
values below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from ..errors import InvalidRequest
from .axes import Axis, label
from .thumbs import FAINT, GROUND, INK, cut, font, text_width, wrapped

MAX_WIDTH, MAX_HEIGHT = 2000, 2400
MIN_CELL, MAX_CELL = 32, 1024
_MARGIN, _GAP = 28, 8
_ABOVE, _BAND, _CAPTION = 8, 30, 22
_MOST_LABEL, _LABEL_GAP, _LINE = 150, 16, 19
_LEAST = 64
_LEAST_PART, _PART_GAP = 200, 24
_TITLE_FACE, _FACE = 19, 14
_FRAME = "#e1e4ea"

Thumb = Callable[[int], Image.Image]
"""The small picture of a cell, by its number."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One horizontal piece of a sheet: a band with a title, labels of columns, or a row of cells."""

    height: int
    bands: tuple[str, ...] = ()
    """Titles of parts that lie side by side."""
    text: str = ""
    """Beside a row."""
    labels: tuple[str, ...] = ()
    """Above columns, or below cells."""
    cells: tuple[int, ...] = ()
    is_head: bool = False
    """Whether what follows belongs to it, so that no page may end with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything goes."""

    width: int
    """Of a cell, in pixels."""
    height: int
    pages: tuple[tuple[Strip, ...], ...] = field(repr=False)
    columns: int
    """Of one part, at most."""
    label_width: int
    """Of the labels beside rows; 0: there are none."""
    beside: int = 1
    """Parts that lie side by side."""
    pitch: int = 0
    """Pixels from one of them to the next."""

    def left(self, column: int) -> int:
        """Where a column begins; those of all parts side by side are counted on."""
        part, within = divmod(column, self.columns)
        return _MARGIN + self.label_width + part * self.pitch + within * (self.width + _GAP)

    @property
    def right(self) -> int:
        """Where the last column of a full strip ends, or its band."""
        last = self.left(self.columns * self.beside - 1) + self.width
        return max(last, self.left(self.columns * (self.beside - 1)) + self.pitch - _PART_GAP)


def check_cell(pixels: int) -> None:
    """Raise InvalidRequest for a size that no sheet is made of."""
    if not MIN_CELL <= pixels <= MAX_CELL:
        raise InvalidRequest(f"cells of a sheet have {MIN_CELL} to {MAX_CELL} pixels, not {pixels}")


def lay_out(axes: Sequence[Axis], width: int, height: int) -> Layout:
    """Pages for cells of this size, or a little more where that would be too narrow for labels."""
    width, height = max(width, _LEAST), max(height, _LEAST)
    across = axes[-1]
    label_width = _label_width(axes[-2]) if len(axes) > 1 else 0
    room = MAX_WIDTH - 2 * _MARGIN - label_width
    most = max(1, (room + _GAP) // (width + _GAP))
    beside = pitch = 1
    if len(axes) == 1:
        columns = min(most, max(1, math.ceil(math.sqrt(len(across.values) * 1.5 * height / width))), len(across.values))
        strips = list(_wrapped_axis(across, columns, height))
    else:
        columns = min(most, len(across.values))
        pitch = max(columns * (width + _GAP) - _GAP, _LEAST_PART) + _PART_GAP
        if columns == len(across.values):
            num_parts = math.prod(len(axis.values) for axis in axes[:-2])
            beside = min(num_parts, max(1, (room + _PART_GAP) // pitch))
        strips = list(_parts(axes, columns, height, beside))
    pages = tuple(_paged(strips))
    return Layout(
        width=width,
        height=height,
        pages=pages,
        columns=columns,
        label_width=label_width,
        beside=beside,
        pitch=pitch,
    )


def draw_sheet(layout: Layout, number: int, thumb: Thumb, title: str = "") -> Image.Image:
    """Page `number`, from 0, in RGB."""
    strips = layout.pages[number]
    face, title_face = font(_FACE), font(_TITLE_FACE)
    width = max(layout.right + _MARGIN, 420)
    sheet = Image.new("RGB", (width, 2 * _MARGIN + 34 + sum(strip.height for strip in strips)), "white")
    draw = ImageDraw.Draw(sheet)
    of_pages = f"{number + 1} of {len(layout.pages)}" if len(layout.pages) > 1 else ""
    room = width - 2 * _MARGIN - text_width(of_pages, face) - 16
    draw.text((_MARGIN, _MARGIN - 6), cut(title, room, title_face), fill=INK, font=title_face)
    draw.text((width - _MARGIN - text_width(of_pages, face), _MARGIN - 2), of_pages, fill=FAINT, font=face)
    top = _MARGIN + 34
    for strip in strips:
        _draw_strip(sheet, draw, layout, strip, top, thumb)
        top += strip.height
    return sheet


def _wrapped_axis(axis: Axis, columns: int, height: int) -> Iterator[Strip]:
    numbers = range(len(axis.values))
    for begin in range(0, len(numbers), columns):
        cells = tuple(numbers[begin : begin + columns])
        labels = tuple(f"{axis.name} {label(axis.values[cell])}" for cell in cells)
        yield Strip(height + _CAPTION + _GAP, labels=labels, cells=cells)


def _parts(axes: Sequence[Axis], columns: int, height: int, beside: int) -> Iterator[Strip]:
    *outer, down, across = axes
    rows, total = len(down.values), len(across.values)
    titles = list(_titles(outer))
    for begin in range(0, len(titles), beside):
        parts = range(begin, min(begin + beside, len(titles)))
        if outer:
            yield Strip(_ABOVE + _BAND + _GAP, bands=tuple(titles[part] for part in parts), is_head=True)
        for first in range(0, total, columns):
            shown = range(first, min(first + columns, total))
            labels = tuple(f"{across.name} {label(across.values[column])}" for column in shown)
            yield Strip(_CAPTION, labels=labels * len(parts), is_head=True)
            for row, value in enumerate(down.values):
                cells = tuple((part * rows + row) * total + column for part in parts for column in shown)
                yield Strip(height + _GAP, text=f"{down.name}\n{label(value)}", cells=cells)


def _titles(outer: Sequence[Axis]) -> Iterator[str]:
    """Of each part."""
    for values in itertools.product(*(axis.values for axis in outer)):
        yield "   ".join(f"{axis.name}: {label(value)}" for axis, value in zip(outer, values, strict=True))


def _paged(strips: Sequence[Strip]) -> Iterator[tuple[Strip, ...]]:
    """A page that begins within a part names it again."""
    page: list[Strip] = []
    heads: list[Strip] = []
    used = 0
    room = MAX_HEIGHT - 2 * _MARGIN - 34
    for position, strip in enumerate(strips):
        if strip.is_head:
            heads = [strip] if strip.bands or not heads or not heads[0].bands else [heads[0], strip]
        needed = strip.height + (_until_cells(strips, position) if strip.is_head else 0)
        if page and used + needed > room:
            yield tuple(page)
            page = [] if strip.bands else [head for head in heads if head is not strip]
            used = sum(head.height for head in page)
        page.append(strip)
        used += strip.height
    if page:
        yield tuple(page)


def _until_cells(strips: Sequence[Strip], position: int) -> int:
    """Pixels of what follows a head, up to and with the first row of cells."""
    total = 0
    for strip in strips[position + 1 :]:
        total += strip.height
        if strip.cells:
            return total
    return total


def _draw_strip(sheet: Image.Image, draw: Any, layout: Layout, strip: Strip, top: int, thumb: Thumb) -> None:
    face = font(_FACE)
    for part, title in enumerate(strip.bands):
        left, right = layout.left(part * layout.columns), layout.left(part * layout.columns) + layout.pitch - _PART_GAP
        if layout.beside == 1:
            left, right = _MARGIN, sheet.width - _MARGIN
        draw.rectangle((left, top + _ABOVE, right, top + _ABOVE + _BAND - 1), fill=GROUND)
        draw.text((left + 10, top + _ABOVE + 6), cut(title, right - left - 20, face), fill=INK, font=face)
    for column, cell in enumerate(strip.cells):
        small = thumb(cell)
        if small.width > layout.width or small.height > layout.height:  # it is not shaped like the first one
            small.thumbnail((layout.width, layout.height))
        across = layout.left(column) + (layout.width - small.width) // 2
        begin = top + (layout.height - small.height) // 2
        sheet.paste(small, (across, begin))
        frame = (across - 1, begin - 1, across + small.width, begin + small.height)
        draw.rectangle(frame, outline=_FRAME)  # around what is as white as the sheet
    if strip.cells and strip.text:
        _draw_row_label(draw, layout, strip.text, top)
    base = top + (layout.height + 2 if strip.cells else 0)
    for column, text in enumerate(strip.labels):
        shown = cut(text, layout.width, face)
        across = layout.left(column) + (layout.width - text_width(shown, face)) // 2
        draw.text((across, base), shown, fill=INK, font=face)


def _draw_row_label(draw: Any, layout: Layout, text: str, top: int) -> None:
    """The axis in faint letters, its value below, in the middle of the row."""
    face = font(_FACE)
    name, _, value = text.partition("\n")
    room = layout.label_width - _LABEL_GAP
    lines = [cut(name, room, face), *wrapped(value, room, face, max(1, min(6, layout.height // _LINE - 1)))]
    begin = top + (layout.height - _LINE * len(lines)) // 2
    for number, line in enumerate(lines):
        draw.text((_MARGIN, begin + _LINE * number), line, fill=INK if number else FAINT, font=face)


def _label_width(axis: Axis) -> int:
    """As wide as the longest label, within bounds."""
    face = font(_FACE)
    longest = max(text_width(text, face) for text in (axis.name, *(label(value)[:40] for value in axis.values)))
    return min(_MOST_LABEL, longest) + _LABEL_GAP
