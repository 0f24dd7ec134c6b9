"""Quantized checkpoints: written tensor by tensor, and compared with what they were made of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .checkpoint.inspect import inspect
from .checkpoint.parts import with_parts
from .checkpoint.recommended import FILE as RECOMMENDED
from .checkpoint.types import Checkpoint
from .errors import GenerationFailed, InvalidRequest, KamadoError
from .families import find
from .files import check_writable, write_json
from .memory.devices import DeviceFacts, default_budget, resolve_device
from .memory.plan import Plan, PlanOptions
from .quality import FILE, Quality
from .quant import STORED, Quant, QuantLike, parse_quant
from .units import format_bytes, parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A checkpoint that was written."""

    path: Path
    stored_bytes: int
    """Of its tensors."""
    source_bytes: int
    """Of those that it was made of, as they were stored."""
    kept: Mapping[str, int]
    """What keeps its precision because checkpoints have no place for its form: bytes, by kind."""
    quality: Quality | None
    """None where it was not compared; `note` says why."""
    note: str = ""


def quantize(
    reference: str | Path,
    out: str | Path,
    quant: QuantLike,
    *,
    base: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    compare: bool = True,
    accept_loss: bool = False,
    offline: bool = False,
) -> Quantized:
    """Write the model as a quantized checkpoint to the new folder `out`, which appears when all is done, or not at all.

    A form that is not the same on every device (`int8`, `int8-dynamic`) is that of `device`.

    Tensors are quantized one at a time: beside what is being written there is one of them in memory. Then both are
    loaded in turn on `device`, within `memory`, and compared (`compare`); a result that is broken (`quality.FLOORS`)
    is refused unless `accept_loss`. The figures are kept in the folder, and so is what a catalog recommends for the
    model. `base`: as for `Runtime.load`.

    Raises InvalidRequest, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint, and GenerationFailed for a result
    that is refused.
    """
    form, folder = parse_quant(quant), Path(out)
    if form is None or form.scheme == STORED:
        raise InvalidRequest("say in which form the weights shall be (--quant int8, --quant nf4)")
    if folder.exists():
        raise InvalidRequest(f"{folder} is there already; name a new folder")
    check_writable(folder)
    checkpoint = with_parts(inspect(str(reference), offline=offline), None, base, offline=offline)
    family = find(checkpoint)
    facts = resolve_device(device)
    form = form.on(facts.kind)
    budget = parse_bytes(memory) if memory is not None else default_budget(facts)
    with _told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            kept = family.write_quantized(checkpoint, form, stage, offline=offline)
            if checkpoint.defaults:
                write_json(stage / RECOMMENDED, dict(checkpoint.defaults))
            made = inspect(str(stage), offline=True)
            quality, note = (None, "not compared") if not compare else _compared(checkpoint, made, form, facts, budget)
            if quality is not None:
                _judge(checkpoint, form, quality, accept_loss=accept_loss)
                write_json(stage / FILE, quality.as_json())
            stage.chmod(0o755)
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return Quantized(
        path=folder,
        stored_bytes=made.weight_bytes,
        source_bytes=checkpoint.weight_bytes,
        kept=kept,
        quality=quality,
        note=note,
    )


def _compared(
    checkpoint: Checkpoint, made: Checkpoint, quant: Quant, facts: DeviceFacts, budget: int
) -> tuple[Quality | None, str]:
    """The comparison, or why there is none."""
    family = find(checkpoint)
    options = PlanOptions(device=facts.name, budget_bytes=budget, good_dtypes=facts.good_dtypes)
    plan = family.plan(checkpoint, options)
    needed = plan.weight_bytes + plan.activation_bytes
    if needed > budget:
        return None, (
            f"not compared: {checkpoint.reference} itself needs {format_bytes(needed)} on {facts.name}, "
            f"and {format_bytes(budget)} may be used"
        )
    other: Plan = family.plan(made, replace(options, dtype=plan.dtype))
    figures: Mapping[str, float] = family.compare((checkpoint, plan), (made, other))
    return (
        Quality(
            kind=family.makes(checkpoint)[0],
            figures=figures,
            quant=quant.as_json(),
            reference=checkpoint.reference,
            measured_on=f"{facts.name}, {plan.dtype}",
        ),
        "",
    )


def _judge(checkpoint: Checkpoint, quant: Quant, quality: Quality, *, accept_loss: bool) -> None:
    problems = quality.problems()
    if problems and not accept_loss:
        raise GenerationFailed(
            f"{quant.scheme} breaks {checkpoint.reference}: {'; '.join(problems)}. Choose a finer form, leave out "
            "layers (skip), or accept it (--accept-loss)"
        )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a KamadoError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise KamadoError(f"{folder} cannot be written: {reason}; choose another place for it") from error
