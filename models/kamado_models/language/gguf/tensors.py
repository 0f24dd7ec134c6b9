"""The tensors of a GGUF file under the names, and in the layout, of a transformers checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.ggml_tensor import TransformedTensor, gguf_tensor, row_slices
from kamado.weights.quantized.stored.entries import StoredWeight
from kamado.weights.quantized.stored.ggml import kept
from kamado.weights.quantized.stored.reading import StoredTensor
from kamado.weights.stream import ReadableTensor, ReadProgress
from kamado.weights.turns import Turns

from .architecture import ALWAYS_IGNORED, Architecture
from .families import find_architecture
from .names import OLD_EXPERT, look_up, split, template
from .source import GgufSource
from .transforms import MERGES, TRANSFORMS


class _Map:
    """Goes through the tensors of one file once."""

    def __init__(
        self,
        source: GgufSource,
        architecture: Architecture,
        config: Any,
        dtype: torch.dtype,
        progress: ReadProgress | None,
    ) -> None:
        self._source = source
        self._architecture = architecture
        self._config = config
        self._dtype = dtype
        self._progress = progress
        self._turns = Turns()
        self._used: set[str] = set()
        self._names = dict(architecture.names)
        if architecture.names_if is not None and source.has(architecture.names_if[0]):
            self._names.update(architecture.names_if[1])
        self.result: dict[str, ReadableTensor] = {}

    def _reader(self, entry: TensorEntry, dtype: torch.dtype) -> ReadableTensor:
        return gguf_tensor(entry, dtype=dtype, progress=self._progress)

    def _packed(self, entry: StoredWeight, transform: str | None) -> StoredTensor:
        rows = None
        if transform is not None:
            try:
                rows = TRANSFORMS[transform](self._config, torch.arange(entry.shape[0]))
            except RuntimeError as error:
                raise UnsupportedCheckpoint(
                    f"{self._source.file}: {entry.name} has {entry.shape[0]} rows, which are no whole heads"
                ) from error
        return StoredTensor(entry, self._dtype, self._turns, rows=rows, progress=self._progress)

    def _add(self, name: str, tensor: ReadableTensor) -> None:
        if name in self.result:
            raise UnsupportedCheckpoint(f"{self._source.file}: two tensors become {name}")
        self.result[name] = tensor

    def _changed(
        self, entries: Iterable[TensorEntry], name: str, function: Callable[..., torch.Tensor]
    ) -> TransformedTensor:
        readers = tuple(self._reader(entry, torch.float32) for entry in entries)
        return TransformedTensor(name, readers, self._dtype, function)

    def merged(self) -> None:
        """Tensors that are made of several."""
        layers = range(self._config.num_hidden_layers)
        for target, (sources, function) in self._architecture.merged.items():
            for n in layers if "{n}" in target else (0,):
                names = [source.format(n=n) for source in sources]
                if not all(name in self._source.tensors for name in names):
                    continue
                self._used.update(names)
                name = target.format(n=n)
                entries = [self._source.tensors[source] for source in names]
                self._add(name, self._changed(entries, name, partial(MERGES[function], self._config)))

    def single(self, entry: TensorEntry) -> bool:
        """A tensor that stays one. False: the architecture does not name it."""
        generic, layer = template(entry.name)
        target, suffix = look_up(self._names, generic)
        if target is None:
            return False
        name = target.format(n=layer) + suffix
        transform, _ = look_up(self._architecture.transforms, generic)
        if isinstance(entry, StoredWeight):
            self._add(name, self._packed(entry, transform))
        elif transform is None:
            self._add(name, self._reader(entry, self._dtype))
        else:
            self._add(name, self._changed((entry,), name, partial(TRANSFORMS[transform], self._config)))
        return True

    def experts(self, entry: TensorEntry) -> bool:
        """A stack of experts, cut into one tensor each. False: it is none."""
        generic, layer = template(entry.name)
        old = OLD_EXPERT.match(entry.name)
        if old is not None:
            target = self._architecture.experts.get(f"blk.{{n}}.{old.group(2)}_exps")
            if target is not None:
                self._add(target.format(n=old.group(1), e=old.group(3)) + ".weight", self._expert(entry, entry))
            return target is not None
        target, suffix = look_up(self._architecture.experts, generic)
        if target is None:
            return False
        for e, part in row_slices(entry).items():
            self._add(target.format(n=layer, e=e) + suffix, self._expert(entry, part))
        return True

    def _expert(self, stack: TensorEntry, part: TensorEntry) -> ReadableTensor:
        stays = kept(part) if isinstance(stack, StoredWeight) else None
        return self._reader(part, self._dtype) if stays is None else self._packed(stays, None)

    def parts(self, entry: TensorEntry) -> bool:
        """A tensor whose rows are several tensors. False: it is none."""
        generic, layer = template(entry.name)
        targets, suffix = look_up(self._architecture.parts, generic)
        if targets is None:
            return False
        count = len(targets)
        if not entry.shape or entry.shape[0] % count:
            raise UnsupportedCheckpoint(f"{self._source.file}: {entry.name} cannot be cut into {count} equal parts")
        stacked = replace(entry, shape=(count, entry.shape[0] // count, *entry.shape[1:]))
        for i, part in row_slices(stacked).items():
            self._add(targets[i].format(n=layer) + suffix, self._reader(part, self._dtype))
        return True

    def ignored(self, entry: TensorEntry) -> bool:
        generic, _ = template(entry.name)
        stem, _ = split(generic)
        names = (*ALWAYS_IGNORED, *self._architecture.ignored)
        return generic in names or stem in names

    def _other(self, entry: TensorEntry) -> bool:
        return self.experts(entry) or self.parts(entry) or self.ignored(entry)

    def everything(self) -> dict[str, ReadableTensor]:
        """Raises UnsupportedCheckpoint for a tensor that the architecture does not know."""
        self.merged()
        for entry in self._source.tensors.values():
            if entry.name in self._used or self.single(entry) or self._other(entry):
                continue
            raise UnsupportedCheckpoint(
                f"{self._source.file}: a tensor {entry.name} is unknown in {self._source.architecture} models"
            )
        return self.result


def tensors_from_gguf(
    checkpoint: Checkpoint, config: Any, dtype: torch.dtype, *, progress: ReadProgress | None = None
) -> dict[str, ReadableTensor]:
    """The tensors of `checkpoint` as transformers' loader wants them; nothing is read yet.

    `config`: the transformers config object made of `config_from_gguf(checkpoint)`. Packed tensors decode to `dtype`;
    plain ones keep their type, and the loader converts them; those that are a StoredWeight stay packed. Experts come
    one by one, as in a checkpoint that `save_pretrained` wrote. Raises UnsupportedCheckpoint for an unknown
    architecture, tensor or packed format.
    """
    source = GgufSource(checkpoint)
    return _Map(source, find_architecture(source), config, dtype, progress).everything()
