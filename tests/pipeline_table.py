"""Which pipeline classes the installed diffusers has, what they make, and how Kamado runs them; found in their source.

`scripts/pipelines` writes what this finds; `tests/parity/test_pipeline_table.py` compares.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kamado_models.diffusion.table import RUN

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "models" / "kamado_models" / "diffusion" / "pipelines.toml"
TAKES = TABLE.with_name("takes.toml")
PAGE = ROOT / "docs" / "pipelines.md"
_CHANGES_SHARED_MODELS = re.compile(
    r"set_attn_processor|set_pag_applied_layers|_set_pag_attn|attn_processors\b|register_forward_hook|enable_freeu"
)
_NAMED = {"ShapE": "mesh", "TextToVideoZero": "video"}
"""What some make whose output says nothing of it, by the start of their names."""
_MAKES = {
    # field of the output: what it is
    "frames": "video",
    "video": "video",
    "audios": "audio",
    "texts": "text",
    "prediction": "map",
    "rgb": "map",
    "images": "image",
    "image": "image",
}
_KINDS = {"image": "picture", "video": "video", "audio": "sound", "mesh": "mesh", "map": "map", "text": "text"}
"""What they are called on the page."""
_WHY = {
    "mesh": "makes bodies in space",
    "text": "makes text",
    "map": "makes depth, normals or other maps",
    "embedding": "makes embeddings for another pipeline",
    "unknown": "gives something that Kamado has no kind for",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One class."""

    name: str
    makes: str
    """A kind of _MAKES or _NAMED, `embedding`, `unknown` or `nothing`."""
    how: str
    """`joined`, `alone`, or what is missing."""


def rows() -> list[Row]:
    """Every pipeline class, in order."""
    import diffusers

    found = []
    for name in sorted(dir(diffusers)):
        kind = getattr(diffusers, name, None) if "Pipeline" in name else None
        if isinstance(kind, type) and kind is not diffusers.DiffusionPipeline:
            row = _row(name, kind)
            if row is not None:
                found.append(row)
    return found


def _row(name: str, kind: Any) -> Row | None:
    import diffusers

    if ".dummy" in kind.__module__:
        return Row(name, "nothing", f"needs {', '.join(kind._backends)}")
    if not issubclass(kind, diffusers.DiffusionPipeline) or name.endswith("PipelineOutput"):
        return None
    if not any("__call__" in vars(parent) for parent in kind.__mro__):
        return Row(name, "nothing", "has no call of its own")
    makes = _makes(kind, inspect.getsource(kind.__call__))
    alone = _CHANGES_SHARED_MODELS.search(inspect.getsource(kind)) is not None
    return Row(name, makes, "alone" if alone else "joined")


def _makes(kind: Any, source: str) -> str:
    for start, made in _NAMED.items():
        if kind.__name__.startswith(start):
            return made
    module = inspect.getmodule(kind)
    outputs = re.findall(r"return\s+(\w*Output\w*)\(", source)
    fields = {field for name in outputs for field in getattr(getattr(module, name, None), "__dataclass_fields__", {})}
    if not outputs and "Combined" in kind.__name__:
        return "image"  # what the last of their pipelines returns
    for field, made in _MAKES.items():
        if field in fields:
            return made
    return "embedding" if any("embed" in field for field in fields) else "unknown"


def tested() -> set[str]:
    """Classes that the tests compare with diffusers."""
    import tiny_pipelines
    from tiny_pipelines import solids

    specs = (*tiny_pipelines.PIPELINES.values(), *tiny_pipelines.MOVING.values())
    return (
        {spec.class_name for spec in specs}
        | set(solids.CLASSES)
        | {kind for spec in specs for sibling, kind in spec.siblings.items() if "control" not in sibling}
    )


def table(found: list[Row]) -> str:
    """pipelines.toml."""
    lines = [
        "# What each pipeline class of diffusers makes, and whether its calls may share forwards with other requests'.",
        "# Written by scripts/pipelines.",
        "",
    ]
    groups: dict[str, list[str]] = {}
    for row in found:
        if row.makes != "nothing":
            groups.setdefault(row.makes if row.how == "joined" else f"{row.makes}-alone", []).append(row.name)
    for group in sorted(groups):
        lines += [f'"{group}" = [', *(f'    "{name}",' for name in groups[group]), "]"]
    return "\n".join(lines) + "\n"


def takes(found: list[Row]) -> str:
    """takes.toml."""
    import diffusers

    from kamado_models.diffusion.control import without_control
    from kamado_models.diffusion.pipelines import taken_arguments
    from kamado_models.diffusion.refusals import options_of

    lines = ["# What models of each pipeline class of diffusers can be asked. Written by scripts/pipelines.", ""]
    for row in found:
        if row.makes in RUN:
            kind = without_control(getattr(diffusers, row.name))
            lines.append(f'{row.name} = "{", ".join(sorted(options_of(kind, taken_arguments(kind))))}"')
    return "\n".join(lines) + "\n"


def page(found: list[Row], version: str) -> str:
    """pipelines.md."""
    known = tested()
    lines = [
        "# Pipelines",
        "",
        f"Every pipeline class of diffusers {version}, and what becomes of it in this version of Kamado.",
        "Written by `scripts/pipelines`; a test holds it to what is installed.",
        "",
        "- **batched, tested**: steps of all requests share forwards; the tests compare what it makes with diffusers'.",
        "- **batched**: the same way. Which of its models' calls can be joined is found out when the first batch comes",
        "  up, by comparing with separate calls.",
        "- **one at a time**: it changes its models while it runs, so an answer is made from beginning to end before",
        "  the next request's turn.",
        "- **not yet**: and why.",
        "",
        "| pipeline | makes | how |",
        "|---|---|---|",
    ]
    lines += [f"| {row.name} | {_KINDS.get(row.makes, '')} | {_how(row, known)} |" for row in found]
    return "\n".join(lines) + "\n"


def _how(row: Row, known: set[str]) -> str:
    if row.makes == "nothing":
        return f"not yet: {row.how}"
    if row.makes not in RUN:
        return f"not yet: {_WHY[row.makes]}"
    if row.how == "alone":
        return "one at a time"
    return "batched, tested" if row.name in known else "batched"


def main() -> None:
    """Write the files."""
    import diffusers

    found = rows()
    TABLE.write_text(table(found), encoding="utf-8")
    TAKES.write_text(takes(found), encoding="utf-8")
    PAGE.write_text(page(found, diffusers.__version__), encoding="utf-8")


if __name__ == "__main__":
    main()
