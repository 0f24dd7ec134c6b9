"""Header of a network in ncnn's form: a `.param` file with its graph, a `.bin` file beside it. Reads no weights.

Text: 7767517, then how many layers and blobs, then a line for each layer: type, name, how many inputs and outputs,
their names, settings as `key=value`; the key -23300 - K gives K an array: its length and its values. Data: the tensors
of the layers in that order, each convolution's weights behind four bytes that say how they are stored, and padded to a
multiple of four; all else is float32.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

from ..errors import UnsupportedCheckpoint
from .types import TensorEntry

MAX_TEXT_BYTES = 1 << 20
"""Some 8,000 layers."""
_MAGIC = "7767517"
_STORED = {0x01306B47: ("F16", 2), 0: ("F32", 4)}
_NO_WEIGHTS = frozenset({"BinaryOp", "Concat", "Eltwise", "Input", "Interp", "PixelShuffle", "Split"})
_ARRAYS = -23300
_COUNT = re.compile(r"[0-9]{1,9}")
_NUMBER = re.compile(r"-?[0-9]{1,10}(\.[0-9]{1,9}(e[+-][0-9]{1,2})?)?")

Setting = float | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NcnnLayer:
    """One line of the graph."""

    type: str
    name: str
    inputs: tuple[str, ...]
    """Names of blobs, each of which a layer before it makes."""
    outputs: tuple[str, ...]
    settings: Mapping[int, Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class NcnnHeader:
    """What the two files say."""

    layers: tuple[NcnnLayer, ...] = field(repr=False)
    tensors: Mapping[str, TensorEntry] = field(repr=False)
    """`LAYER.weight` and `LAYER.bias`, of shapes as torch has them."""


def read_ncnn_header(path: Path) -> NcnnHeader:
    """Read and check the graph at `path`, and the places of its tensors in the `.bin` beside it.

    Raises UnsupportedCheckpoint for damaged files, other types of layers, and quantized weights.
    """
    data = path.with_suffix(".bin")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TEXT_BYTES + 1)
        layers = parse_ncnn_graph(text, path)
        with data.open("rb") as file:
            tensors = _Places(file, data).of(layers)
    except OSError as error:
        raise UnsupportedCheckpoint(f"{error.filename} cannot be read: {error.strerror or error}") from error
    return NcnnHeader(layers=layers, tensors=tensors)


def parse_ncnn_graph(text: bytes, path: Path) -> tuple[NcnnLayer, ...]:
    """The layers of a `.param` file. Raises UnsupportedCheckpoint."""
    try:
        lines = text.decode("ascii").splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines or lines[0].strip() != _MAGIC or len(text) > MAX_TEXT_BYTES:
        _refuse(path, f"it is no text of at most {MAX_TEXT_BYTES} bytes that begins with {_MAGIC}")
    counts = [int(each) for each in lines[1].split() if _COUNT.fullmatch(each)] if len(lines) > 1 else []
    layers = tuple(_layer(line, path) for line in lines[2:] if line.strip())
    made: set[str] = set()
    for layer in layers:
        if missing := [name for name in layer.inputs if name not in made]:
            _refuse(path, f"no layer before {layer.name[:80]!r} makes its input {missing[0][:80]!r}")
        before = len(made)
        made.update(layer.outputs)
        if len(made) != before + len(layer.outputs):
            _refuse(path, f"an output of {layer.name[:80]!r} has a name that another one has")
    if counts != [len(layers), len(made)] or len({layer.name for layer in layers}) != len(layers):
        _refuse(path, f"it has {len(layers)} layers and {len(made)} blobs, and says otherwise, or two are of one name")
    return layers


def _layer(line: str, path: Path) -> NcnnLayer:
    kind, name, *rest = (*line.split(), "", "")
    counts = [int(each) for each in rest[:2] if _COUNT.fullmatch(each)]
    words = [each for each in rest[2:] if each]
    if len(counts) != 2 or len(words) < sum(counts):
        _refuse(path, f"the line {line[:80]!r} is not that of a layer")
    inputs, outputs, told = words[: counts[0]], words[counts[0] : sum(counts)], words[sum(counts) :]
    settings: dict[int, Setting] = {}
    for word in told:
        key, _, value = word.partition("=")
        numbers = [float(each) if _NUMBER.fullmatch(each) else None for each in (key, *value.split(","))]
        found = [each for each in numbers[1:] if each is not None]
        number = int(numbers[0]) if numbers[0] is not None and numbers[0].is_integer() else None
        if number is None or len(found) != len(numbers) - 1:
            _refuse(path, f"{word[:80]!r} is not a setting of a layer")
        if number > _ARRAYS and len(found) == 1:
            settings[number] = found[0]
        elif number <= _ARRAYS and len(found) == found[0] + 1:
            settings[_ARRAYS - number] = tuple(found[1:])
        else:
            _refuse(path, f"{word[:80]!r} is not a setting of a layer")
    return NcnnLayer(type=kind, name=name, inputs=tuple(inputs), outputs=tuple(outputs), settings=settings)


class _Places:
    """Walks over the data, one layer after the other."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._bytes = os.fstat(file.fileno()).st_size
        self._at = 0
        self._found: dict[str, TensorEntry] = {}

    def of(self, layers: Sequence[NcnnLayer]) -> dict[str, TensorEntry]:
        """The tensors of `layers`, which are all that the file holds."""
        for layer in layers:
            if layer.type == "Convolution":
                self._convolution(layer)
            elif layer.type == "PReLU":
                self._tensor(layer, "weight", (self._whole(layer, 0),), "F32", 4)
            elif layer.type not in _NO_WEIGHTS:
                _refuse(self._path, f"layers of the type {layer.type[:80]!r} cannot be read")
        if self._at != self._bytes:
            _refuse(self._path, f"its tensors end at byte {self._at}, the file at byte {self._bytes}")
        return self._found

    def _convolution(self, layer: NcnnLayer) -> None:
        rows, width, total = (self._whole(layer, key) for key in (0, 1, 6))
        height = self._whole(layer, 11) if 11 in layer.settings else width
        columns, over = divmod(total, rows * height * width)
        if over or not columns:
            _refuse(self._path, f"{layer.name[:80]!r} cannot have {total} weights")
        self._file.seek(self._at)
        flag = int.from_bytes(self._file.read(4), "little")
        if flag not in _STORED:
            _refuse(self._path, f"the weights of {layer.name[:80]!r} are stored in the form {flag:#x}, not as floats")
        self._at += 4
        dtype, size = _STORED[flag]
        self._tensor(layer, "weight", (rows, columns, height, width), dtype, size)
        if layer.settings.get(5, 0):
            self._tensor(layer, "bias", (rows,), "F32", 4)

    def _tensor(self, layer: NcnnLayer, name: str, shape: tuple[int, ...], dtype: str, size: int) -> None:
        nbytes = math.prod(shape) * size
        entry = TensorEntry(f"{layer.name}.{name}", dtype, shape, self._path, self._at, nbytes)
        self._at += -(-nbytes // 4) * 4
        if self._at > self._bytes:
            _refuse(self._path, f"it ends at byte {self._bytes}, inside of {entry.name[:80]!r}")
        self._found[entry.name] = entry

    def _whole(self, layer: NcnnLayer, key: int) -> int:
        value = layer.settings.get(key)
        if not isinstance(value, float) or not value.is_integer() or not 0 < value < 1 << 31:
            _refuse(self._path, f"{layer.name[:80]!r} needs a whole number as its setting {key}, not {value}")
        return int(value)


def _refuse(path: Path, why: str) -> NoReturn:
    raise UnsupportedCheckpoint(f"{path} is not a sound ncnn network that can be read here: {why}")
