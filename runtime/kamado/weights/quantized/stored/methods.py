"""Methods of quantization, by the name that configurations have for them. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint
from . import awq, bitsandbytes, compressed, float8, gptq, mxfp4, torchao
from .entries import Entries, Parts

Method = Callable[[Entries, Mapping[str, Any], str], Parts]
"""(tensors, `quantization_config`, name of the model for messages) -> its weights; the rest stays as it is. Raises
UnsupportedCheckpoint."""

METHODS: Mapping[str, Method] = {
    "awq": awq.find,
    "bitsandbytes": bitsandbytes.find,
    "compressed-tensors": compressed.find,
    "fbgemm_fp8": float8.find,
    "fp8": float8.find,
    "gptq": gptq.find,
    "modelopt": float8.find_modelopt,
    "mxfp4": mxfp4.find,
    "torchao": torchao.find,
}

_NEEDS_SCALES = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")
# Their layers hold matrices (in, out), which quantized files turn around.
_TURNED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


def method_of(config: Mapping[str, Any], what: str) -> str | None:
    """The method with which a model of this configuration is quantized, or None. Raises UnsupportedCheckpoint for one
    that cannot be loaded."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise UnsupportedCheckpoint(f"{what}: its quantization_config is no table")
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        method = "bitsandbytes"  # what old files leave unsaid
    if not isinstance(method, str) or method not in METHODS:
        known = ", ".join(METHODS)
        raise UnsupportedCheckpoint(
            f"{what} is quantized with {method!r:.40}, which cannot be loaded; take the plain one, or one of {known}"
        )
    check_architecture(config, what)
    return method


def check_architecture(config: Mapping[str, Any], what: str) -> None:
    """Raise UnsupportedCheckpoint for a model that no layout of quantized checkpoints fits."""
    if config.get("model_type") in _TURNED:
        raise UnsupportedCheckpoint(
            f"{what}: quantized {config['model_type']} models cannot be loaded; take a plain one"
        )


def understood(entries: Entries, config: Mapping[str, Any], what: str) -> dict[str, TensorEntry]:
    """The tensors of a model, with a StoredWeight for each that is quantized. `config`: its `config.json`.

    Raises UnsupportedCheckpoint for methods that are not known, and where tensors contradict each other or are missing.
    """
    method = method_of(config, what)
    if method is None:
        return dict(entries)
    found = METHODS[method](entries, config["quantization_config"], what).all()
    for name, entry in found.items():
        if name.endswith(".weight") and entry.dtype in _NEEDS_SCALES:
            raise UnsupportedCheckpoint(f"{what}: {name} is of type {entry.dtype}, and nothing says with which scales")
    return found
