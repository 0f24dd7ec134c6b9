"""Loads a model, measures it, and sets the figures beside what the device can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DoesNotFit, InvalidRequest
from ..families import find
from ..memory.rates import Rates, measure_rates
from .fallback import check_as_asked, kernel_of
from .media import bench_media
from .options import BenchOptions, Row
from .pictures import Prompted, bench_pictures
from .replay import Failed, replay_trace
from .samples import Declared
from .texts import bench_texts
from .trace import Arrival
from .traffic import text_traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..api import Model, Runtime

_DIGITS = 5
_FORMS_OF_SCHEMES = {"int8-dynamic": "int8", "bnb-int8": "int8", "fp8-dynamic": "fp8"}
"""What products are made of; all others are made in the compute precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of it."""

    rows: list[Row]
    failed: list[Failed] = field(default_factory=list)
    """Requests of a trace that came to nothing."""
    notes: tuple[str, ...] = ()


def _nobody(_: str) -> None:
    """Nobody is told."""


def bench(
    runtime: Runtime,
    reference: str,
    options: BenchOptions,
    *,
    load: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = _nobody,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Measured:
    """Load the model (`load`: options of `Runtime.load`) and run the tests; a row for each. Requests run inside
    `around()`, which is entered once the libraries are there.

    Where nothing was measured of the device yet, that is done afterwards, once the model has left. Raises KamadoError
    (exit status 1) if the model is not what was asked for, InvalidRequest for tests it cannot do, and what loading and
    requests raise."""
    with _loaded(runtime, reference, load or {}, report) as (model, shared), around():
        if "text" in model.capabilities:
            held = runtime.stats().get("ledger", {}).get(model.plan.device, {}).get(model.owner, {})
            traffic = text_traffic(model, held)
            found = bench_texts(model, options, traffic, report)
        else:
            found = _bench_others(model, options, report)
        rows = [shared | row | _once(model, shared) for row in found]
        form, notes = _form(model, shared), _notes(model, rows)
    rates, note = _rates(runtime, report)
    rows = [_rounded(_shares(row, rates, form)) for row in rows]
    said = (*notes, note, _beyond(rows))
    return Measured(rows=rows, notes=tuple(note for note in said if note))


def bench_trace(
    runtime: Runtime,
    reference: str,
    arrivals: Sequence[Arrival],
    *,
    concurrency: int | None = None,
    load: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = _nobody,
    sent: Callable[[int], None] = lambda number: None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Measured:
    """Load the model and play the trace to it: one row. `sent` is told how many requests were submitted. Raises as
    `bench` does, but not for requests that fail."""
    if concurrency is not None and concurrency < 1:
        raise InvalidRequest(f"concurrency must be at least 1, not {concurrency}")
    with _loaded(runtime, reference, load or {}, report) as (model, shared), around():
        if "text" not in model.capabilities:
            raise InvalidRequest(
                f"traces are for text models, and {reference} makes {' and '.join(model.capabilities)}"
            )
        report("load")
        model.generate(prompt_tokens=[1], max_tokens=2, temperature=0.0, ignore_eos=True)  # what is made ready once
        row, failed = replay_trace(model, arrivals, concurrency=concurrency, report=sent)
        row = shared | row | _once(model, shared)
        notes = _notes(model, [row])
    return Measured(rows=[_rounded(row)], failed=failed, notes=notes)


def _bench_others(model: Model, options: BenchOptions, report: Callable[[str], None]) -> list[Row]:
    """Rows of what makes no text."""
    if model.takes is None:  # a pipeline of diffusers
        pictures = "image" in model.capabilities
        return (
            bench_pictures(model, options, report)
            if pictures
            else bench_media(model, options, Prompted(model, options.picture), report)
        )
    family = find(model.checkpoint)
    usual = family.sample_request(model.checkpoint) if hasattr(family, "sample_request") else {}
    return bench_media(model, options, Declared(model, model.takes, usual, options.picture), report)


@contextmanager
def _loaded(
    runtime: Runtime, reference: str, load: Mapping[str, Any], report: Callable[[str], None]
) -> Iterator[tuple[Model, Row]]:
    """The model, as it was asked for, and what all of its rows share."""
    report("loading")
    begin = time.monotonic()
    model = runtime.load(reference, **load)
    load_s = time.monotonic() - begin
    try:
        runtime._keeping.finish()  # what is written for later loads is not to be written beside what is measured
        check_as_asked(runtime, model, load)
        kernel, kernel_share = kernel_of(model)
        yield (
            model,
            {
                "model": reference,
                "device": model.plan.device,
                "hardware": runtime.device.model,
                "dtype": model.plan.dtype,
                "quant": model.plan.quant_json,
                "kv_dtype": model.plan.kv_dtype,
                "draft": model.info.get("draft"),
                "outside_bytes": model.plan.outside_bytes,
                "kernel": kernel,
                "kernel_share": kernel_share,
                "step": model.usage().get("step"),
                "load_s": load_s,
            },
        )
    finally:
        model.unload()


def _once(model: Model, shared: Row) -> Row:
    """What is told last: seconds that came once."""
    return {"load_s": shared["load_s"], "compile_s": float(model.usage().get("compile_s", 0.0))}


def _notes(model: Model, rows: Sequence[Row]) -> tuple[str, ...]:
    """What makes a model slow, or figures hard to read, is said beside them."""
    plan = model.plan
    notes = list(plan.notes) if plan.outside_bytes else []
    restored = plan.quant is not None and plan.quant.scheme not in _FORMS_OF_SCHEMES and rows[0]["kernel"] is None
    if restored and plan.device == "cpu":
        notes.append("No kernel is for these weights here: they are brought back to full precision for each product.")
    guessed = max(row.get("accepted_share") or 0.0 for row in rows)
    if guessed:
        notes.append(
            f"Up to {guessed:.0%} of the tokens were guessed and came together with the one before, which counts as no "
            "time between them; --speculation off, without a draft, guesses none."
        )
    return tuple(notes)


def _beyond(rows: Sequence[Row]) -> str:
    """What is said of shares that cannot be."""
    shares = [row.get(f"{what}_utilization") or 0.0 for row in rows for what in ("bandwidth", "operations")]
    if max(shares, default=0.0) <= 1:
        return ""
    return (
        "Shares above 100 %: the device was slower when it was measured, or its caches hold what is read; "
        "`kamado devices --measure` measures it again."
    )


def _form(model: Model, shared: Row) -> str:
    """What products are made of, mostly."""
    if shared["kernel_share"] > 0.5:  # the kernels in C multiply whole numbers, of 16 bits in halves
        return "int8"
    quant = model.plan.quant
    return _FORMS_OF_SCHEMES.get(quant.scheme, model.plan.dtype) if quant is not None else model.plan.dtype


def _rates(runtime: Runtime, report: Callable[[str], None]) -> tuple[Rates | None, str]:
    """Of the runtime's device; or why there are none."""
    if runtime.device.rates is not None:
        return runtime.device.rates, ""
    try:
        return measure_rates(runtime.device, progress=lambda what: report(f"rates: {what}")), ""
    except DoesNotFit as error:
        return None, f"There are no shares of the device's rates: {error}"


def _shares(row: Row, rates: Rates | None, form: str) -> Row:
    """The row, with the shares that were reached of what was measured."""
    if "bandwidth_GB_s" not in row:
        return row
    whole = {
        "bandwidth_utilization": (row["bandwidth_GB_s"], rates.read_bytes_per_s if rates is not None else None),
        "operations_utilization": (row["operations_G_s"], rates.matrix_rate(form) if rates is not None else None),
    }
    shares = {name: part * 1e9 / of if part is not None and of else None for name, (part, of) in whole.items()}
    return row | shares


def _rounded(row: Row) -> Row:
    """Digits beyond the fifth are noise."""
    return {name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value for name, value in row.items()}
