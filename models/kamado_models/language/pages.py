"""Where the keys and values of all layers lie: pages of numbers in the compute precision, in float16 or in 8 bits.

Shapes: T new tokens, B rows, P pages of a row, L keys, K key-value heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from .shape import kv_bytes

_PIECE = {"cpu": 1 << 18, "gpu": 1 << 24}
"""Numbers that are restored at once. On a CPU they stay in its cache; a GPU wants few launches."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps of a token."""

    num_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    """Tokens that it looks back at most, itself included, wherever in the sequence it is; None: all of them."""

    def bytes_per_token(self, dtype: torch.dtype, kv_dtype: str) -> int:
        """Of its keys and values, in a form that `page_store` has."""
        return kv_bytes(self.num_heads * (self.key_dim + self.value_dim), 2 * self.num_heads, dtype.itemsize, kv_dtype)


class PageStore:
    """The pages of all layers: keys and values as (pages, page tokens, K, D) tensors."""

    key_scales: Sequence[Tensor] = ()
    """Of each layer, (pages, page tokens, K, 1) float32, where numbers have 8 bits."""
    value_scales: Sequence[Tensor] = ()

    def __init__(
        self, layers: Sequence[LayerShape], num_blocks: int, block_tokens: int, dtype: torch.dtype, device: str
    ) -> None:
        self.block_tokens = block_tokens
        self.code = dtype
        """What `keys` and `values` hold, by their bits."""
        self.keys = [_zeros((num_blocks, block_tokens, at.num_heads, at.key_dim), dtype, device) for at in layers]
        self.values = [_zeros((num_blocks, block_tokens, at.num_heads, at.value_dim), dtype, device) for at in layers]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def write(self, layer: int, slots: Tensor | range, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (1, K, T, D) keys and values of new tokens at `slots` (T,) = page * page tokens + offset. Returns them as
        `read` will."""
        _put(self.keys[layer], slots, keys[0].transpose(0, 1))
        _put(self.values[layer], slots, values[0].transpose(0, 1))
        return keys, values

    def read(self, layer: int, pages: Tensor | range, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of pages (B, P), as (B, K, L, D): the first `length`, or all P * page tokens. Of one row
        whose pages lie one behind the other nothing is copied."""

        def gather(store: Tensor) -> Tensor:
            if isinstance(pages, range):
                picked = store[pages.start : pages.stop].view(1, -1, *store.shape[2:])
            else:
                picked = store.index_select(0, pages.flatten()).view(pages.shape[0], -1, *store.shape[2:])
            return picked[:, :length].transpose(1, 2)

        return gather(self.keys[layer]), gather(self.values[layer])

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero pages that may hold NaN."""
        index = torch.tensor(blocks, device=self.keys[0].device)
        for store in self._tensors():
            store.index_fill_(0, index, 0)

    def clear_slots(self, slots: Sequence[int]) -> None:
        """The same of single tokens; `slots`: see `write`."""
        index = torch.tensor(slots, device=self.keys[0].device)
        for store in self._tensors():
            store.view(-1, *store.shape[2:]).index_fill_(0, index, 0)

    def _tensors(self) -> list[Tensor]:
        return [*self.keys, *self.values]


@dataclass(frozen=True, slots=True)
class EightBits:
    """Numbers as codes of 8 bits times a float32 scale that a vector of them shares."""

    code: torch.dtype
    largest: float
    """Code of the vector's largest number."""
    max_error: float
    """Of a number, as a part of the vector's largest one; see `encode`."""

    def encode(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (..., D) as the int8 that has their bits, and scales (..., 1), of vectors (..., D). Each is rounded to
        the nearest code by itself, so that what shares the call changes nothing. One that has NaN or infinity is read
        as nothing but these."""
        numbers = vectors.float()
        # Of a vector of zeros, too, the quotient is to be 0.
        scales = (numbers.abs().amax(-1, keepdim=True) / self.largest).clamp_(min=torch.finfo(torch.float32).tiny)
        scaled = numbers / scales
        return (scaled if self.code.is_floating_point else scaled.round_()).to(self.code).view(torch.int8), scales

    def decode(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """Write codes times scales to `out`, rounded once."""
        # Codes are copied exactly in every precision.
        if self.code is torch.float8_e4m3fn and codes.device.type == "cpu":
            # torch takes these one by one on a CPU. Their bits, moved, are a float16 of a 256th of the number.
            halves = codes.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
            out.copy_(halves.view(torch.float16))
            out.mul_(scales * 256)
        else:
            out.copy_(codes.view(self.code))
            out.mul_(scales)


EIGHT_BITS = {
    "int8": EightBits(torch.int8, 127.0, 0.5 / 127),
    "fp8": EightBits(torch.float8_e4m3fn, 448.0, 16.0 / 448),
}
"""By the names of `kamado.memory.plan.KV_DTYPES`. fp8 is e4m3: 3 bits behind the leading one, so that the numbers up to
448 lie 32 apart at the most."""


class RoundedPageStore(PageStore):
    """Pages in another precision than that of the computation.

    The forward that writes a token sees it as it will be read later, rounded. So a token's state does not depend on
    whether the tokens before it came in the same forward, and answers are the same in whatever pieces, with
    whomever, after a pre-emption or from the prefix cache they are computed.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: str,
        stored: torch.dtype,
    ) -> None:
        """`dtype`: of what is written and read."""
        super().__init__(layers, num_blocks, block_tokens, stored, device)
        self._dtype = dtype
        self._piece = _PIECE["cpu" if device == "cpu" else "gpu"]

    def write(self, layer: int, slots: Tensor | range, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See PageStore."""

        def put(parts: Sequence[Tensor], new: Tensor) -> Tensor:
            encoded = self._encode(new[0].transpose(0, 1))
            for store, part in zip(parts, encoded, strict=True):
                _put(store, slots, part)
            seen = torch.empty(encoded[0].shape, dtype=self._dtype, device=new.device)
            self._decode(encoded, seen)
            return seen.transpose(0, 1)[None]

        key_parts, value_parts = self._parts(layer)
        return put(key_parts, keys), put(value_parts, values)

    def read(self, layer: int, pages: Tensor | range, length: int | None = None) -> tuple[Tensor, Tensor]:
        """See PageStore. It is a copy always, and made in pieces: beside it there is never more than one of them."""

        def gather(parts: Sequence[Tensor]) -> Tensor:
            store = parts[0]
            num_rows = 1 if isinstance(pages, range) else pages.shape[0]
            order = pages if isinstance(pages, range) else pages.flatten()
            made = torch.empty((len(order), *store.shape[1:]), dtype=self._dtype, device=store.device)
            step = max(self._piece // store[0].numel(), 1)
            for start in range(0, len(order), step):
                some = order[start : start + step]
                self._decode([_pick(part, some) for part in parts], made[start : start + step])
            return made.view(num_rows, -1, *store.shape[2:])[:, :length].transpose(1, 2)

        key_parts, value_parts = self._parts(layer)
        return gather(key_parts), gather(value_parts)

    def _parts(self, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """What holds the keys of a layer, and its values."""
        return [self.keys[layer]], [self.values[layer]]

    def _encode(self, vectors: Tensor) -> Sequence[Tensor]:
        """`vectors` (..., D) as they are kept, for each part."""
        # Those beyond the largest float16 would be infinite; what is infinite already becomes NaN, which is noticed.
        most = torch.finfo(self.code).max
        return [(vectors.clamp(-most, most) + (vectors - vectors)).to(self.code)]

    def _decode(self, parts: Sequence[Tensor], out: Tensor) -> None:
        out.copy_(parts[0])


class EightBitPageStore(RoundedPageStore):
    """Pages of codes of 8 bits, with scales for each token and head: `keys` and `values` hold the codes."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: str,
        form: EightBits,
    ) -> None:
        super().__init__(layers, num_blocks, block_tokens, dtype, device, torch.int8)
        self.code = form.code
        self._form = form

        def scales() -> list[Tensor]:
            return [_zeros((num_blocks, block_tokens, at.num_heads, 1), torch.float32, device) for at in layers]

        self.key_scales, self.value_scales = scales(), scales()

    def _parts(self, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return [self.keys[layer], self.key_scales[layer]], [self.values[layer], self.value_scales[layer]]

    def _encode(self, vectors: Tensor) -> Sequence[Tensor]:
        return self._form.encode(vectors)

    def _decode(self, parts: Sequence[Tensor], out: Tensor) -> None:
        codes, scales = parts
        self._form.decode(codes, scales, out)

    def _tensors(self) -> list[Tensor]:
        return [*super()._tensors(), *self.key_scales, *self.value_scales]


def page_store(
    layers: Sequence[LayerShape], num_blocks: int, block_tokens: int, dtype: torch.dtype, device: str, kv_dtype: str
) -> PageStore:
    """Pages in the compute precision `dtype`, or as `kv_dtype` says, one of `kamado.memory.plan.KV_DTYPES`."""
    if kv_dtype == "auto" or str(dtype) == f"torch.{kv_dtype}":
        return PageStore(layers, num_blocks, block_tokens, dtype, device)
    if kv_dtype == "float16":
        return RoundedPageStore(layers, num_blocks, block_tokens, dtype, device, torch.float16)
    return EightBitPageStore(layers, num_blocks, block_tokens, dtype, device, EIGHT_BITS[kv_dtype])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros, because masked positions are multiplied by 0, and 0 times an uninitialized NaN is NaN."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # The system hands these out as zeros when they are first touched: loading does not wait for it.
    raw = numpy.zeros(math.prod(shape) * dtype.itemsize, dtype=numpy.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def _put(store: Tensor, slots: Tensor | range, rows: Tensor) -> None:
    flat = store.view(-1, *store.shape[2:])
    if isinstance(slots, range):
        flat[slots.start : slots.stop].copy_(rows)
    else:
        flat.index_copy_(0, slots, rows)


def _pick(store: Tensor, pages: Tensor | range) -> Tensor:
    return store[pages.start : pages.stop] if isinstance(pages, range) else store.index_select(0, pages)
