"""How transformers' model is called with a batch of rows and the state of each: what its `generate` would pass.

One call computes the next tokens of all rows and returns the logits of each row's last token together with the new
state. Encoder-decoder models run their encoder in the first call of a row and keep its output in the row's state.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from kamado.weights.outside.tensors import device_of

from . import rows_cache
from .rows_memory import RowShape

_STATE_NAMES = ("past_key_values", "cache_params", "state")
"""What models call their state, in arguments and in outputs."""
_OWN_STATE = ("rwkv", "xlstm", "minimaxfor", "reformer", "xlnet")
"""In the names of classes that make their state themselves, of a class of their own."""
_MODULE_STATE = ("conv1d_state", "recurrent_states")
"""State that some models keep in attributes of their modules instead of in the cache."""


@dataclass(frozen=True, slots=True)
class RowInputs:
    """What one row wants computed."""

    tokens: Sequence[int]
    """The new tokens: equally many in each row of a batch, except where nothing is computed of any row."""
    past: int
    """Tokens computed before."""
    source: Sequence[int] = ()
    """Encoder input of an encoder-decoder model."""

    @property
    def shape_before(self) -> RowShape:
        return RowShape(self.past, len(self.source))

    @property
    def shape_after(self) -> RowShape:
        return RowShape(self.past + len(self.tokens), len(self.source))


class RowModel:
    """One loaded model, causal or encoder-decoder, and the calling convention that its signature shows."""

    def __init__(self, model: Any, config: PreTrainedConfig, *, padded: bool = True) -> None:
        self._model = model
        self.device = device_of(model)
        self._padded = padded
        self._config = config
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self.encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        self._state_name = next((name for name in _STATE_NAMES if name in self._takes), "past_key_values")
        class_name = type(model).__name__.lower()
        self._makes_state = self._state_name == "state" or any(part in class_name for part in _OWN_STATE)
        self._module_state = [
            (module, name) for module in model.modules() for name in _MODULE_STATE if name in vars(module)
        ]

    def forward(self, rows: Sequence[RowInputs], state: Any, *, window: int | None = None) -> tuple[Tensor, Any]:
        """Logits [rows, vocabulary] of each row's last token, and the new state of all rows.

        `state` is a joined state of these rows that may be written into (`rows_cache.fork` or `stack`), or None where
        nothing of them is computed. `window` is for probes: see `rows_cache.new_cache`."""
        if self.encoder_decoder:
            return self._forward_pair(rows, state, window)
        arguments = self._decoder_inputs(rows, "input_ids", "attention_mask", "position_ids")
        cache = self._new_state(window) if state is None else state["cache"]
        arguments[self._state_name] = cache
        with self._installed(state["modules"] if state is not None else ()) as modules:
            outputs = self._model(**arguments)
            made = [vars(module)[name] for module, name in modules]
        new = outputs.get(self._state_name)
        return outputs.logits[:, -1], {"cache": cache if new is None else new, "modules": made}

    def _forward_pair(self, rows: Sequence[RowInputs], state: Any, window: int | None) -> tuple[Tensor, Any]:
        arguments = self._decoder_inputs(rows, "decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")
        sources = [len(row.source) for row in rows]
        longest = max(sources)
        mask_BS = torch.tensor([[1] * n + [0] * (longest - n) for n in sources], device=self.device)
        arguments["attention_mask"] = mask_BS
        if state is None:
            cache = EncoderDecoderCache(
                rows_cache.new_cache(self._config, window=window), rows_cache.new_cache(self._config, growing=False)
            )
            arguments["input_ids"] = self._tensor([list(row.source) for row in rows])
        else:
            cache = state["cache"]
            arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=state["encoder"])
        outputs = self._model(**arguments, past_key_values=cache)
        encoder_BSD = outputs.encoder_last_hidden_state if state is None else state["encoder"]
        return outputs.logits[:, -1], {"cache": cache, "encoder": encoder_BSD}

    def _decoder_inputs(self, rows: Sequence[RowInputs], ids: str, mask: str, positions: str) -> dict[str, Any]:
        longest = max(row.shape_after.past for row in rows)
        num_new = max(len(row.tokens) for row in rows)
        same_prompts = all(len(row.tokens) == num_new for row in rows)
        arguments: dict[str, Any] = {
            ids: self._tensor([[0] * (num_new - len(row.tokens)) + list(row.tokens) for row in rows]),
            "use_cache": True,
        }
        gaps = [longest - row.shape_after.past for row in rows]
        if any(gaps) and mask in self._takes and (self._padded or not same_prompts):
            arguments[mask] = self._tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])
        if positions in self._takes:
            starts = [longest - num_new - gap for gap in gaps]
            arguments[positions] = self._tensor([[max(0, s + i) for i in range(num_new)] for s in starts])
        if "cache_position" in self._takes:  # only code of a checkpoint's own still does
            arguments["cache_position"] = torch.arange(longest - num_new, longest, device=self.device)
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = 1
        return arguments

    def _tensor(self, values: list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _new_state(self, window: int | None) -> Any:
        return None if self._makes_state else rows_cache.new_cache(self._config, window=window)

    @contextmanager
    def _installed(self, values: Sequence[Any]) -> Iterator[list[tuple[nn.Module, str]]]:
        """Put the rows' state into the modules that keep it, for one forward; afterwards they hold none."""
        try:
            for (module, name), value in zip(self._module_state, values, strict=bool(values)):
                setattr(module, name, value)
            yield self._module_state
        finally:
            for module, name in self._module_state:
                setattr(module, name, None)
