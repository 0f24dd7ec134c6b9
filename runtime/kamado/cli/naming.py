"""Errors by the names that were typed: the library says `steps`, the command line `--steps`.

The library's sentences have an option's name without an article, in few places: at the start of a clause, behind
"give", "leave", "takes", before "=", alone in brackets. There it is found; elsewhere the same word is English.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import click

from ..picture_requests import ALIASES

_OTHER = {"context_files": "files", "raw": "chat"}
"""Parameters of commands that the library knows by another name."""
_GENERAL = ("--option", "--axis")
"""Flags that come with `NAME=VALUE`, any number of times."""
_BEFORE = r"(?:^|(?<!\.toml): |; |\b(?:[Gg]ive|[Ll]eave|[Ll]eave out|takes|takes? no|and no|[Gg]ive it as) )"
_VERBS = (
    *("must", "cannot", "can", "is", "are", "has", "have", "holds?", "needs?", "says?", "names?", "would", "was"),
    *("makes?", "goes", "does", "changes", "sounds", "both"),
)
_AFTER = rf"(?=$|[:;=,.\[]| [-'\"\d]| (?:{'|'.join((*_VERBS, 'beside', 'with', 'out', 'too', 'and', 'or', 'to'))})\b)"
_ALL = re.compile(r"(?<=\bit takes )(?:\w+, )*\w+$")


def flags_of(ctx: click.Context) -> dict[str, str]:
    """What the library's options are called in this command, by their names in the library."""
    flags: dict[str, str] = {}
    general: dict[str, str] = {}
    for parameter in ctx.command.get_params(ctx):
        name, flag = str(parameter.name), parameter.opts[0]
        if flag in _GENERAL:
            general |= _named(flag, ctx.params.get(name) or ())
        elif isinstance(parameter, click.Option) and getattr(parameter, "section", None) is not None:
            flags[_OTHER.get(name, name)] = flag
        elif name == "prompt":
            flags[name] = name.upper()
    return {**flags, **general}


def _named(flag: str, items: Sequence[str]) -> dict[str, str]:
    typed = [name.strip() for name, separator, _ in (item.partition("=") for item in items) if separator]
    names = [name.replace("-", "_") for name in typed]
    return {ALIASES.get(name, name): f"{flag} {each}" for name, each in zip(names, typed, strict=True) if name}


def by_flags(text: str, flags: Mapping[str, str]) -> str:
    """An error's text with options as they are typed; `flags`: by the library's names. What begins with a flag comes
    from the command line itself, and stays."""
    if not flags or text.startswith("-"):
        return text
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    word = (
        rf"(?<![\w./'\"-])(?<!\b[Tt]he )(?<!\ba )(?<!--axis )(?<!--option )(?<!--component )(?:{names})(?![\w/-]|\.\w)"
    )

    def shown(match: re.Match[str]) -> str:
        return re.sub(word, lambda found: flags[found[0]], match[0])

    def shown_all(match: re.Match[str]) -> str:
        return ", ".join(flags.get(name, f"--option {name}") for name in match[0].split(", "))

    for name, flag in flags.items():  # where a sentence has both: "leave kv_dtype (--kv-dtype) out"
        text = re.sub(rf"(?<![\w-]){re.escape(name)}( too)? \({re.escape(flag)}\)", rf"{flag}\1", text)
    text = _ALL.sub(shown_all, text)
    text = re.sub(rf"{_BEFORE}{word}(?:(?:, | and | or ){word})*{_AFTER}", shown, text)
    text = re.sub(rf"(?<=\(){word}(?=\))|{word}(?==)", shown, text)
    if text.startswith("give "):
        text = re.sub(rf"{word}(?: or {word})*$", shown, text)
    return re.sub(word, lambda found: flags[found[0]] if "_" in found[0] else found[0], text)
