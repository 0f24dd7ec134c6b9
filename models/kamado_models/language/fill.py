"""Prompts that fill in code, and that show a model the rest of a repository, with the model's own tokens.

Sources of the layouts. Order of prefix, suffix, middle: Bavarian et al., "Efficient Training of Language Models to Fill
in the Middle" (2022). Files of a repository: Lozhkov et al., "StarCoder 2" (2024), section 5.1; Hui et al.,
"Qwen2.5-Coder" (2024), section 3.2; Guo et al., "DeepSeek-Coder" (2024). Spaces: Rozière et al., "Code Llama" (2023),
and Meta's code for it: the prefix has the space that its tokenizer puts before a text, the suffix has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from kamado.errors import InvalidRequest
from kamado.requests import TextOptions

from .tokenizer import Tokenizer
from .vocabulary import SPACE

Part = Literal["prefix", "suffix", "middle"]
_PARTS: tuple[Part, ...] = ("prefix", "suffix", "middle")
_MARKS: tuple[tuple[str, str, str], ...] = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, Refact
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<PRE>", "<SUF>", "<MID>"),
)
_SUFFIX_FIRST = ("[PREFIX]", "[SUFFIX]")
"""Codestral's; there is no mark before the middle."""
_COMMENTS = "<｜fim▁begin｜>"
"""Models with this mark read other files one behind the other, under comments with their paths."""
_FILES = (("<repo_name>", "<file_sep>"), ("<|repo_name|>", "<|file_sep|>"))
_PATH_INSIDE = "<file_sep>"
"""With this mark, StarCoder 2's, the path of the file that is filled in stands behind the mark for the prefix, and no
line end is put behind the name of the repository and the files."""
_ENDS = ("<|endoftext|>", "▁<EOT>", "<EOT>", "<|EOT|>", "<fim_pad>", "<|fim_pad|>", "<fim-pad>", "<|cursor|>")
"""What ends a filling beside the end tokens of the model and the marks themselves."""
_NEWLINE = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FillLayout:
    """The tokens that one model has for code around a cursor."""

    marks: Mapping[Part, int]
    """Empty: it cannot fill in. Without "middle" the suffix comes first."""
    repository: int | None
    file: int | None
    path_inside: bool
    """See _PATH_INSIDE."""
    comments: bool
    """See _COMMENTS."""
    ends: frozenset[int]


def fill_layout(tokenizer: Tokenizer) -> FillLayout:
    """What the tokens of a vocabulary, and what its files say of them (`Tokenizer.marks`), tell of the model."""
    told = tokenizer.marks

    def known(names: Iterable[str]) -> list[int]:
        return [token for name in names if (token := tokenizer.token_id(name)) is not None]

    marks: dict[Part, int] = {part: told[part] for part in _PARTS if part in told}
    if len(marks) < len(_PARTS):
        whole = (found for names in (*_MARKS, _SUFFIX_FIRST) if len(found := known(names)) == len(names))
        marks = dict(zip(_PARTS, next(whole, []), strict=False))
    repository, file = told.get("repository"), told.get("file")
    if file is None:
        pairs = (found for names in _FILES if len(found := known(names)) == len(names))
        repository, file = next(pairs, (None, None))
    named = {token for token in (*marks.values(), *told.values(), repository, file, *known(_ENDS)) if token is not None}
    return FillLayout(
        marks=marks,
        repository=repository,
        file=file,
        path_inside=file is not None and tokenizer.token_id(_PATH_INSIDE) == file,
        comments=tokenizer.token_id(_COMMENTS) is not None,
        ends=frozenset(named),
    )


class Filler:
    """Makes the prompts for one model."""

    def __init__(self, reference: str, tokenizer: Tokenizer) -> None:
        """`reference`: how errors name the model."""
        self._reference = reference
        self._tokenizer = tokenizer
        self.layout = fill_layout(tokenizer)
        first = [tokenizer.token_text(token) or "" for token in self._encode(_NEWLINE)]
        self._adds_space = bool(first) and first[0].startswith(SPACE)
        """Whether the tokenizer puts a space before a text."""
        controls = {text for token in self.layout.ends if (text := tokenizer.token_text(token)) is not None}
        texts = sorted(controls | tokenizer.special_texts(), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def prompt(self, options: TextOptions) -> list[int]:
        """The tokens of a request with a suffix or other files. Raises InvalidRequest where the model has no tokens
        for these."""
        assert options.prompt is not None
        has_context = bool(options.files or options.repository is not None or options.filename is not None)
        if not options.suffix and not has_context:
            return self._tokenizer.encode(options.prompt, add_special=True)
        layout, before, inside = self.layout, "", ""
        if options.suffix and not layout.marks:
            raise InvalidRequest(
                f"{self._reference} has no tokens for filling in the middle; leave out the suffix, or take a model "
                "that has (StarCoder 2, Qwen2.5-Coder, Code Llama, DeepSeek-Coder)"
            )
        ids = self._start()
        if has_context and layout.file is not None:
            ids += self._files(options)
            path = f"{options.filename}\n" if options.filename is not None else ""
            before, inside = ("", path) if layout.path_inside else (path, "")
        elif has_context and layout.comments:
            inside = _commented(options)
        elif has_context:
            raise InvalidRequest(
                f"{self._reference} has no tokens for other files; leave out files, repository and filename, or put "
                "them into the prompt as comments"
            )
        ids += self._inside(before)
        if not options.suffix:
            return ids + self._inside(inside + options.prompt)
        prefix = self._inside((" " if self._adds_space else "") + inside + options.prompt)
        suffix = self._inside(options.suffix)
        marks = layout.marks
        if "middle" not in marks:
            return [*ids, marks["suffix"], *suffix, marks["prefix"], *prefix]
        return [*ids, marks["prefix"], *prefix, marks["suffix"], *suffix, marks["middle"]]

    def _start(self) -> list[int]:
        """The start token, where a text has one."""
        tokenizer = self._tokenizer
        first = tokenizer.encode("", add_special=True)[:1]
        return first if first == [tokenizer.bos_id] else []

    def _files(self, options: TextOptions) -> list[int]:
        """The name of the repository and its other files, up to the mark of the file that is written."""
        layout = self.layout
        assert layout.file is not None
        line_end = "" if layout.path_inside else _NEWLINE
        ids: list[int] = []
        if options.repository is not None:
            if layout.repository is None:
                raise InvalidRequest(f"{self._reference} has no token for the name of a repository; leave it out")
            ids += [layout.repository, *self._inside(options.repository + line_end)]
        for path, text in options.files.items():
            ids += [layout.file, *self._inside(f"{path}\n{text}{line_end}")]
        return [*ids, layout.file]

    def _inside(self, text: str) -> list[int]:
        """Tokens of a text that others are before. What looks like a control token in it is text."""
        ids: list[int] = []
        start = 0
        for found in self._controls.finditer(text):
            ids += self._piece(text[start : found.start() + 1])
            start = found.start() + 1
        return ids + self._piece(text[start:])

    def _piece(self, text: str) -> list[int]:
        if not self._adds_space or not text:
            return self._encode(text)
        first, ids = self._encode(_NEWLINE), self._encode(_NEWLINE + text)
        return ids[len(first) :] if ids[: len(first)] == first else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False) if text else []


def _commented(options: TextOptions) -> str:
    parts = [f"#{path}\n{text}\n" for path, text in options.files.items()]
    return "".join([*parts, f"#{options.filename}\n" if options.filename is not None else ""])
