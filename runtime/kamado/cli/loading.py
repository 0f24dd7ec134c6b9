"""From options to a runtime and a model, with a bar while weights are read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..units import format_bytes, format_seconds
from .common import LoadOptions
from .output import Output

if TYPE_CHECKING:
    from ..api import Model, Runtime


def open_runtime(load: LoadOptions) -> Runtime:
    """The runtime that the options describe. It is a context manager; nothing heavy starts here."""
    from ..api import Runtime

    return Runtime(device=load.device, memory=load.memory, deterministic=load.deterministic)


@contextmanager
def loaded_model(reference: str, load: LoadOptions, out: Output) -> Iterator[tuple[Runtime, Model]]:
    """The model in memory, while the body runs. Raises what `Runtime.load` raises."""
    with open_runtime(load) as runtime:
        started = time.monotonic()
        with out.progress(None, f"loading {Path(reference).name}") as update:
            model = runtime.load(
                reference,
                dtype=load.dtype,
                quant=load.quant,
                kv_tokens=load.kv_tokens,
                step_budget=load.step_budget,
                allow_code=load.allow_code,
                offline=load.offline,
                progress=update,
            )
        plan = model.plan
        out.detail(
            f"{reference}: {plan.architecture} on {plan.device}, {plan.dtype}, "
            f"{format_bytes(plan.weight_bytes)} of weights, loaded in {format_seconds(time.monotonic() - started)}"
        )
        yield runtime, model
