"""`kamado plan`."""

from __future__ import annotations

import click

from ..memory.plan import Plan
from ..units import format_bytes
from .common import LoadOptions, Output, SectionedCommand, common_options, model_options
from .loading import check_lanes, fitted, open_runtime
from .table import format_facts, format_table


@click.command(cls=SectionedCommand)
@click.argument("model")
@model_options
@common_options
def plan(model: str, load: LoadOptions, out: Output) -> None:
    """Show what would be loaded where, in how many bytes. Exit status 3 if it does not fit.

    Reads header data only: nothing is loaded, and no GPU memory is taken. With --allow-code, sizes are asked of the
    checkpoint's own code, which runs for that.
    """
    check_lanes(model, load)
    with open_runtime(load) as runtime:
        result = runtime.plan(model, **fitted(model, load).of_model())
    out.json(result.as_dict())
    has, asked = runtime.device.total_bytes, runtime.budget_bytes
    if asked > has:
        out.note(f"{runtime.device.name} has {format_bytes(has)} here; this plan is for {format_bytes(asked)}")
    for line in describe(result):
        out.line(line)
    result.check()
    if result.draft is not None:
        result.draft.check()


def describe(plan: Plan) -> list[str]:
    """The lines for people."""
    fits = plan.minimum_bytes <= plan.available_bytes
    lines = format_facts(
        [
            ("model", plan.reference),
            ("architecture", f"{plan.architecture} ({plan.family})"),
            ("device", plan.device),
            ("precision", plan.dtype + (f", weights {plan.quant.scheme}" if plan.quant is not None else "")),
            ("context", f"{plan.context_tokens} tokens" if plan.context_tokens else ""),
        ]
    )
    header = ("lane", "device", "dtype", "weights", "activations", "known")
    draft = plan.draft
    rows = [
        (
            name,
            lane.device,
            lane.dtype,
            format_bytes(lane.weight_bytes),
            format_bytes(lane.activation_bytes),
            lane.activation_basis,
        )
        for name, lane in (
            *((lane.lane, lane) for lane in plan.lanes),
            *(("draft", lane) for lane in (draft.lanes if draft is not None else ())),
        )
    ]
    lines += ["", *format_table(header, rows, right=("weights", "activations"))]
    kv = f"{format_bytes(plan.kv_bytes)} for {plan.kv_tokens} tokens ({format_bytes(plan.kv_bytes_per_token)} each)"
    kv += f" in {plan.kv_dtype}" if plan.kv_dtype != "auto" else ""
    state = f"{format_bytes(plan.state_bytes)} for {plan.max_sequences} sequences"
    sums = format_facts(
        [
            ("outside", f"{format_bytes(plan.outside_bytes)} of weights ({plan.tier})" if plan.tier else ""),
            ("weights", format_bytes(plan.held_weight_bytes)),
            ("in use", f"{format_bytes(plan.window_bytes)} of these, for weights from outside" if plan.tier else ""),
            ("activations", f"{format_bytes(plan.activation_bytes)}, {plan.activation_basis}"),
            ("KV cache", kv if plan.kv_tokens else ""),
            ("state", state if plan.state_bytes else ""),
            ("total", format_bytes(plan.total_bytes)),
            ("least", f"{format_bytes(plan.minimum_bytes)} would run {'so' if plan.tier else 'at all'}"),
            ("may be used", format_bytes(plan.available_bytes)),
            ("draft", _held(draft) if draft is not None else ""),
            ("fits", "yes" if fits else "no"),
        ]
    )
    lines += ["", *sums]
    sentences = [sentence for sentence in (*plan.notes, plan.outside_note, *plan.options) if sentence]
    if sentences:
        lines += ["", *sentences]
    return lines


def _held(draft: Plan) -> str:
    """What a draft takes besides."""
    beside = format_bytes(draft.held_weight_bytes + draft.kv_bytes)
    return f"{draft.reference}, {beside} besides, {draft.kv_tokens} tokens of KV cache among it"
