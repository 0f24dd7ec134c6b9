"""Whether what is measured is what was asked for: figures of something else would be worse than none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import KamadoError

if TYPE_CHECKING:
    from ..api import Model, Runtime


_NATIVE = ("int8-weight-only", "int4")
"""Schemes that the kernels in C are for, beside int8-dynamic in groups."""


def check_as_asked(runtime: Runtime, model: Model, asked: Mapping[str, Any]) -> None:
    """`asked`: options of `Runtime.load`. Raises KamadoError (exit status 1) if the model lies elsewhere, in another
    precision or another form than was asked for, or without the kernel that the form is for."""
    plan, name = model.plan, model.reference
    device = runtime.device.name
    for lane in plan.lanes:
        if lane.device != device:
            raise KamadoError(
                f"{name}: {device} was asked for, but {lane.lane} is on {lane.device}; nothing was measured"
            )
    for option, got in (("dtype", plan.dtype), ("kv_dtype", plan.kv_dtype)):
        wanted = asked.get(option) or "auto"
        if wanted not in ("auto", got):
            raise KamadoError(f"{name}: {option} {wanted} was asked for, but it is {got}; nothing was measured")
    wants_form = asked.get("quant") not in (None, "none", "stored")
    if wants_form and plan.quant is None:
        raise KamadoError(
            f"{name}: quant {asked['quant']} was asked for, but weights are not quantized; nothing was measured"
        )
    modules = list(_modules(model.loaded))
    if modules:
        _check_weights(modules, model, device, wants_form)


def _check_weights(modules: list[Any], model: Model, device: str, wants_form: bool) -> None:
    """The same of the weights themselves."""
    from ..weights.quantized.tensor import is_quantized

    plan, name = model.plan, model.reference
    weights = [weight for module in modules for weight in module.parameters()]
    elsewhere = {str(weight.device) for weight in weights} - {device, device.partition(":")[0], "meta"}
    if elsewhere and not plan.outside_bytes:
        raise KamadoError(f"{name}: {device} was asked for, but weights are on {elsewhere.pop()}; nothing was measured")
    if not wants_form:
        return
    assert plan.quant is not None
    if not any(is_quantized(getattr(weight, "data", weight)) for weight in weights):
        raise KamadoError(
            f"{name}: quant {plan.quant.scheme} was asked for, but no weight is held so; nothing was measured"
        )
    missing = _missing_kernel(modules, model, device)
    if missing:
        raise KamadoError(
            f"{name}: {missing}, so products with {plan.quant.scheme} are made in full precision; nothing was measured"
        )


def _modules(loaded: Any) -> Iterator[Any]:
    """torch's modules of a loaded model."""
    if hasattr(loaded, "module"):
        yield loaded.module
    elif hasattr(loaded, "modules"):
        yield from loaded.modules
    elif hasattr(loaded, "direct_pipeline"):
        for part in loaded.direct_pipeline().components.values():
            if hasattr(part, "parameters"):
                yield part


def kernel_of(model: Model) -> tuple[str | None, float]:
    """(the implementation of Kamado's own kernels that multiplies weights of this model on a CPU, the share of the
    bytes of quantized weights that it does it for). (None, 0.0): torch makes all products, of quantized weights mostly
    after they were brought back to full precision. Token tables are not counted, of which rows are read."""
    from ..kernels.native import native

    sizes = [(packed.nbytes, isinstance(packed, _tiled_form())) for packed in _packed_weights(_modules(model.loaded))]
    tiled_bytes = sum(size for size, is_tiled in sizes if is_tiled)
    kernels = native() if tiled_bytes else None
    return (None, 0.0) if kernels is None else (kernels.name, tiled_bytes / sum(size for size, _ in sizes))


def _missing_kernel(modules: list[Any], model: Model, device: str) -> str:
    """What is missing for the kernels that the scheme is for; empty where nothing is, or where it is for none."""
    import torch

    from ..weights.quantized import dynamic, floats

    assert model.plan.quant is not None
    scheme, where = model.plan.quant.scheme, torch.device(device)
    if device == "cpu" and (scheme in _NATIVE or (scheme == "int8-dynamic" and model.plan.quant.group_size)):
        return _missing_native(modules)
    if scheme in ("int8-dynamic", "bnb-int8"):
        return "" if dynamic.can_multiply(where) else f"{device} has no exact kernel for {scheme}"
    if scheme == "fp8-dynamic":
        return "" if floats.can_multiply(where) else f"{device} has no exact kernel for {scheme}"
    return ""


def _missing_native(modules: list[Any]) -> str:
    """The same of the kernels in C, for weights that they know."""
    import torch

    from ..kernels.native import installed, native
    from ..weights.quantized.tiled import can_tile

    linears = list(_packed_weights(modules, torch.nn.Linear))
    if any(isinstance(packed, _tiled_form()) for packed in linears) or not any(can_tile(packed) for packed in linears):
        return ""
    if native() is not None:
        return "weights were not laid out for the kernels in C"
    if installed():
        return "the kernels in C have none for this CPU that is faster than torch (AVX2 or AVX-512 VNNI)"
    return "the kernels in C are not there (install Kamado where there is a C compiler)"


def _packed_weights(modules: Iterable[Any], kind: type | None = None) -> Iterator[Any]:
    """How the quantized weights are held, of layers of one kind, or of all but token tables."""
    import torch

    from ..weights.quantized.pieces import Pieces
    from ..weights.quantized.tensor import is_quantized

    for module in modules:
        table = None
        with suppress(AttributeError, NotImplementedError):  # of what reads no tokens
            table = module.get_input_embeddings()
        for layer in module.modules():
            is_table = layer is table or isinstance(layer, torch.nn.Embedding)
            if is_table if kind is None else not isinstance(layer, kind):
                continue
            for weight in layer.parameters(recurse=False):
                held: Any = weight
                if is_quantized(held):
                    yield from held.packed.pieces if isinstance(held.packed, Pieces) else (held.packed,)


def _tiled_form() -> type:
    from ..weights.quantized.tiled import TiledIntegers

    return TiledIntegers
