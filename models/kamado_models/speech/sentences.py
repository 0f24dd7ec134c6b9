"""Long text in pieces that can be spoken one after the other. Knows no language: only how texts are punctuated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_CLOSING = "\"'”’»«)]}」』】）"
_WIDE_ENDS = "。！？｡…‥"
"""Ends of sentences after which no space is written."""
_ENDS = ".!?؟۔।॥։።፧" + _WIDE_ENDS
_END = re.compile(
    rf"(?P<mark>[{re.escape(_ENDS)}]+)(?P<close>[{re.escape(_CLOSING)}]*)(?P<space>\s+|$)"
    rf"|(?P<wide>[{_WIDE_ENDS}]+[{re.escape(_CLOSING)}]*)"
    r"|(?P<break>\s*\n\s*\n\s*)"
)
_ABBREVIATIONS = frozenset({
    "approx", "apr", "aug", "bzw", "ca", "cf", "dept", "dr", "etc", "feb", "fr", "ges", "gov", "hl", "hon",
    "inc", "jr", "jul", "jun", "kap", "lt", "ltd", "messrs", "mio", "mlle", "mme", "mr", "mrd", "mrs", "ms",
    "mt", "nov", "oct", "ph", "prof", "resp", "sept", "sog", "sr", "sra", "srta", "st", "str", "u", "ud",
    "usw", "vgl", "vs", "z", "zb",
})  # fmt: skip
"""Words, without their periods, after which a period ends no sentence. Of common European languages; those that are
also words by themselves are left out."""
_BEFORE_NUMBERS = frozenset({
    "abs", "art", "bd", "ch", "fig", "figs", "no", "nos", "nr", "op", "p", "pp", "s", "sec", "tab", "vol",
})  # fmt: skip
"""The same, where a number follows."""
_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*$")
_SOFT = re.compile(r"[,;:،؛、，；：]+[\"'”’»)\]]*\s*|\s+[—–-]+\s+")
_SPACE = re.compile(r"\s+")


def sentences(text: str, longest: int = 400) -> list[str]:
    """The sentences of `text`, none with more than `longest` characters (those that are longer are cut behind a comma,
    else between words, else anywhere), each with the white space behind it: joined, they are the text. What has no
    letter or digit stays with its neighbour, so that every one can be spoken, unless all of the text has none.

    A period ends a sentence if white space follows and what comes next does not begin with a small letter, unless it
    follows a single letter (`J. Bach`) or a known abbreviation (`Dr. No`)."""
    pieces = (piece for sentence in _joined(_split(text)) for piece in _cut(sentence, longest))
    return list(_joined(pieces))


def packed(pieces: Iterable[str], longest: int) -> list[str]:
    """Neighbours joined while they have at most `longest` characters together."""
    found: list[str] = []
    for piece in pieces:
        if found and len(found[-1]) + len(piece) <= longest:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def _split(text: str) -> Iterator[str]:
    start = 0
    for match in _END.finditer(text):
        if match.end() > start and _ends(text, start, match):
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match.group("mark")
    if mark is None or mark[-1] in _WIDE_ENDS:
        return True
    follows = text[match.end() : match.end() + 1]
    if follows.islower() and (mark[-1] == "." or match.group("close")):
        return False  # Wait... what? "Stop!" he said.
    word = _WORD.search(text, start, match.start("mark"))
    if mark != "." or word is None or not follows:
        return True
    last = word.group().lower()
    if follows.isdigit() and last in _BEFORE_NUMBERS:
        return False
    is_letters = "." in last and all(len(part) == 1 and part.isalpha() for part in last.split("."))  # U.S.
    return not (last in _ABBREVIATIONS or is_letters or (len(last) == 1 and last.isalpha()))


def _joined(pieces: Iterable[str]) -> Iterator[str]:
    """Those that cannot be spoken stay with the one before, at the beginning with the one behind."""
    held = ""
    for piece in pieces:
        if held and any(map(str.isalnum, held)) and any(map(str.isalnum, piece)):
            yield held
            held = piece
        else:
            held += piece
    if held:
        yield held


def _cut(sentence: str, longest: int) -> Iterator[str]:
    """Behind the last soft mark that fits, or the last white space, or anywhere."""
    while len(sentence) > longest:
        window = sentence[:longest]
        places = [match.end() for match in _SOFT.finditer(window)] or [match.end() for match in _SPACE.finditer(window)]
        place = max((each for each in places if each >= longest // 4), default=longest)
        yield sentence[:place]
        sentence = sentence[place:]
    if sentence:
        yield sentence
