"""Whether what is measured is what was asked for: figures of something else would be worse than none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import KamadoError

if TYPE_CHECKING:
    from ..api import Model, Runtime


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
    if not _has_kernel(plan.quant.scheme, device):
        raise KamadoError(
            f"{name}: {device} has no exact kernel for {plan.quant.scheme}, so products are made in full precision; "
            "nothing was measured"
        )


def _modules(loaded: Any) -> Iterator[Any]:
    """torch's modules of a loaded model."""
    if hasattr(loaded, "module"):
        yield loaded.module
    elif hasattr(loaded, "direct_pipeline"):
        for part in loaded.direct_pipeline().components.values():
            if hasattr(part, "parameters"):
                yield part


def _has_kernel(scheme: str, device: str) -> bool:
    """Schemes that round activations are for products of 8-bit numbers; the others are decoded for each product."""
    import torch

    from ..weights.quantized import dynamic, floats

    where = torch.device(device)
    if scheme in ("int8-dynamic", "bnb-int8"):
        return dynamic.can_multiply(where)
    return floats.can_multiply(where) if scheme == "fp8-dynamic" else True
