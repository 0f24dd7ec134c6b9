"""A weight of a quantized checkpoint, from headers alone. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ....checkpoint.types import TensorEntry
from ....errors import UnsupportedCheckpoint

Form = Literal["gptq", "awq", "packed-integers", "integers", "float8", "codebook", "ggml", "signed-nibbles", "mxfp4"]
Entries = Mapping[str, TensorEntry]

MAX_SMALL_BYTES = 1 << 16
HALVES = ("F16", "BF16", "F32")
"""In which scales are stored."""
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class StoredWeight(TensorEntry):
    """One matrix that the file has in several tensors, or in blocks. `shape` is the matrix's, `nbytes` what all of it
    takes in the files, `dtype` a name for people."""

    form: Form = field(kw_only=True)
    parts: Mapping[str, TensorEntry] = field(kw_only=True, compare=False)
    """What it is made of, by roles that the form knows."""
    settings: Mapping[str, Any] = field(kw_only=True, compare=False, default_factory=dict)
    packed_bytes: int = field(kw_only=True)
    """In memory, as it is kept."""
    decoded: bool = field(kw_only=True, default=False)
    """Whether it is read in full precision, because no form of ours is like the file's."""

    def held_bytes(self, size: int) -> int:
        """Bytes in memory, where values in full precision take `size` bytes."""
        return self.numel * size if self.decoded else self.packed_bytes


def weight(
    name: str,
    shape: tuple[int, ...],
    *,
    form: Form,
    label: str,
    parts: Mapping[str, TensorEntry],
    packed_bytes: int,
    settings: Mapping[str, Any] | None = None,
    decoded: bool = False,
) -> StoredWeight:
    """A StoredWeight of tensors that lie anywhere."""
    first = next(iter(parts.values()))
    return StoredWeight(
        name,
        label,
        shape,
        first.file,
        first.offset,
        sum(part.nbytes for part in parts.values()),
        form=form,
        parts=parts,
        settings=settings or {},
        packed_bytes=packed_bytes,
        decoded=decoded,
    )


def integer_bytes(
    shape: tuple[int, int], bits: int, groups: int, scale: str, *, offset: bool = False, order: bool = False
) -> int:
    """What a matrix takes as Integers with scales of the type `scale`."""
    rows, columns = shape
    return rows * columns * bits // 8 + rows * groups * (_SIZES[scale] + 4 * offset) + 8 * columns * order


class Parts:
    """The tensors of a checkpoint, and which are understood already."""

    def __init__(self, entries: Entries, what: str) -> None:
        self._left = dict(entries)
        self._what = what
        self.found: dict[str, TensorEntry] = {}

    def stems(self, suffix: str) -> Iterator[str]:
        """Names that end in `suffix`, without it."""
        yield from [name[: -len(suffix)] for name in self._left if name.endswith(suffix)]

    def get(self, name: str) -> TensorEntry | None:
        """A tensor that may be missing; it stays."""
        return self._left.get(name)

    def take(self, name: str, dtypes: Collection[str] | None = None, ndim: int | None = None) -> TensorEntry:
        """A tensor of one of these types. Raises UnsupportedCheckpoint."""
        entry = self._left.pop(name, None)
        if entry is None:
            raise UnsupportedCheckpoint(f"{self._what} lacks the tensor {name}, which its quantization needs")
        if dtypes is not None and entry.dtype not in dtypes:
            raise self.refused(name, f"is of type {entry.dtype}, not {' or '.join(dtypes)}")
        if (ndim is not None and len(entry.shape) != ndim) or 0 in entry.shape:
            raise self.refused(name, f"has the shape {list(entry.shape)}")
        return entry

    def groups(self, stem: str, ending: str, columns: int) -> dict[str, TensorEntry]:
        """`{"groups": the group of each column}`, or nothing where they lie in order. Raises UnsupportedCheckpoint."""
        name = f"{stem}.{ending}"
        if self.get(name) is None:
            return {}
        groups = self.take(name, ("I32", "I64"), 1)
        if groups.shape != (columns,):
            raise self.refused(stem, f"has {columns} columns, but g_idx of {groups.shape[0]}")
        return {"groups": groups}

    def drop(self, *suffixes: str) -> None:
        """Leave out what only concerns how activations are rounded."""
        for name in [name for name in self._left if name.endswith(suffixes)]:
            del self._left[name]

    def add(self, made: StoredWeight) -> None:
        """One more weight. Raises UnsupportedCheckpoint where there is one of its name."""
        if made.name in self._left or made.name in self.found:
            raise self.refused(made.name, "is there both quantized and plain")
        self.found[made.name] = made

    def all(self) -> dict[str, TensorEntry]:
        """The weights, and what is stored plainly."""
        return {**self._left, **self.found}

    def refused(self, name: str, problem: str) -> UnsupportedCheckpoint:
        """An error about one tensor."""
        return UnsupportedCheckpoint(f"{self._what}: its quantized tensor {name} {problem}")


def small_bytes(entry: TensorEntry) -> bytes:
    """The content of a tensor of few bytes. Raises UnsupportedCheckpoint."""
    if entry.nbytes > MAX_SMALL_BYTES:
        raise UnsupportedCheckpoint(f"{entry.file}: tensor {entry.name} has {entry.nbytes} bytes, which is no header")
    try:
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            data = file.read(entry.nbytes)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{entry.file}: cannot read tensor {entry.name}: {error.strerror}") from error
    if len(data) < entry.nbytes:
        raise UnsupportedCheckpoint(f"{entry.file} ends inside tensor {entry.name}; fetch the file again")
    return data
