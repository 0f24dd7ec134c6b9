"""Where a block of code ends, whatever the language and however the text is cut."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import kamado
from kamado import kernels
from kamado.sampling.block import BlockEnd

# before the cursor | behind it, of the block | what a model may go on with. `is_last`: nothing is behind the cursor.
LAST: dict[str, tuple[str, str, str]] = {
    "body of a function": ("def f(x):\n", "    y = x\n\n    return y", "\n\n\ndef g():\n    pass\n"),
    "its header": ("def f(", "x):\n    return x", "\n\nprint(f(1))\n"),
    "its header, over several lines": ("def f(", "\n    x,\n) -> int:\n    return x", "\n\nprint(f(1))\n"),
    "an arm": ("def f(x):\n    if x:\n        ", "return 1", "\n    return 2\n"),
    "indented by the model": ("if x:\n", "  if y:\n    z()\n  w()", "\nv()\n"),
    "a statement": ("def f(x):\n    return x +", " 1", "\n\nx = 2\n"),
    "an empty line of a function": ("def f():\n    x = 1\n    ", "\n    return x", "\nprint()"),
    "strings of several lines": ('def f():\n    """Do', 'es.\n\nNot at 4.\n    """\n    return 1', "\ndef g():"),
    "another such string": ("def f():\n", "    x = '''\n}\nend\n'''\n    return x", "\ny"),
    "braces": ("int f(int x) {\n", "    if (x) {\n        return 1;\n    }\n    return 2;\n}", "\n\nint g() {}\n"),
    "braces on one line": ("if (x) { ", "return {1}; }", " else { y(); }\n"),
    "braces in braces": ("class A {\n  int f(", "int x) {\n    return x;\n  }", "\n\n  int g() { return 1; }\n}\n"),
    "a class": ("class A {\n  ", "int f() {\n    return 1;\n  }\n  int g;\n};", "\nint h;\n"),
    "a brace on its own line": ("int f(int x)", "\n{\n  return x;\n}", "\nint g()\n{\n}\n"),
    "labels at the margin": ("int f() {\n  goto a;\n", "a:\n  return 1;\n}", "\nint g;\n"),
    "a callback": ("on('x', () => {\n  ", "y();\n});", "\nz();\n"),
    "braces that are text": ("void f() {\n", "  puts(\"}\"); // }\n  /* }\n } */ c = '}';\n}", "\nint x;\n"),
    "an apostrophe": ("fn f<'a>(x: &'a str) {\n", "    g::<'a>(x) // don't\n}", "\nfn h() {}\n"),
    "a table": ("x = ", "{\n    1: 2,\n}", "\ny = 3\n"),
    "arguments": ("f(", "\n    a,\n    b,\n)", "\ng()\n"),
    "words that end": ("def f\n", "  if x\n    y\n  end\n  z\nend", "\n\nf\n"),
    "a header that a word ends": ("def f", "(x)\n  x\nend", "\nf 1\n"),
    "a shell": ("for f in a; do\n", "  ls $f/*\n  echo $f\ndone", "\necho\n"),
    "tabs": ("func f() {\n\tif x {\n\t\t", "return\n\t}", "\n\treturn\n}\n"),
    "the file": ("", "x = 1\n\ndef f():\n    pass\ny = 2\n", ""),
    "a division": ("def f(x):\n    y = {1: x // 2}\n", "    return {2: x // 3}", "\n\nz = {}\n"),
    "a comment behind the header": ("def f", "(\n    x,\n):  # why\n    return x", "\n\ny\n"),
    "methods": ("class A:\n    def f(self):\n", "\n        x\n\n        y", "\n\n    def g(self):\n"),
    "nothing more": ("def f():\n    return 1\n", "", "\n\ndef g():\n    pass\n"),
    "nothing at all": ("def f():\n", "", "```\nThis function"),
    "the next function": ("def f():\n    return 1\n\n\n", "def g():\n    pass\nx = 1\n", ""),
    "names like the words": ("if x\n", "  y\nend", "\nendless = 1"),
}  # fmt: skip
BETWEEN: dict[str, tuple[str, str, str]] = {
    "body of a function": ("def f(x):\n", "    return x", "\n\ny = f(1)\n"),
    "braces": ("int f() {\n  ", "int x = 1;\n  return x;", "\n}\nint g;\n"),
    "braces on one line": ("if (x) { ", "return {1};", " }\ny();\n"),
    "a header with braces": ("int f(", "int x) {\n  return x;\n}", "\nint h;\n"),
    "arguments": ("f(\n    ", "a,\n    b,", "\n)\ng()\n"),
    "words that end": ("def f\n  ", "x", "\nend\nf\n"),
}


def ended(before: str, pieces: list[str], *, is_last: bool) -> tuple[str, bool]:
    """What is let through, and whether the end was found."""
    block, out = BlockEnd(before, is_last=is_last), ""
    for piece in pieces:
        text, is_end = block.feed(piece)
        out += text
        if is_end:
            assert block.feed("more") == ("", True) and block.flush() == ("", True)
            return out, True
    text, is_end = block.flush()
    return out + text, is_end


@pytest.mark.parametrize(("before", "block", "after"), LAST.values(), ids=LAST)
def test_ends_with_what_closes_it(before: str, block: str, after: str) -> None:
    wanted = (block, bool(after))
    assert ended(before, [block + after], is_last=True) == wanted
    assert ended(before, list(block + after), is_last=True) == wanted


@pytest.mark.parametrize(("before", "block", "after"), BETWEEN.values(), ids=BETWEEN)
def test_ends_before_what_is_there_already(before: str, block: str, after: str) -> None:
    assert ended(before, [block + after], is_last=False) == (block, True)
    assert ended(before, list(block + after), is_last=False) == (block, True)


def test_a_text_that_ends_first_is_whole() -> None:
    for text in ("    return 1", "    return 1\n", "    return 1  \n\n  ", "", "\n \n"):
        assert ended("def f():\n", [text], is_last=True) == (text, False)


def test_text_comes_as_soon_as_it_is_known() -> None:
    block = BlockEnd("def f():\n", is_last=True)
    assert block.feed("    return") == ("    return", False)
    assert block.feed(" 1") == (" 1", False)
    assert block.feed("\n\n") == ("", False), "which belong to the answer only if more does"
    assert block.feed("    #") == ("\n\n    #", False)
    assert block.feed("\n\nx") == ("", True), "without waiting for the end of the line"


def test_functions_of_this_package() -> None:
    """From behind the name of each, and from its body's first line. Stubs on one line open no block."""
    files = sorted(Path(kamado.__file__).parent.glob("*.py"))
    found = [case for file in files for case in functions(file.read_text(encoding="utf-8"))]
    assert len(found) > 500
    for before, rest, block in found:
        assert ended(before, [rest], is_last=False)[0].rstrip() == block.rstrip(), (before[-80:], block[:80])


def functions(source: str) -> Iterator[tuple[str, str, str]]:
    """The text before a cursor, the text behind it, and what of that is the function."""
    starts = [0, *(each.end() for each in re.finditer("\n", source))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno != node.lineno:
            end = starts[node.end_lineno or 0] - 1
            for cut in (
                source.index(node.name, starts[node.lineno - 1]) + len(node.name),
                starts[node.body[0].lineno - 1],
            ):
                yield source[:cut], source[cut:], source[cut:end]


def test_functions_of_the_kernels() -> None:
    for file in sorted(Path(kernels.__file__).parent.glob("source/*.[ch]")):
        source = file.read_text(encoding="utf-8")
        for found in re.finditer(r"^\w[^\n;#]*\) \{\n(.*?)^\}", source, flags=re.DOTALL | re.MULTILINE):
            cut = found.start(1)
            assert ended(source[:cut], [source[cut:]], is_last=True) == (source[cut : found.end()], True)


code = st.lists(
    st.sampled_from(
        [*"\n\n\t{}()[]x:;,\"'`\\", "    ", " = 1", "end", "en", "do", "if y:", '"""', "'''", "/*", "*/", "//", "# "]
    ),
    max_size=30,
).map("".join)


@given(before=code, text=code, is_last=st.booleans(), data=st.data())
def test_cuts_do_not_matter(before: str, text: str, is_last: bool, data: st.DataObject) -> None:
    whole, is_end = ended(before, [text], is_last=is_last)
    assert text.startswith(whole) and (is_end or whole == text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found, is_found = ended(before, pieces, is_last=is_last)
    assert found == whole and is_found == is_end
    assert ended(before, list(text), is_last=is_last) == (whole, is_end)


@given(before=code, text=code, more=code, is_last=st.booleans())
@example(before="{", text="(\n{){", more="\n", is_last=False)
def test_what_was_let_through_stays(before: str, text: str, more: str, is_last: bool) -> None:
    block = BlockEnd(before, is_last=is_last)
    early, _ = block.feed(text)
    whole, _ = ended(before, [text + more], is_last=is_last)
    assert whole.startswith(early)
