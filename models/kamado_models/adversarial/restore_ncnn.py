"""Real-ESRGAN's two networks in ncnn's form: which tensor is which, told by the graph. No torch.

Nothing of the graph is taken on trust: each network is drawn here as it was published (RRDBNet: Wang et al., "ESRGAN",
2018; SRVGG: Wang et al., "Real-ESRGAN", 2021), in the sizes that the file's convolutions have, and must be what the
file has, layer for layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kamado.checkpoint.ncnn_header import NcnnLayer, Setting
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint

_SUM: Mapping[int, Setting] = {0: 1.0, 1: (0.2, 1.0)}
_LEAKY: Mapping[int, Setting] = {9: 2.0, 10: (0.2,)}
_COLOURS = 3
_GROWTH = 32
"""Features that each convolution of a dense block adds: spandrel builds no others."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done, to the results of which steps, numbered from 0."""

    type: str
    inputs: tuple[int, ...]
    settings: Mapping[int, Setting]


class _Drawing:
    """A graph that is being drawn."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.names: dict[int, str] = {}
        """Of steps that have weights."""

    def add(self, kind: str, *inputs: int, settings: Mapping[int, Setting] | None = None, name: str = "") -> int:
        number = len(self.steps)
        self.steps.append(_Step(kind, inputs, settings or {}))
        if name:
            self.names[number] = name
        return number

    def convolution(self, given: int, name: str, before: int, after: int, *, leaky: bool = False) -> int:
        settings: dict[int, Setting] = {0: after, 1: 3, 4: 1, 5: 1, 6: before * after * 9, **(_LEAKY if leaky else {})}
        return self.add("Convolution", given, settings=settings, name=name)

    def enlarged(self, given: int, scale: float) -> int:
        return self.add("Interp", given, settings={0: 1, 1: scale, 2: scale})


def _rrdbnet(features: int, blocks: int) -> _Drawing:
    it = _Drawing()
    first = at = it.convolution(it.add("Input"), "conv_first", _COLOURS, features)
    for block in range(blocks):
        start = at
        for part in (1, 2, 3):
            given = [at]
            for number in (1, 2, 3, 4, 5):
                wide = features + (number - 1) * _GROWTH
                whole = it.add("Concat", *given) if number > 1 else at
                last = number == 5
                name = f"body.{block}.rdb{part}.conv{number}"
                given.append(it.convolution(whole, name, wide, features if last else _GROWTH, leaky=not last))
            at = it.add("Eltwise", given[-1], at, settings=_SUM)
        at = it.add("Eltwise", at, start, settings=_SUM)
    at = it.add("BinaryOp", first, it.convolution(at, "conv_body", features, features))
    for name in ("conv_up1", "conv_up2"):
        at = it.convolution(it.enlarged(at, 2), name, features, features, leaky=True)
    at = it.convolution(at, "conv_hr", features, features, leaky=True)
    it.convolution(at, "conv_last", features, _COLOURS)
    return it


def _srvgg(features: int, layers: int, scale: int) -> _Drawing:
    it = _Drawing()
    picture = at = it.add("Input")
    before = _COLOURS
    for number in range(layers):
        at = it.convolution(at, f"body.{2 * number}", before, features)
        at = it.add("PReLU", at, settings={0: features}, name=f"body.{2 * number + 1}")
        before = features
    at = it.convolution(at, f"body.{2 * layers}", features, _COLOURS * scale**2)
    at = it.add("PixelShuffle", at, settings={0: scale})
    it.add("BinaryOp", at, it.enlarged(picture, scale))
    return it


def published_names(checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """The tensors of a checkpoint of the layout `ncnn`, by the names that the published networks have for them.
    Raises UnsupportedCheckpoint for every other network."""
    layers: Sequence[NcnnLayer] = checkpoint.metadata["layers"]
    kept = [layer for layer in layers if layer.type != "Split"]
    steps = _steps(layers)
    drawn = _drawn(kept)
    if steps != drawn.steps:
        pairs = enumerate(zip(steps, drawn.steps, strict=False))
        first = next((number for number, (one, other) in pairs if one != other), min(len(steps), len(drawn.steps)))
        where = f"at its layer {kept[first].name[:80]!r}" if first < len(kept) else "where it ends"
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} is neither an RRDBNet (4 times) nor an SRVGG network of Real-ESRGAN, and others "
            f"in ncnn's form are not run: it differs {where}"
        )
    found = {}
    for number, name in drawn.names.items():
        for kind in ("weight", "bias"):
            entry = checkpoint.tensors.get(f"{kept[number].name}.{kind}")
            if entry is not None:
                found[f"{name}.{kind}"] = replace(entry, name=f"{name}.{kind}")
    return found


def _steps(layers: Sequence[NcnnLayer]) -> list[_Step]:
    """The graph without the layers that only give a blob several names."""
    numbers: dict[str, int] = {}
    steps: list[_Step] = []
    for layer in layers:
        inputs = tuple(numbers[name] for name in layer.inputs)
        if layer.type == "Split" and len(inputs) == 1:
            numbers |= dict.fromkeys(layer.outputs, inputs[0])
            continue
        numbers |= dict.fromkeys(layer.outputs, len(steps))
        steps.append(_Step(layer.type, inputs, layer.settings))
    return steps


def _drawn(layers: Sequence[NcnnLayer]) -> _Drawing:
    """The network that it must be, if it is one."""
    wide = [_whole(layer) for layer in layers if layer.type == "Convolution"]
    shuffles = [_whole(layer) for layer in layers if layer.type == "PixelShuffle"]
    features = wide[0] if wide else 0
    return _srvgg(features, len(wide) - 1, shuffles[0]) if shuffles else _rrdbnet(features, (len(wide) - 6) // 15)


def _whole(layer: NcnnLayer) -> int:
    value = layer.settings.get(0)
    return int(value) if isinstance(value, float) else 0
