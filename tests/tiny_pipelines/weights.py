"""Random weights under which a network's output depends on all its inputs and stays in range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

QUERY_KEY = ("q", "k", "to_q", "to_k", "q_proj", "k_proj", "add_q_proj", "add_k_proj", "query", "key")
QUERY_KEY_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k", "q_norm", "k_norm")
VALUE = ("v", "to_v", "v_proj", "add_v_proj", "value")


def rescale(
    model: nn.Module, gains: Mapping[str, float] | None = None, *, attention: float = 1.6, embedding: float = 1.0
) -> Any:
    """Draw all weights anew; returns `model`, in evaluation mode.

    A matrix or kernel gets the variance gain^2 / fan-in. The gain is that of the first entry of `gains` that its path
    starts with, else `attention` for queries and keys, so that it matters which token is looked at, 2 for values, and
    else 1. Scales and biases keep what the class starts them with and get some noise. `embedding` is the size of token
    embeddings: large ones keep tokens distinct through many layers.
    """
    drawn: set[int] = set()  # tied ones are drawn where they come first: as embeddings
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in drawn or not parameter.ndim:
                    continue
                drawn.add(id(parameter))
                noise = torch.randn_like(parameter)
                if parameter.numel() == max(parameter.shape):  # a vector, maybe with ones around it
                    parameter.add_(0.1 * noise)
                    if path.rpartition(".")[2] in QUERY_KEY_NORMS and name == "weight":
                        parameter.mul_(attention)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_((0.3 if "position" in path else embedding) * noise)
                elif not name.endswith("weight"):  # tables and learned tokens
                    parameter.copy_(0.3 * noise)
                else:
                    gain = _gain(path, gains or {}, attention)
                    parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    return model.eval()


def _gain(path: str, gains: Mapping[str, float], attention: float) -> float:
    for prefix, gain in gains.items():
        if path.startswith(prefix):
            return gain
    layer = path.rpartition(".")[2]
    return attention if layer in QUERY_KEY else 2.0 if layer in VALUE else 1.0


def narrow(layer: nn.Module, *, gain: float) -> None:
    """Make a VAE encoder's last layer, whose rows are means and then log-variances, give means of about `gain` and
    little noise."""
    with torch.no_grad():
        half = layer.weight.shape[0] // 2
        layer.weight[:half] *= gain
        layer.weight[half:] *= 0.1
        layer.bias[half:] -= 5.0
