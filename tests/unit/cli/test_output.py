"""The channels of a command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.cli.output import Output, dump_json, printable, shorten
from kamado.cli.table import format_facts, format_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(terminal: bool = False, **flags: bool) -> tuple[Output, io.StringIO, io.StringIO]:
    stdout, stderr = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    return Output(stdout=stdout, stderr=stderr, **flags), stdout, stderr


def speak(out: Output) -> None:
    out.line("line")
    out.text("text")
    out.json({"a": 1})
    out.note("note")
    out.passing("passing")
    out.detail("detail")


@pytest.mark.parametrize(
    ("flags", "stdout", "stderr"),
    [
        ({}, "line\ntext", "note\n"),
        ({"is_json": True}, '{"a": 1}\n', "note\n"),
        ({"quiet": True}, "text", ""),
        ({"verbose": True}, "line\ntext", "note\ndetail\n"),
        ({"terminal": True}, "line\ntext", "note\npassing\n"),
        ({"terminal": True, "is_json": True}, '{"a": 1}\n', "note\npassing\n"),
    ],
)
def test_who_hears_what(flags: dict[str, bool], stdout: str, stderr: str) -> None:
    out, heard_out, heard_err = make(**flags)
    speak(out)
    assert (heard_out.getvalue(), heard_err.getvalue()) == (stdout, stderr)


def test_control_characters_reach_a_file_but_not_a_terminal() -> None:
    text = "a\x1b[31mb\x9b\u202ec\td\n"
    for terminal, expected in ((False, text), (True, "a\ufffd[31mb\ufffd\ufffdc\td\n")):
        out, heard, _ = make(terminal)
        out.text(text)
        assert heard.getvalue() == expected


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)


def test_a_bar_is_drawn_on_a_terminal_only() -> None:
    for terminal in (True, False):
        out, heard_out, heard_err = make(terminal)
        with out.progress(100, "pull [bold]x") as update:
            update(50)
            update(100, 200, "detail")
        assert heard_out.getvalue() == ""
        assert ("pull [bold]x" in heard_err.getvalue()) is terminal


@given(st.text(), st.integers(3, 60))
def test_a_short_label_has_both_ends(text: str, size: int) -> None:
    short = shorten(text, size)
    assert len(short) <= size and (short == text or (short[0] == text[0] and short[-1] == text[-1]))


def test_quiet_draws_no_bar() -> None:
    out, _, heard = make(terminal=True, quiet=True)
    with out.progress(None, "pull", unit="files") as update:
        update(1)
    assert heard.getvalue() == ""


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5
    )
)
def test_json_is_always_json_and_utf8(document: Any) -> None:
    for ascii_only in (False, True):
        text = dump_json(document, ascii_only=ascii_only)
        assert json.loads(text.encode("utf-8")) == document
        assert "\n" not in text


def test_json_of_other_kinds() -> None:
    document = {"map": MappingProxyType({"a": Path("x")}), "set": {2, 1}, "half": "\ud800"}
    assert json.loads(dump_json(document)) == {"map": {"a": "x"}, "set": [1, 2], "half": "\ud800"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json(float("nan"))


def test_tables_align() -> None:
    assert format_table(("name", "size"), [("a", "1"), ("long name", "100")], right=("size",)) == [
        "name       size",
        "a             1",
        "long name   100",
    ]
    assert format_facts([("a", "1"), ("empty", ""), ("long", "2\x1b")]) == ["a     1", "long  2\ufffd"]
