"""A forward over pages of a model that transformers has: its own modules, behind its attention interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import MaskRule, PackedStep, PagedAttention, PageWriter
from .pages import PageStore

_PLAIN: Callable[..., Any] = causal_mask_function


class PackedCache(PageWriter, Cache):
    """What modelling code takes for its cache."""

    def __init__(self, store: PageStore) -> None:
        Cache.__init__(self, layers=[])
        PageWriter.__init__(self, store)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See transformers' Cache: positions are always passed, so nothing is derived from this."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """See transformers' Cache."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """See transformers' Cache."""
        return query_length, 0


class LibraryForward:
    """See PagesForward. The attention function is registered with transformers under a name of its own, and the model
    is switched to it; `close` undoes both."""

    def __init__(self, model: Any, store: PageStore) -> None:
        self._model = model
        self._cache = PackedCache(store)
        self._name = f"kamado_paged_{id(self):x}"
        ALL_ATTENTION_FUNCTIONS.register(self._name, PagedAttention(self._cache).attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(self._name, _mask_rule)
        self._former_attention = self._switched_back()
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        model.set_attn_implementation(self._switched())

    def _switched(self) -> Any:
        """What transformers is to call for attention."""
        return self._name

    def _switched_back(self) -> Any:
        """What it calls now."""
        return self._model.config._attn_implementation

    def __call__(self, tokens: Tensor, positions: Tensor, step: PackedStep, keep: Tensor | None) -> Tensor:
        """See PagesForward."""
        self._cache.step = step
        try:
            output = self._model(
                input_ids=tokens,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **({"logits_to_keep": keep} if self._keeps_logits and keep is not None else {}),
            )
        finally:
            del self._cache.step  # with its masks
        logits: Tensor = output.logits[0]
        return logits if self._keeps_logits or keep is None else logits[keep]

    def close(self) -> None:
        """See PagesForward."""
        self._model.set_attn_implementation(self._former_attention)
        for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            type(registry)._global_mapping.pop(self._name, None)


def _mask_rule(*, mask_function: Callable[..., Tensor], local_size: int | None = None, **_: Any) -> MaskRule:
    return MaskRule(mask_function, local_size, mask_function is _PLAIN)
