"""Where the block of code ends that the cursor is in, in text that arrives in pieces; for any language. No torch.

A block is what braces enclose or, where the text before the cursor has no open brace, what is indented alike. Strings
and comments are told by the marks that most languages share, so this is a good guess, not a parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLOSING_WORDS = ("end", "fi", "done", "esac")
"""What ends a block in Ruby, Lua, Julia and in shells."""
_OPENERS = (":", "{", "(", "[")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_BEHIND = re.compile(r"[)\];,]*")
"""What follows a closing bracket and belongs to it."""
_CLOSERS = re.compile(r"[)\]}][)\]};,]*")
_LINE_COMMENT = re.compile(r"//|(#|--)(?=\s|$)")
_END_COMMENT = re.compile(r"\s(//|#|--)(\s.*)?$")
_TELLING = re.compile(r"[()\[\]{}\"'`/#-]")
"""Where a bracket, a string or a comment may begin."""
_LONG = ('"""', "'''", "/*")
_BEFORE_COMMENT = " \t;,{}()"
_QUOTES = "\"'`"
_TAB = 8


class BlockEnd:
    """Finds the end of the block. How the text is cut into pieces never matters.

    If the cursor's line opens a block (with a brace, or because what follows is indented deeper), it is that one; else
    the one that the line is in. The answer ends with the last line of the block, without its line end. What closes a
    block that was open before belongs to the answer only where nothing is behind the cursor.
    """

    def __init__(self, before: str, *, is_last: bool) -> None:
        """`before`: the text up to the cursor. `is_last`: whether nothing is behind it."""
        earlier, newline, self._cursor_line = before.rpartition("\n")
        self._is_last = is_last
        self._long: str | None = None
        """What ends the string or comment of several lines that the next line begins in."""
        self._depth = self._open_before(earlier) if newline else 0
        """Braces that are open before the cursor."""
        self._is_first = True
        self._is_headed = bool(self._cursor_line.strip())
        """Whether the line after the cursor's decides which block it is."""
        self._head = 0
        self._is_own = False
        """Whether it is the block that was opened by a brace behind the cursor."""
        self._is_deeper = False
        """Whether it is what is indented deeper than the cursor's line."""
        self._least: int | None = _indent(self._cursor_line) if self._cursor_line and not self._is_headed else None
        """Indentation of the block; None: not known, or braces tell."""
        self._is_settled = self._least is not None
        """Whether no line is needed to tell it."""
        if newline and not self._cursor_line and not self._depth and _opens_or_is_in(earlier.rpartition("\n")[2]):
            self._least = 1
        self._stack: list[str] = []
        """Brackets that were opened behind the cursor."""
        self._line = ""
        """The line that is not complete."""
        self._num_out = 0
        """So much of it was let through."""
        self._gap = ""
        """Line ends and spaces before it, which belong to the answer if it does."""
        self._ended = False

    def feed(self, text: str) -> tuple[str, bool]:
        """More text. Returns what is now known to belong to the block, and whether it has ended."""
        out = ""
        self._line += text
        while not self._ended:
            line, newline, rest = self._line.partition("\n")
            if not newline:
                return out + self._part(line), self._ended
            out += self._whole(line)
            if not self._ended:
                kept = len(line.rstrip())
                self._gap += line[kept:] + "\n"
                self._line, self._num_out = rest, 0
        return out, True

    def flush(self) -> tuple[str, bool]:
        """The text has ended: what was held back, up to the end of the block if that is in it."""
        if self._ended:
            return "", True
        out = self._whole(self._line)
        if not self._ended:
            out += self._gap + self._line[max(self._num_out, len(self._line.rstrip())) :]
            self._gap = self._line = ""
        return out, self._ended

    def _part(self, line: str) -> str:
        """Of a line that may go on: what belongs to the block however it does."""
        if not (self._cursor_line + line).strip():
            return ""
        if (not self._is_first or not self._cursor_line) and self._long is None and self._is_outside(line):
            if _may_close(line.strip()):
                return ""
            self._ended = True
            return ""
        return self._let_through(line, len(line.partition("}")[0].rstrip()))

    def _whole(self, line: str) -> str:
        """Of a line that is complete: what belongs to the block. A blank one says nothing."""
        full = self._cursor_line + line
        if not full.strip():
            self._after_first()
            return ""
        starts_long, skipped = self._long is not None, len(self._cursor_line)
        events, self._long = _brackets(full, self._long)
        if (not self._is_first or not skipped) and not starts_long:
            self._decide_block(line)
            if self._is_outside(line) and not self._goes_on(line):
                self._ended = True
                return self._let_through(line, self._closing(line))
        end = None
        for place, bracket in events:
            if place < skipped:
                self._depth = _deeper(self._depth, bracket)
            elif end is None:
                end = self._end_at(full, place, bracket)
        if end is not None:
            self._ended = True
            return self._let_through(line, end - skipped)
        if self._is_first:
            self._head = _indent(full)
            self._is_own = self._is_headed and "{" in self._stack
            if not self._is_headed and not self._depth:
                self._least = self._head
                self._is_settled = True
        self._after_first()
        return self._let_through(line, len(line.rstrip()))

    def _after_first(self) -> None:
        self._is_first, self._cursor_line = False, ""

    def _decide_block(self, line: str) -> None:
        """The first line that is not blank, behind the cursor's, tells which block it is."""
        if self._is_headed and not self._is_own:
            self._is_own = line.lstrip().startswith("{")
            if not self._is_own and not self._depth:
                self._is_deeper = _indent(line) > self._head
                self._least = self._head + self._is_deeper
        elif not self._is_settled and not self._is_own and not self._depth:
            self._least = max(_indent(line), self._least or 0)
        self._is_headed, self._is_settled = False, True

    def _is_outside(self, line: str) -> bool:
        """Whether the line is indented less than the block. Changes nothing."""
        if self._is_own or self._depth or (self._is_headed and line.lstrip().startswith("{")):
            return False
        least = self._least
        if self._is_headed:
            least = self._head + (_indent(line) > self._head)
        return least is not None and bool(line.strip()) and _indent(line) < least

    def _goes_on(self, line: str) -> bool:
        """Whether a line outside closes something only to open the block itself: `) -> int:`."""
        return line.lstrip()[0] in _PAIRS and _END_COMMENT.sub("", line).rstrip().endswith(_OPENERS)

    def _closing(self, line: str) -> int:
        """How much of a line outside closes the block and belongs to it."""
        stripped, start = line.strip(), len(line) - len(line.lstrip())
        if _first_word(stripped) in _CLOSING_WORDS:
            return start + len(_first_word(stripped)) if self._is_last or self._is_deeper else 0
        found = _CLOSERS.match(stripped)
        closes = found is not None and (self._is_last or _PAIRS[stripped[0]] in self._stack)
        return start + found.end() if closes and found is not None else 0

    def _end_at(self, full: str, place: int, bracket: str) -> int | None:
        """Take in a bracket behind the cursor: where the answer ends, if that ends the block."""
        if bracket not in _PAIRS:
            self._stack.append(bracket)
            return None
        if bracket != "}":
            if self._stack and self._stack[-1] == _PAIRS[bracket]:
                self._stack.pop()
            return None
        if "{" in self._stack:
            while self._stack.pop() != "{":
                pass
            return _behind(full, place) if self._is_own and "{" not in self._stack else None
        return _behind(full, place) if self._is_last else len(full[:place].rstrip())

    def _let_through(self, line: str, end: int) -> str:
        """The line up to `end`, as far as it has not been let through."""
        if end <= self._num_out:
            return ""
        out, self._gap = self._gap + line[self._num_out : end], ""
        self._num_out = end
        return out

    def _open_before(self, text: str) -> int:
        """How many braces are open at the end of these lines; notes a string that is."""
        depth = 0
        for line in text.split("\n"):
            events, self._long = _brackets(line, self._long)
            for _, bracket in events:
                depth = _deeper(depth, bracket)
        return depth


def _deeper(depth: int, bracket: str) -> int:
    return max(depth + {"{": 1, "}": -1}.get(bracket, 0), 0)


def _behind(line: str, place: int) -> int:
    """The place behind a closing bracket and what belongs to it."""
    found = _BEHIND.match(line, place + 1)
    return found.end() if found else place + 1


def _opens_or_is_in(line: str) -> bool:
    """Whether an empty line behind this one is in a block that is indented."""
    return bool(line.strip()) and (_indent(line) > 0 or line.rstrip().endswith(":"))


def _indent(line: str) -> int:
    expanded = line.expandtabs(_TAB)
    return len(expanded) - len(expanded.lstrip())


def _first_word(text: str) -> str:
    found = re.match(r"\w*", text)
    return found[0] if found else ""


def _may_close(text: str) -> bool:
    """Whether a line that begins so may be one that closes a block."""
    word = _first_word(text)
    is_word = word in _CLOSING_WORDS or (word == text and any(each.startswith(word) for each in _CLOSING_WORDS))
    return text[0] in _PAIRS or is_word


def _brackets(line: str, long: str | None) -> tuple[list[tuple[int, str]], str | None]:
    """Brackets of a line that are in no string or comment, with their places; and what the next line begins in."""
    found: list[tuple[int, str]] = []
    place = 0
    while place < len(line):
        if long is not None:
            end = line.find(long, place)
            if end < 0:
                return found, long
            place, long = end + len(long), None
        if (telling := _TELLING.search(line, place)) is None:
            break
        place = telling.start()
        opened = next((mark for mark in _LONG if line.startswith(mark, place)), None)
        if opened is not None and (opened != "/*" or place == 0 or line[place - 1] in _BEFORE_COMMENT):
            place, long = place + len(opened), "*/" if opened == "/*" else opened
        elif _LINE_COMMENT.match(line, place) and not _is_division(line, place):
            break
        elif line[place] in _QUOTES:
            place = _behind_string(line, place)
        else:
            if line[place] in "()[]{}":
                found.append((place, line[place]))
            place += 1
    return found, long


def _is_division(line: str, place: int) -> bool:
    """Whether `//` stands behind a value, as in Python."""
    before = line[:place].rstrip()
    return line[place] == "/" and bool(before) and (before[-1].isalnum() or before[-1] in "_)]")


def _behind_string(line: str, start: int) -> int:
    """The place behind the string that begins at `start`; behind the quote, where no other one ends it."""
    for place in _unescaped(line, start + 1):
        if line[place] == line[start]:
            return place + 1
    return start + 1


def _unescaped(line: str, start: int) -> Iterator[int]:
    place = start
    while place < len(line):
        if line[place] == "\\":
            place += 1
        else:
            yield place
        place += 1
