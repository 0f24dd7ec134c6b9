"""docs/models.md: every family, what it does, how that was tested, what requests share, and where open weights are.

`scripts/models` writes it; `tests/parity/test_models_table.py` compares.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pipeline_table
from kamado.families import families
from kamado_models.language import batching
from kamado_models.library.family import LibraryFamily
from kamado_models.library.kinds import About

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
WEIGHTS = ROOT / "docs" / "open-weights.toml"


_HEAD = """# Models

What runs, how that was tested, and where to get weights. Written by `scripts/models`; a test holds it to the code.
`kamado show MODEL` says the same of a checkpoint of yours, from its headers: architecture, tasks, options, batching.

*Compared* means: the tests build a small random checkpoint of that architecture, and what Kamado makes of it, alone and
while other requests run, is what the library's own call makes of it: texts token for token, all else within 1e-4.
With real weights the tests run SmolLM2-135M, all-MiniLM-L6-v2, Real-ESRGAN, and the picture model that comes along.
"""
_TEXTS = """## Text: the family `language`

Causal and encoder-decoder models of transformers (`text-generation`, `text2text-generation`), from folders and GGUF
files. Others than these are tried when they are loaded. Models that read pictures, sounds and videos as well
(`image-text-to-text`, `audio-text-to-text`, `video-text-to-text`, `any-to-any`): [multimodal.md](multimodal.md) has the
list. Code is filled in with the tokens that a model has for that: [python.md](python.md#code).

| how requests share forwards | compared with transformers' `generate` |
|---|---|"""
_PICTURES = """
## Pictures, videos, sounds by diffusion: the family `diffusion`

{number} pipelines of diffusers, by their own code, with steps of all requests batched: [pipelines.md](pipelines.md)
lists them all. Compared with diffusers:
"""
_KINDS = """
## Everything else

| family | kind | tasks | architectures | compared with | batched |
|---|---|---|---|---|---|"""
_WEIGHTS = """
## Where to get open weights

For each kind of system that people know. `kamado pull org/name` fetches one. Sizes are parameters, licences as the
model's page named them when this list was written: that page counts. The tests have no hub:
of these very weights they ran those that the catalog has in a package, and of the others checkpoints of the same
layouts."""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_texts(), *_pictures(), *_kinds(), *_weights()]) + "\n"


def _texts() -> Iterator[str]:
    yield _TEXTS
    for how, types in batching._TYPES.items():
        yield f"| {how} | {', '.join(f'`{name}`' for name in types.split())} |"


def _pictures() -> Iterator[str]:
    made = [row for row in pipeline_table.rows() if row.makes != "nothing"]
    yield _PICTURES.format(number=len(made))
    yield ", ".join(f"`{name}`" for name in sorted(pipeline_table.tested())) + "."


def _kinds() -> Iterator[str]:
    yield _KINDS
    for family in families():
        if isinstance(family, LibraryFamily):
            for kind in family.kinds:
                about = kind.about
                tasks, architectures = (", ".join(map(form, names)) for form, names in _forms(about))
                cells = (f"`{family.name}`", kind.name, tasks, architectures, about.oracle, about.batching)
                yield f"| {' | '.join(cells)} |"


def _forms(about: About) -> Iterator[tuple[Callable[[str], str], tuple[str, ...]]]:
    yield "`{}`".format, about.tasks
    yield str, about.architectures


def _weights() -> Iterator[str]:
    document: dict[str, Any] = tomllib.loads(WEIGHTS.read_text(encoding="utf-8"))
    yield _WEIGHTS
    for system in document["system"]:
        yield f"\n### {system['title']} (`{system['task']}`)\n\n| model | size | licence | |\n|---|---|---|---|"
        yield from (f"| `{name}` | {size} | {licence} | {note} |" for name, size, licence, note in system["weights"])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
