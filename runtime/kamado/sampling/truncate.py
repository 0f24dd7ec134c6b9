"""Which tokens may be drawn, and with what weight. Shapes: r rows, v tokens of the vocabulary, k best tokens of a row.

Weights are integers: the best token of a row weighs about 2**44, others in proportion. Sums of integers do not depend
on their order, so a row gives the same token alone, in any batch and however a device splits its sums, and a token
that was filtered out (weight 0) can never be drawn through rounding. Tokens below 2**-44 of the best one weigh 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.gpu import upload
from ..requests import Sampling

_MAX_SCALE_BITS = 44
_COLDEST = 1e-30
"""Lower temperatures are taken for this one: still a normal float32 number, and nothing but ties can tell."""
_NUM_CANDIDATES = 1024
"""How many of the best tokens top-p looks at before it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The samplings of r rows, and the same as columns on the device."""

    rows: Sequence[Sampling]
    temperature_r1: Tensor
    top_k_r1: Tensor
    top_p_r1: Tensor
    min_p_r1: Tensor
    typical_p_r1: Tensor
    sorts: bool = False
    """Whether top-p looks at the whole vocabulary at once."""
    doubts: list[Tensor] = field(default_factory=list)
    """Single bools on the device, filled in by drawing: where one says no, it has to be done again with `sorts`."""


def settings_of(rows: Sequence[Sampling], device: torch.device, *, sorts: bool = False) -> Settings:
    """One upload for all of them. A `top_k` of 0 becomes larger than any vocabulary."""
    table = upload(
        torch.tensor(
            [[max(s.temperature, _COLDEST), s.top_k or 2**40, s.top_p, s.min_p, s.typical_p] for s in rows],
            dtype=torch.float64,
        ),
        device,
    )
    temperature, top_k, top_p, min_p, typical_p = table.T[:, :, None].unbind()
    return Settings(rows, temperature.float(), top_k.long(), top_p, min_p.float(), typical_p, sorts)


def token_weights(logits_rv: Tensor, settings: Settings) -> Tensor:
    """Integer weights [r, v] (int64, 0 for what is filtered out, at least one positive) for temperatures above 0.

    `logits_rv` is float32, each row with a finite maximum. The row sums stay below 2**63.
    """
    vocab_size = logits_rv.shape[1]
    scaled_rv = (logits_rv - logits_rv.amax(dim=1, keepdim=True)).div_(settings.temperature_r1)
    mass_rv = scaled_rv.exp()
    bits = min(_MAX_SCALE_BITS, 62 - vocab_size.bit_length())
    weights_rv = (mass_rv * 2.0**bits).long()

    if cut := [i for i, s in enumerate(settings.rows) if s.top_k > 0 or s.top_p < 1.0]:
        rows = _select(cut, logits_rv)
        kept = _keep_best(logits_rv[rows], weights_rv[rows], settings, rows=rows, indices=cut)
        weights_rv[rows] = weights_rv[rows] * kept
    if any(s.min_p > 0.0 for s in settings.rows):
        weights_rv *= mass_rv >= settings.min_p_r1
    if typical := [i for i, s in enumerate(settings.rows) if s.typical_p < 1.0]:
        rows = _select(typical, logits_rv)
        weights_rv[rows] = _typical(scaled_rv[rows], weights_rv[rows], settings.typical_p_r1[rows])
    return weights_rv


def draw(weights_rv: Tensor, uniform_r: Tensor) -> Tensor:
    """Token ids [r] by inverse CDF in the order of ids. `uniform_r` is float64 in [0, 1)."""
    sums_rv = weights_rv.cumsum(dim=1)
    total_r1 = sums_rv[:, -1:]
    # Never past the last token, however the product is rounded.
    target_r1 = (uniform_r[:, None] * total_r1).long().minimum(total_r1 - 1)
    return torch.searchsorted(sums_rv, target_r1, right=True)[:, 0].clamp_(max=weights_rv.shape[1] - 1)


def _answers_late(device: torch.device) -> bool:
    """Whether asking the device for a number makes it wait for its host afterwards."""
    return device.type != "cpu"


def _select(indices: list[int], like: Tensor) -> Tensor | slice:
    """The whole when that is what is meant: a view costs nothing."""
    if len(indices) == like.shape[0]:
        return slice(None)
    return upload(torch.tensor(indices), like.device)


def _keep_best(
    logits_rv: Tensor, weights_rv: Tensor, settings: Settings, *, rows: Tensor | slice, indices: list[int]
) -> Tensor:
    """Mask [r, v] of top-k, then top-p. Equally probable tokens at the border: those with the lowest ids."""
    vocab_size = logits_rv.shape[1]
    samplings = [settings.rows[i] for i in indices]
    k_r1 = settings.top_k_r1[rows].clamp(max=vocab_size)
    p_r1 = settings.top_p_r1[rows]
    bounded = all(s.top_k > 0 for s in samplings)
    num = max(s.top_k or _NUM_CANDIDATES for s in samplings)
    total_r1 = weights_rv.sum(dim=1, keepdim=True)
    if not bounded and settings.sorts:
        best_rk, where_rk = logits_rv.sort(dim=1, descending=True)
    else:
        best_rk, where_rk = logits_rv.topk(min(num, vocab_size), dim=1)
    if not bounded and best_rk.shape[1] < vocab_size:
        reached = weights_rv.gather(1, where_rk).sum(dim=1, keepdim=True) >= p_r1 * total_r1
        enough = (reached | (k_r1 <= num)).all()
        if _answers_late(enough.device):
            settings.doubts.append(enough)
        elif not bool(enough):
            best_rk, where_rk = logits_rv.sort(dim=1, descending=True)
    weights_rk = weights_rv.gather(1, where_rk)
    sums_rk = weights_rk.cumsum(dim=1)
    # The mass that top-p is a part of is what top-k has left.
    inside_rk = torch.arange(best_rk.shape[1], device=best_rk.device) < k_r1
    total_r1 = torch.where(k_r1 < vocab_size, sums_rk.gather(1, (k_r1 - 1).clamp(max=best_rk.shape[1] - 1)), total_r1)
    kept_rk = inside_rk & ((sums_rk - weights_rk) < p_r1 * total_r1)
    num_kept_r1 = kept_rk.sum(dim=1, keepdim=True).clamp_(min=1)
    border_r1 = best_rk.gather(1, num_kept_r1 - 1)
    num_ties_r1 = num_kept_r1 - (best_rk > border_r1).sum(dim=1, keepdim=True)
    tied_rv = logits_rv == border_r1
    return (logits_rv > border_r1) | (tied_rv & (tied_rv.cumsum(dim=1, dtype=torch.int32) <= num_ties_r1))


def _typical(scaled_rv: Tensor, weights_rv: Tensor, mass_r1: Tensor) -> Tensor:
    """Locally typical sampling (Meister et al. 2022): tokens whose information is nearest to the entropy, up to
    `mass` of what earlier filters left. Equally near ones stay together."""
    left_rv = scaled_rv.masked_fill(weights_rv == 0, -torch.inf)
    log_p_rv = left_rv.log_softmax(dim=1)
    entropy_r1 = -(log_p_rv * log_p_rv.exp()).nansum(dim=1, keepdim=True)
    distance_rv = (-log_p_rv - entropy_r1).abs()
    sorted_rv, where_rv = distance_rv.sort(dim=1)
    sums_rv = weights_rv.gather(1, where_rv).cumsum(dim=1)
    last_r1 = (sums_rv < mass_r1 * sums_rv[:, -1:]).sum(dim=1, keepdim=True).clamp_(max=weights_rv.shape[1] - 1)
    return weights_rv * (distance_rv <= sorted_rv.gather(1, last_r1))
