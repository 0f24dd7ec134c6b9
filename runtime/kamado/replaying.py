"""An output made again from the recipe in its file, and compared with it.

The recipe may be a stranger's: it chooses the model and the options, and nothing else. No input file is opened because
a recipe names it, and no code of a checkpoint is run.
"""

from __future__ import annotations

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
from .media.compare import Comparison, compare_pictures, keeps_pixels
from .media.inputs import INPUTS, described_inputs
from .media.pictures import WRITE_FORMATS, check_picture_path, open_picture, read_recipe, save_picture
from .media.recipe import check_recorded, differences, recipe_loading, recipe_request, rounding_levels
from .picture_requests import ALIASES, MAX_ADAPTERS
from .results import Result

_OTHERWISE = ("n", "deadline_s", "preview_every")
"""Options that say nothing of what one picture shows."""


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
        """Whether every pixel is as it was; None where the file's format cannot tell."""
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
    """Of the request, input pictures among them."""
    loading: Mapping[str, Any]
    """dtype, quant, components and base, as far as the recipe says."""
    _original: Any = field(repr=False)
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

    def check_makes(self, makes: Sequence[str]) -> None:
        """Raise InvalidRequest unless the model is one that makes such outputs."""
        if "image" not in makes:
            raise InvalidRequest(f"{self.path} is a picture, and {self.reference} makes {' and '.join(makes)}")

    def finish(self, result: Result) -> Replay:
        """Write what was made, compare it. Raises InvalidRequest if it cannot be written, OSError if the disk fails."""
        image, target, recipe = result.images[0], self._target, result.picture_recipe(0)
        if self._is_named:
            save_picture(image, target, recipe)
        else:
            target = write_new(target, lambda file: save_picture(image, file, recipe))
        is_exact = keeps_pixels(self.path)
        return Replay(
            result=result,
            path=target,
            comparison=compare_pictures(self._original, image) if is_exact else Comparison(equal=None),
            differences=tuple(differences(self.recipe, result.recipe)),
            rounding=rounding_levels(self.recipe, batched=any(result.batched)),
        )


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
    """Make the picture in the file `path` again from the recipe in it, write it, and compare it with the file.

    `out`: where to; by default a new file `name-replay.png` beside it. `runtime`: where to load the model; by default
    one on the default device, for this call. `model`: the model, if it is not found under the name in the recipe.
    `components`, `base`: likewise, or others than those that it was made with. `adapters`: where they are, in the order
    of the recipe. `dtype`: if it is to be another one. `inputs`: `image`, `mask`, `control`, `ip_adapter_image`, which
    the recipe knows by their hashes; a list of several.

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
    original = open_picture(source)
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
    loading |= {"components": parts} if (parts := _components(loading, components or {}, source)) else {}
    return Replayable(
        path=source,
        recipe=recipe,
        reference=reference if model is not None else _located(reference, "the model", "--model", source),
        options={**_plain(options, source), **_opened_inputs(recipe, inputs or {}, source), "n": 1},
        loading=loading,
        _original=original,
        _target=_checked_target(source, None if out is None else Path(out)),
        _is_named=out is not None,
        _model_is_named=model is not None,
    )


def _made_again(found: Replayable, runtime: Runtime, loading: dict[str, Any]) -> Replay:
    with found.explained():
        checkpoint = runtime.inspect(found.reference, offline=loading["offline"])
    found.check_makes(find(checkpoint).makes(checkpoint))
    loaded: Model = runtime.load(found.reference, request=found.options, **loading)
    try:
        return found.finish(loaded.generate(**found.options))
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


def _plain(options: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The options that a recipe may choose."""
    for name in options:
        if not name.isidentifier() or name == "self" or ALIASES.get(name, name) in INPUTS:
            raise InvalidRequest(f"the recipe in {source} has an option {name!r:.80}, which no recipe may have")
    return {name: value for name, value in options.items() if name not in _OTHERWISE}


def _opened_inputs(recipe: Mapping[str, Any], given: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The input pictures, which must be those of the recipe."""
    facts = recipe.get("inputs")
    needed: Mapping[Any, Any] = facts if isinstance(facts, Mapping) else {}
    if unknown := [name for name in needed if name not in INPUTS]:
        raise InvalidRequest(f"{source} was made from an input {unknown[0]!r:.80}, which this version cannot take")
    if unknown := [name for name in given if name not in INPUTS]:
        raise InvalidRequest(f"{unknown[0]!r:.80} is no input picture; there are {', '.join(INPUTS)}")
    opened: dict[str, Any] = {}
    for name in INPUTS:
        value = given.get(name)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            if name in needed:
                flag = "adapter-image" if name == "ip_adapter_image" else name
                raise InvalidRequest(f"{source} was made from an input picture ({name}); give it (--{flag})")
            continue
        if name not in needed:
            raise InvalidRequest(f"{source} was made without an input picture ({name}); leave it out")
        pictures = [open_picture(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        opened[name] = pictures if isinstance(needed[name], list) else pictures[0]
        if described_inputs({name: pictures})[name] != _facts(needed[name]):
            raise InvalidRequest(f"the input picture ({name}) is not the one that {source} was made from")
    return opened


def _facts(needed: Any) -> list[Any]:
    """What a recipe says of the pictures of one input, in the form of `described_inputs`."""
    items = needed if isinstance(needed, list) else [needed]
    return [{"sha256": item.get("sha256")} if isinstance(item, Mapping) else None for item in items]


def _checked_target(source: Path, out: Path | None) -> Path:
    if out is None:
        suffix = source.suffix if source.suffix.lower() in WRITE_FORMATS else ".png"
        out = source.with_name(f"{source.stem}-replay{suffix}")
    elif out.exists() and out.samefile(source):
        raise InvalidRequest(f"{out} is the file that the new picture is compared with; name another one")
    check_picture_path(out)
    return out
