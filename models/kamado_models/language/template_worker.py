"""Renders chat templates in a process of its own, which can be killed. Run as a script; imports jinja2 and little else.

Standard input: frames of 4 bytes length (big endian) and JSON `{"template", "variables", "max_chars"}`; standard
output: frames with `{"text"}` or `{"error", "kind"}`, where kind is "template" (it is no template), "refused" (the
template itself raised) or "failed".
"""

from __future__ import annotations

import json
import struct
import sys
from typing import Any, BinaryIO

MEMORY_BYTES = 1 << 30
MAX_FRAME_BYTES = 256 << 20


_RAISED_BY_EXPRESSIONS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class TooLong(Exception):
    """The text grew beyond what was asked for."""


def limit_memory() -> None:
    """A template that multiplies texts gets a MemoryError instead of the machine's memory."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def make_environment() -> Any:
    """The sandbox that chat templates expect: trimmed blocks, loop controls, and a few functions."""
    from datetime import datetime

    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`...`{% endgeneration %}` marks answers for training; here only its content counts."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Names(jinja2.utils.Namespace):
        """`namespace()` that holds no name with an underscore in front."""

        def __init__(self, **values: Any) -> None:
            super().__init__()
            for name, value in values.items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=Names)
    return environment


def render(environment: Any, request: dict[str, Any]) -> dict[str, str]:
    """One answer. Never raises for what a template does."""
    import jinja2

    try:
        template = environment.from_string(request["template"])
    except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        return {"kind": "template", "error": f"{type(error).__name__}: {error}"[:300]}
    parts: list[str] = []
    left = int(request["max_chars"])
    try:
        for part in template.generate(**request["variables"]):
            left -= len(part)
            if left < 0:
                raise TooLong
            parts.append(part)
    except TooLong:
        return {"kind": "failed", "error": f"its text is longer than {request['max_chars']} characters"}
    except MemoryError:
        return {"kind": "failed", "error": "it used up its memory"}
    except jinja2.TemplateError as error:
        return {"kind": "refused" if type(error) is jinja2.TemplateError else "failed", "error": str(error)[:300]}
    except _RAISED_BY_EXPRESSIONS as error:
        return {"kind": "failed", "error": f"{type(error).__name__}: {error}"[:300]}
    return {"text": "".join(parts)}


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Answer until the input ends."""
    environment = make_environment()
    while True:
        head = source.read(4)
        if len(head) < 4:
            return
        size = struct.unpack(">I", head)[0]
        if size > MAX_FRAME_BYTES:
            return
        answer = json.dumps(render(environment, json.loads(source.read(size)))).encode()
        target.write(struct.pack(">I", len(answer)) + answer)
        target.flush()


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    limit_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
