"""The library's networks with what comes right behind them, so that little leaves a forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layout import Step


class Around(nn.Module):
    """A network with something before or behind it. Its parts are the network's own, under the same names, by which
    weights are placed."""

    network: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in ("_modules", "_parameters", "_buffers"):
            self.__dict__[name] = network.__dict__[name]
        self.__dict__["network"] = network
        self._takes_types = "token_type_ids" in inspect.signature(network.forward).parameters
        self.eval()

    def _called(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        types = {"token_type_ids": token_type_ids} if self._takes_types and token_type_ids is not None else {}
        return self.network(input_ids=input_ids, attention_mask=attention_mask, **types)


class Pooled(Around):
    """A network whose token states become one vector for each row."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pooled_mask: Tensor, poolings: str) -> Tensor:
        """(rows, dimensions) float32. `attention_mask`, `pooled_mask`: (rows, length), 1 for tokens that are read, and
        that are pooled. `poolings`: names of `layout.POOLINGS`, joined by `+`."""
        states = self._called(input_ids, attention_mask)[0].float()
        return torch.cat([pool(states, pooled_mask, name) for name in poolings.split("+")], dim=-1)


def pool(states: Tensor, mask: Tensor, name: str) -> Tensor:
    """One vector of each row of token states (rows, length, size), as sentence-transformers' Pooling defines them. Rows
    begin at the first position."""
    kept = mask.to(states.dtype).unsqueeze(-1)
    if name == "cls":
        return states[:, 0]
    if name == "max":
        return states.masked_fill(kept == 0, -1e9).amax(dim=1)
    if name == "lasttoken":
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (places * mask).amax(dim=1)
        return states[torch.arange(len(states), device=states.device), last]
    if name == "weightedmean":
        kept = kept * torch.arange(1, states.shape[1] + 1, device=states.device, dtype=states.dtype).unsqueeze(-1)
    total = kept.sum(dim=1).clamp(min=1e-9)
    return (states * kept).sum(dim=1) / (total.sqrt() if name == "mean_sqrt_len" else total)


class Steps(nn.Module):
    """What a sentence model does to vectors: dense layers and norms. Unit length is no part of it, see `normalized`."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        for number, step in enumerate(steps):
            if step.kind != "Normalize":
                self.add_module(str(number), _layer(step))

    def forward(self, vectors: Tensor) -> Tensor:
        """(rows, dimensions) to (rows, others)."""
        for number, step in enumerate(self.steps):
            vectors = normalized(vectors) if step.kind == "Normalize" else self._modules[str(number)](vectors)  # type: ignore[misc]
        return vectors.float()


class Dense(nn.Module):
    """A linear layer and a function, by the names of sentence-transformers' files."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, function: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.function = function

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.function(self.linear(vectors.to(self.linear.weight.dtype)))
        return made


class Norm(nn.Module):
    """A layer norm, by the names of sentence-transformers' files."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, vectors: Tensor) -> Tensor:
        made: Tensor = self.norm(vectors.to(self.norm.weight.dtype))
        return made


FUNCTIONS = {name: getattr(nn, name) for name in ("Identity", "Tanh", "Sigmoid", "ReLU", "GELU", "SiLU")}


def function_named(name: str) -> nn.Module:
    """By the full name of torch's class. Raises ValueError for others: names of a file never choose code."""
    module, _, last = name.rpartition(".")
    if not module.startswith("torch.nn.modules") or last not in FUNCTIONS:
        raise ValueError(f"the activation function {name!r:.80} is not known")
    return FUNCTIONS[last]()  # type: ignore[no-any-return]


def _layer(step: Step) -> nn.Module:
    told = step.settings
    if step.kind == "LayerNorm":
        return Norm(told["dimension"])
    function = function_named(told.get("activation_function", "torch.nn.modules.activation.Tanh"))
    return Dense(told["in_features"], told["out_features"], bias=told.get("bias", True), function=function)


def normalized(vectors: Tensor) -> Tensor:
    """Of length 1."""
    return functional.normalize(vectors.float(), dim=-1)


class Judged(Around):
    """A network that gives each row numbers for labels."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """(rows, labels) float32, before any function."""
        logits: Tensor = self._called(input_ids, attention_mask, token_type_ids).logits
        return logits.float()


class Asked(Around):
    """A network with a number for each word of its vocabulary, which is worked out at some positions only: all that
    stands before its last layer is done position by position, so the numbers are the same."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self._asked: Tensor | None = None
        self._is_done = False
        last = network.get_output_embeddings()
        if last is not None:
            last.register_forward_pre_hook(self._choose)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, asked: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """(rows, positions, words) float32, before any function. `asked`: (rows, positions) int64."""
        self._asked, self._is_done = asked, False
        try:
            logits: Tensor = self._called(input_ids, attention_mask, token_type_ids).logits
            return (logits if self._is_done else _at(logits, asked)).float()
        finally:
            self._asked = None

    def _choose(self, layer: nn.Module, given: tuple[Any, ...]) -> Any:
        states = given[0] if given else None
        if self._asked is None or not isinstance(states, Tensor) or states.ndim != 3:
            return None
        self._is_done = True
        return (_at(states, self._asked), *given[1:])


def _at(values: Tensor, asked: Tensor) -> Tensor:
    """(rows, length, size) at (rows, positions)."""
    return torch.take_along_dim(values, asked.unsqueeze(-1), dim=1)
