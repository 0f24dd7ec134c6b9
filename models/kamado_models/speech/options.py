"""What models that speak can be asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kamado.options import Check, Medium, Options, number, text, whole

PAUSE_S = 0.2
"""Of silence between two sentences, unless told otherwise."""

_PROMPT: Mapping[str, Check] = {"prompt": text(longest=100_000), "pause": number(0.0, 60.0)}
SPEED: Mapping[str, Check] = {"speed": number(0.1, 10.0)}
"""How fast is spoken: 2 is twice as fast as usual."""
DRAWS: Mapping[str, Check] = {
    "temperature": number(0.0, 10.0),
    "top_k": whole(1, 1 << 20),
    "top_p": number(0.0, 1.0, above=True),
    "max_tokens": whole(1, 1 << 20),
}
"""Of models that draw one token after the other; temperature 0 takes the likeliest one. `max_tokens`: of one piece."""

ALIASES: Mapping[str, str] = {
    "text": "prompt",
    "input": "prompt",
    "speaker": "voice",
    "speaking_rate": "speed",
    "max_new_tokens": "max_tokens",
}


def speech_options(
    what: str,
    *more: Mapping[str, Check],
    inputs: Mapping[str, Medium] | None = None,
    files: Mapping[str, tuple[str, ...]] | None = None,
    needs: Collection[str] = ("prompt",),
) -> Options:
    """The options of a kind: a prompt, the pause between sentences (s), `n`, and `more`. `inputs`, `files`: see
    Options."""
    checks: dict[str, Check] = dict(_PROMPT)
    for each in more:
        checks |= each
    aliases = {other: name for other, name in ALIASES.items() if name in checks and other not in checks}
    return Options(
        what=what,
        checks=checks,
        inputs=inputs or {},
        files=files or {},
        needs=needs,
        takes_n=True,
        aliases=aliases,
    )
