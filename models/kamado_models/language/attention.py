"""Attention over pages, as transformers' attention interface has it (`library_forward` puts it behind that).

Tokens of many sequences are packed into one row: hidden states are (1, T, hidden). Modelling code calls
`PageWriter.update` with the new keys and values, then the attention function, which reads each sequence's own pages.
What a mask allows is asked of transformers' mask functions, so that sliding windows, chunks and whatever comes next
need no knowledge here.

Shapes: T packed tokens, B rows, L keys, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kamado.kernels.gpu import has_kernels

from .pages import PageStore

if TYPE_CHECKING:
    from .media.decoder import Run, Seen

MAX_GROUPED = 32
"""Up to so many new tokens of one sequence share the keys of its groups; more of them are better off with copies."""
MAX_PADDING = 2
"""Decoding rows share one padded gather while the longest has at most this many times the pages of the shortest."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskRule:
    """Which keys a query sees: what the attention function gets in place of a mask tensor."""

    allows: Callable[..., Tensor]
    """(batch, head, query position, key position) -> bool, broadcasting."""
    window: int | None
    """Keys further back than this are never allowed; None: all may be."""

    causal: bool
    """Whether it says just "not the future"."""
    kind: str = ""
    """Of the layers that it is for, where a model that sees or hears has several kinds."""

    def is_causal_within(self, length: int) -> bool:
        """Whether for sequences up to this length it says just "not the future"."""
        return self.causal or (self.window is not None and length <= self.window)

    def reach(self) -> int | None:
        """How many keys a query sees: the last ones up to its own. 0: all up to its own. None: not just that."""
        if self.causal or self.window is None:
            return 0 if self.causal else None
        for query in (self.window - 1, self.window, 2 * self.window, 2 * self.window + 1):
            seen = self.mask(torch.tensor([[query]]), torch.arange(query + 2)[None]).flatten().tolist()
            if seen != [query - self.window < key <= query for key in range(query + 2)]:
                return None
        return self.window

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """bool (..., L): whether the query at a position may see the key at a position."""
        zero = torch.zeros((), dtype=torch.long, device=queries.device)
        return self.allows(zero, zero, queries, keys)


def _past(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


CAUSAL = MaskRule(_past, None, True)


@dataclass(slots=True)
class Rows:
    """Sequences with one new token each, padded to a common number of pages."""

    packed: Tensor | None
    """(B,) where their tokens stand in the packed row; None: they are the packed row, in order."""
    tables: Tensor
    """(B, P) pages."""
    lengths: Tensor
    """(B,) keys, the new token's included."""
    longest: int
    shortest: int
    run: range | None
    """The pages of a single row, where they lie one behind the other."""
    in_place: bool = False
    """Whether a kernel may read their pages where they lie, if there is one."""
    views: dict[MaskRule, tuple[Tensor | range, Tensor | None]] = field(default_factory=dict)

    def view(self, rule: MaskRule, block_tokens: int) -> tuple[Tensor | range, Tensor | None]:
        """Pages to read under the rule, and the mask (B, 1, 1, L) over them; None where all rows see all their keys,
        equally many."""
        if rule not in self.views:
            self.views[rule] = self._view(rule, block_tokens)
        return self.views[rule]

    def _view(self, rule: MaskRule, block_tokens: int) -> tuple[Tensor | range, Tensor | None]:
        plain = rule.is_causal_within(self.longest)
        if plain and self.shortest == self.longest:
            return self.tables if self.run is None else self.run, None
        tables, first = self.tables, torch.zeros_like(self.lengths)
        if not plain and rule.window is not None:
            pages = min(-(-rule.window // block_tokens) + 1, tables.shape[1])
            first = ((self.lengths - 1) // block_tokens + 1 - pages).clamp(min=0)
            tables = tables.gather(1, first[:, None] + torch.arange(pages, device=tables.device))
        keys = (first * block_tokens)[:, None] + torch.arange(tables.shape[1] * block_tokens, device=tables.device)
        allowed = keys < self.lengths[:, None]
        if not plain:
            allowed = allowed & rule.mask((self.lengths - 1)[:, None], keys)
        return tables, allowed[:, None, None, :]


@dataclass(slots=True)
class Span:
    """One sequence with several new tokens."""

    start: int
    """First of its tokens in the packed row."""
    num_new: int
    length: int
    """Keys, the new tokens' included."""
    device: torch.device
    table: Tensor | range
    """(1, P) pages; a range where they lie one behind the other."""
    seen: Seen | None = None
    """What its prompt shows beside text."""
    num_past: int = 0
    """Tokens before its first key, of pages that are not held any more."""
    masks: dict[MaskRule, Tensor | None] = field(default_factory=dict)

    def mask(self, rule: MaskRule) -> Tensor | None:
        """bool (num_new, length); None: plain causal from the first token on."""
        if rule not in self.masks:
            own = rule if self.seen is None else self.seen.rule(rule)
            if self.num_new == self.length and own.is_causal_within(self.length):
                self.masks[rule] = None
            else:
                positions = torch.arange(self.length, device=self.device) + self.num_past
                self.masks[rule] = own.mask(positions[-self.num_new :, None], positions[None, :])
        return self.masks[rule]


@dataclass(slots=True)
class PackedStep:
    """How the packed row of one forward maps to sequences and pages."""

    slots: Tensor | range
    """(T,) where each new token's keys and values go."""
    rows: list[Rows]
    spans: list[Span]
    media: tuple[Run, ...] = ()
    """Tokens of sequences whose prompts show something beside text."""


class PageWriter:
    """What takes a forward's new keys and values: writes them to pages, and leaves reading to `PagedAttention`."""

    def __init__(self, store: PageStore) -> None:
        self.store = store
        self.step: PackedStep
        self.layer = -1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See transformers' Cache."""
        self.layer = layer_idx
        return self.store.write(layer_idx, self.step.slots, key_states, value_states)


class PagedAttention:
    """One lane's attention function: over the pages that its writer has written to."""

    def __init__(self, pages: PageWriter) -> None:
        self._pages = pages

    def attend(  # noqa: PLR0917 - transformers' interface
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: MaskRule | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D)."""
        if (attention_mask is not None and not isinstance(attention_mask, MaskRule)) or position_bias is not None:
            raise TypeError("this model makes masks of its own, which pages cannot follow")
        rule = attention_mask or CAUSAL
        pages = self._pages
        step, store, layer = pages.step, pages.store, pages.layer
        heads, tokens = query.shape[1], query.shape[2]
        # Multi-head latent attention keeps latents, and gives its modules a way to expand them to keys and values.
        expand: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = getattr(module, "expand_kv", lambda k, v: (k, v))
        scale = scaling if scaling is not None else 1 / math.sqrt(query.shape[-1])
        kernel = _Kernel(scale, softcap, s_aux)
        output = query.new_empty(tokens, heads, value.shape[-1])
        for rows in step.rows:
            packed = (query[0] if rows.packed is None else query[0].index_select(1, rows.packed)).transpose(0, 1)
            found = kernel.in_place(packed, store, layer, rows, rule) if not hasattr(module, "expand_kv") else None
            if found is None:
                tables, mask = rows.view(rule, store.block_tokens)
                keys, values = expand(*store.read(layer, tables, rows.longest if mask is None else None))
                # The query heads that share a key-value head stand where several queries would: keys are not copied.
                grouped = packed.unflatten(1, (-1, heads // keys.shape[1]))
                found = kernel.grouped(grouped, keys, values, mask).flatten(1, 2)
            if rows.packed is None:
                return found[None], None
            output.index_copy_(0, rows.packed, found)
        for span in step.spans:
            part = slice(span.start, span.start + span.num_new)
            if span.num_new == span.length:
                keys, values = key[:, :, part], value[:, :, part]
            else:
                keys, values = expand(*store.read(layer, span.table, span.length))
            result = kernel.full(query[:, :, part], keys, values, span.mask(rule))
            output[part] = result[0].transpose(0, 1)
        return output[None], None


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Softmax attention with what some models add to it."""

    scale: float
    softcap: float | None
    """Gemma 2: scores are softcap * tanh(score / softcap)."""
    sinks: Tensor | None
    """gpt-oss: (H,) a learned score per head that takes part in the softmax and has no value."""

    def grouped(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query (B, K, H / K, D): the heads of one token; key, value (B, K, L, D); mask (B, 1, 1, L). Without sinks
        the heads may be those of several tokens, with a mask that says which keys each sees."""
        if self.softcap is None and self.sinks is None:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        sinks = self.sinks.view(key.shape[1], -1)[None, :, :, None] if self.sinks is not None else None
        return self._explicit(query, key, value, mask, sinks)

    def in_place(self, query: Tensor, store: PageStore, layer: int, rows: Rows, rule: MaskRule) -> Tensor | None:
        """query (B, H, D) -> (B, H, D), by the kernel for GPUs. None: it is not for these."""
        if not rows.in_place or type(store) is not PageStore or not has_kernels(query.device):
            return None
        keys, values, reach = store.keys[layer], store.values[layer], rule.reach()
        from kamado.kernels.gpu.attention import MAX_DIM, paged_attention

        if reach is None or max(keys.shape[-1], values.shape[-1]) > MAX_DIM or query.dtype != keys.dtype:
            return None
        return paged_attention(
            query,
            keys,
            values,
            rows.tables,
            rows.lengths,
            scale=self.scale,
            window=reach or None,
            softcap=self.softcap,
            sinks=self.sinks,
        )

    def full(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """query (1, H, T, D); key, value (1, K, L, D); mask (T, L), None: causal and T = L."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and mask is not None and query.shape[2] <= MAX_GROUPED and self.sinks is None:
            stacked = query.unflatten(1, (-1, groups)).flatten(2, 3)
            output = self.grouped(stacked, key, value, mask.repeat(groups, 1))
            shared: Tensor = output.unflatten(2, (groups, -1)).flatten(1, 2)
            return shared
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if self.softcap is None and self.sinks is None:
            causal = mask is None
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=self.scale)
        if mask is None:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        sinks = self.sinks[None, :, None, None] if self.sinks is not None else None
        return self._explicit(query, key, value, mask, sinks)

    def _explicit(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
        scores = (query @ key.transpose(-1, -2)) * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
            return torch.softmax(scores.float(), dim=-1)[..., :-1].to(value.dtype) @ value
        return torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
