"""How many operations a forward takes, counted while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..api import Model


class Count:
    """Operations of matrix products, convolutions and attention; an addition and a multiplication are two."""

    def __init__(self) -> None:
        self.operations: int | None = None
        """None until it is known."""


@contextmanager
def counted(model: Model) -> Iterator[Count]:
    """Counts what the loop computes while the body runs, of every request. Forwards take a little longer meanwhile, and
    nothing is counted where weights are quantized: their products are not seen by torch's counter."""
    count = Count()
    if model.plan.quant is not None:
        yield count
        return
    mode = _counter()
    session = model.runtime._session
    session.call(mode.__enter__)  # torch keeps modes by thread
    try:
        yield count
    finally:
        session.call(lambda: mode.__exit__(None, None, None))
    count.operations = int(mode.get_total_flops())


def _counter() -> Any:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    # The counter does not know the kernel of CPUs.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: attention})
