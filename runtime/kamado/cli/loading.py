"""From options to a runtime and a model, with a bar while weights are read."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.types import Progress
from ..errors import KamadoError
from ..options import Options
from ..units import format_bytes, format_seconds
from .common import LoadOptions
from .output import Output

if TYPE_CHECKING:
    from ..api import Model, Runtime


def open_runtime(load: LoadOptions) -> Runtime:
    """The runtime that the options describe. It is a context manager; nothing heavy starts here."""
    from ..api import Runtime

    return Runtime(device=load.device, memory=load.memory, deterministic=load.deterministic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a model can be asked, by its headers."""

    makes: Sequence[str]
    """`text`, `image`, `audio`, ..."""
    takes: Options | None = None
    """See `Family.options`."""


def abilities(reference: str, load: LoadOptions, out: Output) -> Abilities:
    """Pulls the model, under a bar, if it is not here.

    Raises ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
    from ..checkpoint.inspect import inspect
    from ..families import find

    with pull_bar(out, f"pull {reference}") as progress:
        checkpoint = inspect(reference, offline=load.offline, progress=progress, detail=out.detail)
    family = find(checkpoint)
    return Abilities(makes=family.makes(checkpoint), takes=family.options(checkpoint))


def what_it_makes(reference: str, load: LoadOptions, out: Output) -> Sequence[str]:
    """The same, of what it makes alone."""
    return abilities(reference, load, out).makes


def fitted(reference: str, load: LoadOptions) -> LoadOptions:
    """`load` without what only a preset says and the model cannot use."""
    if not load.preset:
        return load
    from ..checkpoint.inspect import inspect
    from ..families import find, unused_settings

    with suppress(KamadoError):  # which is for loading to say
        unused = unused_settings(find(inspect(reference, offline=load.offline)))
        usual: dict[str, Any] = {each.name: each.default for each in fields(LoadOptions)}
        return replace(load, **{name: usual[name] for name in load.preset.intersection(unused)})
    return load


def check_lanes(reference: str, load: LoadOptions) -> None:
    """Raise InvalidRequest for a way of running that the model does not have, where nothing is loaded to say so."""
    settings = load.of_lanes()
    if settings["speculation"] == settings["compile"] == "auto":
        return
    from ..checkpoint.inspect import inspect
    from ..families import check_used, find

    checkpoint = inspect(reference, offline=load.offline)
    check_used(checkpoint, find(checkpoint), settings)


def check_requests(reference: str, requests: Iterable[Mapping[str, Any]], load: LoadOptions, out: Output) -> None:
    """Raise what is wrong with requests to the model, before anything is loaded or written; see `Runtime.check`."""
    with (
        open_runtime(load) as runtime,
        quiet_libraries(out),
        out.progress(None, f"checking {Path(reference).name}"),
    ):
        runtime.check(reference, requests, **fitted(reference, load).of_model())


@contextmanager
def pull_bar(out: Output, label: str) -> Iterator[Progress]:
    """A bar that appears with the first report: before that, nobody knows whether there is anything to wait for."""
    with ExitStack() as stack:
        update: Any = None

        def progress(done: int, total: int) -> None:
            nonlocal update
            if update is None:
                update = stack.enter_context(out.progress(total or None, label))
            update(done, total or None)

        yield progress


@contextmanager
def loaded_model(
    reference: str, load: LoadOptions, out: Output, request: Mapping[str, Any] | None = None
) -> Iterator[tuple[Runtime, Model]]:
    """The model in memory, while the body runs. `request`: see `Runtime.load`, which raises all that this raises."""
    if load.draft is not None:
        what_it_makes(load.draft, load, out)  # pulls it
    load = fitted(reference, load)
    with open_runtime(load) as runtime:
        started = time.monotonic()
        with quiet_libraries(out), out.progress(None, f"loading {Path(reference).name}") as update:
            model = runtime.load(reference, **load.of_model(), **load.of_lanes(), request=request, progress=update)
        plan = model.plan
        if plan.outside_note:
            out.note(plan.outside_note)
        out.detail(
            f"{reference}: {plan.architecture} on {plan.device}, {plan.dtype}, "
            f"{format_bytes(plan.weight_bytes)} of weights, loaded in {format_seconds(time.monotonic() - started)}"
            + (f"; {plan.draft.reference} guesses for it" if plan.draft is not None else "")
        )
        with quiet_libraries(out):
            yield runtime, model


@contextmanager
def quiet_libraries(out: Output) -> Iterator[None]:
    """Libraries' warnings are for programmers, and shown with -v; what a person should know of is in the notes of a
    result."""
    if out.verbose:
        yield
        return
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # what python -W asks for is wanted
                warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
