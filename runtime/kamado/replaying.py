"""An output made again from the recipe in its file, and compared with it.

The recipe may be a stranger's: it chooses the model and the options, and nothing else. No input file is opened because
a recipe names it, and no code of a checkpoint is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from .api import Model, Runtime
from .checkpoint.parts import SEVERAL, Parts
from .checkpoint.reference import PathReference, must_be_path, parse_reference
from .errors import InvalidRequest, KamadoError, ModelNotFound
from .families import find
from .files import write_new
from .media.compare import Comparison, compare_outputs, compare_pictures, keeps_pixels
from .media.inputs import INPUTS, described_media, open_input
from .media.opening import check_target
from .media.reading import keeps_output, kind_of_file, open_output, read_document
from .media.recipe import check_recorded, differences, recipe_loading, recipe_request, rounding_levels
from .media.recipes import read_recipe
from .media.saving import check_libraries, save_output, suffixes_of_kind
from .options import Options
from .outputs import Output, Picture
from .picture_requests import ALIASES, MAX_ADAPTERS
from .results import Result

_OTHERWISE = ("n", "deadline_s", "preview_every")
"""Options that say nothing of what one output is."""
_DOCUMENTS = ("transcript", "embedding", "scores")
"""Kinds whose files are read as documents."""
_MEDIA_INPUTS = ("audio", "video")
"""Inputs beside those of pictures."""
_FLAGS = {name: f"--{name}" for name in ("image", "mask", "control", "audio", "video")}
_FLAGS["ip_adapter_image"] = "--adapter-image"
_WORDS = {"image": "a picture", "audio": "a sound", "video": "a video", "mesh": "a mesh", "score": "a score"}
_WORDS["embedding"] = "a file of vectors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """An output that was made again."""

    result: Result = field(repr=False)
    path: Path
    """Where it was written."""
    comparison: Comparison
    """With the file that the recipe came from."""
    differences: tuple[str, ...]
    """What is not as it was then, as sentences: model files, versions, device, precision."""
    rounding: int = 0
    """How far, of 255, a value may be off because one of the two pictures shared forwards with others. 0: both were
    made alone, so they should be equal."""

    @property
    def equal(self) -> bool | None:
        """Whether every value is as it was; None where the file's format cannot tell."""
        return self.comparison.equal

    @property
    def as_expected(self) -> bool:
        """False: the pixels differ by more than `rounding`, although nothing that the recipe knows of is different."""
        return self.equal is not False or self.comparison.within(self.rounding) or bool(self.differences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayable:
    """A file that can be made again."""

    path: Path
    recipe: Mapping[str, Any] = field(repr=False)
    reference: str
    """Of the model."""
    options: Mapping[str, Any]
    """Of the request, input files among them."""
    loading: Mapping[str, Any]
    """dtype, quant, components and base, as far as the recipe says."""
    kind: str
    """What is in the file: see `kind_of_file`."""
    _original: Any = field(repr=False)
    """The output in the file, or what a document says."""
    _chosen: Sequence[str]
    """The options that the recipe chose."""
    _target: Path
    _is_named: bool
    """Whether the target's name was given, and may be that of a file."""
    _model_is_named: bool
    """Whether the model is not that of the recipe."""

    @contextmanager
    def explained(self) -> Iterator[None]:
        """While the model is looked for: that it is not there is said with what can be done about it."""
        try:
            yield
        except ModelNotFound as error:
            if self._model_is_named:
                raise
            advice = f"{self.path} was made with it; name it as it is called here (--model)"
            raise type(error)(f"{error}. {advice}") from error

    def check_makes(self, makes: Sequence[str], takes: Options | None = None) -> None:
        """Raise InvalidRequest unless the model is one that makes such outputs, or if the recipe, which may not, names
        files. `takes`: what the model can be asked, where it says so."""
        fitting = _DOCUMENTS if self.kind == "document" else (self.kind,)
        if not any(kind in makes for kind in fitting):
            word = _WORDS.get(self.kind, "a document")
            raise InvalidRequest(f"{self.path} is {word}, and {self.reference} makes {' and '.join(makes)}")
        for name in self._chosen:
            if takes is not None and takes.names_file(name, self.options[name]):
                raise InvalidRequest(f"the recipe in {self.path} has an option {name!r:.80}, which no recipe may have")

    def request(self, takes: Options | None = None) -> dict[str, Any]:
        """The options for a model; without the number of answers where it makes one only. `takes`: see
        `check_makes`."""
        has_n = takes is None or takes.takes_n
        return {name: value for name, value in self.options.items() if has_n or name != "n"}

    def finish(self, result: Result) -> Replay:
        """Write what was made, compare it. Raises InvalidRequest if it cannot be written, OSError if the disk fails."""
        output: Output = Picture(image=result.images[0]) if result.images else result.outputs[0]
        target, recipe = self._target, result.recipe_of(0)
        if self._is_named:
            save_output(output, target, recipe)
        else:
            target = write_new(target, lambda file: save_output(output, file, recipe))
        return Replay(
            result=result,
            path=target,
            comparison=self._compared(output, target),
            differences=tuple(differences(self.recipe, result.recipe)),
            rounding=rounding_levels(self.recipe, batched=any(result.batched)),
        )

    def _compared(self, output: Output, target: Path) -> Comparison:
        """Pictures as they were made; others as the new file has them, which is written as the old one was. Of files
        that lose detail only equal ones tell something."""
        if isinstance(output, Picture):
            is_exact = keeps_pixels(self.path)
            return compare_pictures(self._original.image, output.image) if is_exact else Comparison(equal=None)
        tells = keeps_output(self.path, self.kind) and keeps_output(target, self.kind)
        if not tells and self.path.suffix.lower() != target.suffix.lower():
            return Comparison(equal=None)
        found = compare_outputs(self._original, _opened(target, self.kind))
        return found if tells or found.equal else dataclasses.replace(found, equal=None)


def replay(
    path: str | Path,
    out: str | Path | None = None,
    *,
    runtime: Runtime | None = None,
    model: str | Path | None = None,
    dtype: str | None = None,
    components: Parts | None = None,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    offline: bool = False,
    **inputs: Any,
) -> Replay:
    """Make the output in the file `path` (a picture, a sound, a video, ...) again from the recipe in it, write it, and
    compare it with the file.

    `out`: where to; by default a new file `name-replay.png` beside it. `runtime`: where to load the model; by default
    one on the default device, for this call. `model`: the model, if it is not found under the name in the recipe.
    `components`, `base`: likewise, or others than those that it was made with. `adapters`: where they are, in the order
    of the recipe. `dtype`: if it is to be another one. `inputs`: `image`, `mask`, `audio`, `video`, ..., which the
    recipe knows by their hashes; a list of several.

    A recipe has the names of local files and folders, but not where they are: they are looked for in the current folder
    and in that of the picture.

    Raises InvalidRequest (no recipe, an input that is missing or another one, a path that cannot be written),
    ModelNotFound for files that are not there, and what `Runtime.load` and `Model.generate` raise.
    """
    found = replayable(path, out, model=model, components=components, base=base, adapters=adapters, inputs=inputs)
    loading = {**found.loading, "dtype": dtype or found.loading.get("dtype", "auto"), "offline": offline}
    if runtime is None:
        with Runtime() as own:
            return _made_again(found, own, loading)
    return _made_again(found, runtime, loading)


def replayable(
    path: str | Path,
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    components: Parts | None = None,
    base: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    inputs: Mapping[str, Any] | None = None,
) -> Replayable:
    """What `replay` would do; see there. Nothing is loaded yet. Raises InvalidRequest and ModelNotFound."""
    source = Path(path)
    recipe = read_recipe(source)
    check_recorded(recipe, source)
    kind = kind_of_file(source)
    original = _opened(source, kind)
    target = _checked_target(source, None if out is None else Path(out), kind)
    if model is not None:
        facts = recipe.get("model")
        now = {"reference": str(model), "revision": None}
        recipe = {**recipe, "model": {**(facts if isinstance(facts, Mapping) else {}), **now}}
    reference, options = recipe_request(recipe)
    loading = recipe_loading(recipe)
    if uses := _adapters(loading.pop("adapters", []), adapters, source):
        options["adapters"] = uses
    if base is not None:
        loading["base"] = base
    elif "base" in loading:
        loading["base"] = _located(loading["base"], "the base", "--base", source)
    chosen = _plain(options, recipe, source)
    loading |= {"components": parts} if (parts := _components(loading, components or {}, source)) else {}
    return Replayable(
        path=source,
        recipe=recipe,
        reference=reference if model is not None else _located(reference, "the model", "--model", source),
        options={
            **chosen,
            **_opened_inputs(recipe, inputs or {}, source),
            **({"n": 1} if kind == "image" else {}),
        },
        loading=loading,
        kind=kind,
        _original=original,
        _chosen=tuple(chosen),
        _target=target,
        _is_named=out is not None,
        _model_is_named=model is not None,
    )


def _made_again(found: Replayable, runtime: Runtime, loading: dict[str, Any]) -> Replay:
    with found.explained():
        checkpoint = runtime.inspect(found.reference, offline=loading["offline"])
    family = find(checkpoint)
    takes = family.options(checkpoint)
    found.check_makes(family.makes(checkpoint), takes)
    request = found.request(takes)
    loaded: Model = runtime.load(found.reference, request=request, **loading)
    try:
        return found.finish(loaded.generate(**request))
    finally:
        loaded.unload()


def _components(loading: Mapping[str, Any], given: Parts, source: Path) -> dict[str, Any]:
    """Those of the recipe, and what was given in their place."""
    found: dict[str, Any] = {
        name: reference and _located(reference, f"the {name}", f"--component {name}=PATH", source)
        for name, reference in loading.get("components", {}).items()
        if name not in given and not (SEVERAL in given and name.startswith(f"{SEVERAL}_"))
    }
    return {**found, **given}


def _adapters(then: Sequence[Mapping[str, Any]], given: Sequence[str | Path], source: Path) -> list[dict[str, Any]]:
    """Those of the recipe, with their weights, where they are."""
    if given and len(given) != len(then):
        names = ", ".join(f"{adapter['reference']!r:.80}" for adapter in then[:MAX_ADAPTERS]) or "none"
        raise InvalidRequest(
            f"{source} was made with {len(then)} adapters ({names:.300}), not {len(given)}; give each, in this order"
        )
    if given:
        return [{**adapter, "reference": str(path)} for adapter, path in zip(then, given, strict=True)]
    return [
        {**adapter, "reference": _located(adapter["reference"], "the adapter", "--adapter", source)} for adapter in then
    ]


def _located(reference: str, what: str, option: str, source: Path) -> str:
    """A reference of the recipe. A path must be there: as it stands, or as a name in the folder of the picture. Raises
    ModelNotFound."""
    if not must_be_path(reference):
        return reference
    name = PurePath(reference).name
    beside = [str(source.absolute().parent / name)] if reference in (name, f"./{name}") else []
    for place in (reference, *beside):
        if _is_here(place) or _is_here(place.rpartition("#")[0]):
            return place
    raise ModelNotFound(
        f"{source} was made with {what} {reference!r:.120}, which is not here; "
        f"say where it is ({option}), or go to the folder where it lies"
    )


def _is_here(reference: str) -> bool:
    try:
        return isinstance(parse_reference(reference), PathReference)
    except KamadoError:
        return False


def _opened(path: Path, kind: str) -> Any:
    return read_document(path) if kind == "document" else open_output(path, kind)


def _plain(options: Mapping[str, Any], recipe: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The options that a recipe may choose: no files."""
    files = _needed(recipe)
    for name in options:
        own = ALIASES.get(name, name)
        if not name.isidentifier() or name == "self" or own in INPUTS or own in _MEDIA_INPUTS or own in files:
            raise InvalidRequest(f"the recipe in {source} has an option {name!r:.80}, which no recipe may have")
    return {name: value for name, value in options.items() if name not in _OTHERWISE}


def _needed(recipe: Mapping[str, Any]) -> Mapping[Any, Any]:
    """What the recipe says of its inputs, by name."""
    facts = recipe.get("inputs")
    return facts if isinstance(facts, Mapping) else {}


def _opened_inputs(recipe: Mapping[str, Any], given: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The input files, which must be those of the recipe."""
    needed = _needed(recipe)
    if unknown := [name for name in needed if not isinstance(name, str) or not name.isidentifier() or name == "self"]:
        raise InvalidRequest(f"{source} was made from an input {unknown[0]!r:.80}, which this version cannot take")
    if unknown := [name for name in given if name not in (*INPUTS, *_MEDIA_INPUTS, *needed)]:
        there = ", ".join(needed) or "none"
        raise InvalidRequest(f"{unknown[0]!r:.80} is no input that {source} was made from; its inputs: {there}")
    opened: dict[str, Any] = {}
    for name in dict.fromkeys([*INPUTS, *needed, *given]):
        what = "input picture" if name in INPUTS else "input"
        value = given.get(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            if name in needed:
                raise InvalidRequest(f"{source} was made from an {what} ({name}); give it ({_flag(name)})")
            continue
        if name not in needed:
            raise InvalidRequest(f"{source} was made without an {what} ({name}); leave it out")
        files = [open_input(name, item) for item in _listed(value)]
        opened[name] = files if isinstance(needed[name], list) else files[0]
        if described_media({name: files})[name] != _facts(needed[name]):
            raise InvalidRequest(f"the {what} ({name}) is not the one that {source} was made from")
    return opened


def _listed(value: Any) -> Sequence[Any]:
    """Several inputs of one name; (samples, sample rate) and (frames, fps) are one."""
    is_one = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float))
    return value if isinstance(value, (list, tuple)) and not is_one else [value]


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--input {name}=FILE")


def _facts(needed: Any) -> list[Any]:
    """What a recipe says of the files of one input, in the form of `described_media`."""
    items = needed if isinstance(needed, list) else [needed]
    return [{"sha256": item.get("sha256")} if isinstance(item, Mapping) else None for item in items]


def _checked_target(source: Path, out: Path | None, kind: str) -> Path:
    suffixes = [suffix for each in (_DOCUMENTS if kind == "document" else (kind,)) for suffix in suffixes_of_kind(each)]
    word = _WORDS.get(kind, "a document").removeprefix("a ")
    if out is None:
        suffix = source.suffix if source.suffix.lower() in suffixes else suffixes[0]
        out = source.with_name(f"{source.stem}-replay{suffix}")
    elif out.exists() and out.samefile(source):
        raise InvalidRequest(f"{out} is the file that the new {word} is compared with; name another one")
    check_libraries(kind, check_target(out, suffixes, word))
    return out
