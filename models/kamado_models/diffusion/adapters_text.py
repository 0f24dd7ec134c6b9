"""Textual inversion (Gal et al. 2022): words of a file's own, for the requests that ask for them.

Such a request has tokenizers of its own that know the words. Their numbers lie behind those of all other words, and a
text encoder that meets them takes the file's vectors instead of its table's; the table itself never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kamado.errors import InvalidRequest, UnsupportedCheckpoint

from ..language.materialize import library_call
from .adapters_files import AdapterFile

MAX_VECTORS = 1024
MAX_WORD_CHARACTERS = 200
_BY_FORMAT = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


class Embedding:
    """The vectors of one word, for each text encoder that gets any."""

    def __init__(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        """`vectors`: component -> (vectors, width)."""
        self.word = word
        self.vectors = dict(vectors)
        self.components = frozenset(vectors)
        self.nbytes = sum(tensor.nbytes for tensor in vectors.values())

    def move(self, device: str) -> None:
        """Put its tensors there."""
        self.vectors = {name: tensor.to(device) for name, tensor in self.vectors.items()}

    def words(self, component: str) -> list[str]:
        """One for each vector. diffusers' pipelines replace the first by all of them."""
        count = len(self.vectors[component])
        return [self.word, *(f"{self.word}_{index}" for index in range(1, count))]


def tables_of(models: Mapping[str, nn.Module]) -> dict[str, nn.Embedding]:
    """component -> the table of word vectors, of text encoders."""
    found = {}
    for name, model in models.items():
        if not name.startswith("text_encoder") or not hasattr(model, "get_input_embeddings"):
            continue  # others may have the method and raise in it
        try:
            table = model.get_input_embeddings()  # type: ignore[operator]
        except NotImplementedError:  # of CLAP, say, which has two sides
            continue
        if isinstance(table, nn.Embedding):
            found[name] = table
    return found


def read_embedding(file: AdapterFile, tables: Mapping[str, nn.Embedding], reference: str) -> Embedding:
    """The embedding in `file` for the model `reference` with these tables. Its word is the name of its tensor; where
    that says nothing, the name of the file. Raises UnsupportedCheckpoint, InvalidRequest."""
    tensors = {name: tensor.unsqueeze(0) if tensor.ndim == 1 else tensor for name, tensor in file.read().items()}
    first = next(iter(tensors))
    named = len(tensors) == 1 and first not in (*_BY_FORMAT, "emb_params")
    word = first if named else file.path.stem
    if not word.isprintable() or not 0 < len(word) <= MAX_WORD_CHARACTERS or any(map(str.isspace, word)):
        raise UnsupportedCheckpoint(f"{file.what}: its word {word!r:.60} cannot stand in a prompt")
    vectors: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not 0 < len(tensor) <= MAX_VECTORS or not tensor.is_floating_point():
            raise UnsupportedCheckpoint(f"{file.what}: its tensor {name!r:.100} has the shape {list(tensor.shape)}")
        component = _BY_FORMAT.get(name) or next(
            (each for each, table in tables.items() if table.embedding_dim == tensor.shape[1]), next(iter(tables), "")
        )
        table = tables.get(component)
        if table is None or table.embedding_dim != tensor.shape[1]:
            widths = ", ".join(f"{each} {table.embedding_dim}" for each, table in tables.items())
            raise InvalidRequest(
                f"{file.what} was made for another model: its tensor {name!r:.100} has vectors of {tensor.shape[1]} "
                f"numbers, and {reference} has {widths or 'no text encoder'}"
            )
        vectors[component] = tensor.to(table.weight.dtype)
    return Embedding(word, vectors)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Vocabulary:
    """The words of one or more embeddings, as the requests that ask for them have them."""

    embeddings: tuple[Embedding, ...]
    tokenizers: Mapping[str, Any]
    """By component name. Of these requests alone."""
    starts: Mapping[str, int]
    """component -> number of the first word."""

    @property
    def components(self) -> frozenset[str]:
        """The text encoders that get vectors."""
        return frozenset(self.starts)

    def rows(self, component: str) -> Tensor:
        """(vectors, width): those of the words from `starts` on."""
        parts = [each.vectors[component] for each in self.embeddings if component in each.components]
        return torch.cat(parts)


def vocabulary(embeddings: Sequence[Embedding], fresh_tokenizer: Any, reference: str) -> Vocabulary:
    """`fresh_tokenizer(name)` is a new tokenizer of the model `reference`. Raises InvalidRequest for a word that the
    model has already."""
    tokenizers, starts = {}, {}
    for component in sorted({name for each in embeddings for name in each.components}):
        tokenizer = fresh_tokenizer(component.replace("text_encoder", "tokenizer"))
        words = [word for each in embeddings if component in each.components for word in each.words(component)]
        known = tokenizer.get_vocab()
        clash = next((word for word in words if word in known or words.count(word) > 1), None)
        if clash is not None:
            raise InvalidRequest(f"{reference} or another embedding has the word {clash!r:.60} already")
        with library_call():
            tokenizer.add_tokens(words)
        numbers = tokenizer.convert_tokens_to_ids(words)
        if numbers != list(range(numbers[0], numbers[0] + len(words))):
            raise InvalidRequest(f"the tokenizer of {reference} cannot learn the words {words[0]!r:.60}, ...")
        tokenizers[component.replace("text_encoder", "tokenizer")] = tokenizer
        starts[component] = numbers[0]
    return Vocabulary(tuple(embeddings), tokenizers, starts)


class TableSlot:
    """The place on a table of word vectors where further words are."""

    def __init__(self, table: nn.Embedding) -> None:
        self.active: tuple[int, Tensor] | None = None
        """(number of the first further word, vectors), or None where there are none now."""
        self._asked: Tensor | None = None
        self._handles = (table.register_forward_pre_hook(self._before), table.register_forward_hook(self._after))

    def remove(self) -> None:
        """The table is as it was before."""
        self.active = None
        for handle in self._handles:
            handle.remove()

    def _before(self, table: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.active is None:
            return None
        start, rows = self.active
        (self._asked,) = args
        further = (self._asked >= start) & (self._asked < start + len(rows))
        return (self._asked.masked_fill(further, 0),)

    def _after(self, table: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.active is None or self._asked is None:
            return None
        (start, rows), asked, self._asked = self.active, self._asked, None
        further = (asked >= start) & (asked < start + len(rows))
        return torch.where(further.unsqueeze(-1), rows[(asked - start).clamp(0, len(rows) - 1)], output)
