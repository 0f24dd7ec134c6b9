"""Networks in ncnn's form for tests, written from the tensors of the published networks."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

HALF = 0x01306B47
LEAKY = "9=2 -23310=1,2.000000e-01"
RESIDUAL = "0=1 -23301=2,2.000000e-01,1.000000e+00"


class Writer:
    """Collects layers; a blob is called by the name of its layer."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.state = state
        self.dtype = dtype
        self.lines: list[tuple[str, str, Sequence[str], str]] = []
        self.data = b""

    def add(self, kind: str, inputs: Sequence[str], settings: str = "") -> str:
        name = f"{kind}_{len(self.lines)}"
        self.lines.append((kind, name, tuple(inputs), settings))
        return name

    def convolution(self, given: str, name: str, settings: str = "") -> str:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        raw = weight.to(self.dtype).numpy().tobytes()
        self.data += struct.pack("<I", HALF if self.dtype == torch.float16 else 0) + raw + bytes(-len(raw) % 4)
        self.data += bias.float().numpy().tobytes()
        sizes = f"0={len(bias)} 1=3 4=1 5=1 6={weight.numel()}"
        return self.add("Convolution", [given], f"{sizes} {settings}".strip())

    def text(self) -> str:
        """The graph, where each blob is used once: others go through a Split."""
        uses = Counter(name for _, _, inputs, _ in self.lines for name in inputs)
        left = dict(uses)
        lines, blobs = [], 0
        for kind, name, inputs, settings in self.lines:
            given = []
            for each in inputs:
                left[each] -= 1
                given.append(each if uses[each] == 1 else f"{each}_{left[each]}")
            lines.append(" ".join([f"{kind:<24} {name:<24} {len(inputs)} 1", *given, name, settings]))
            blobs += 1
            if uses[name] > 1:
                copies = [f"{name}_{number}" for number in range(uses[name])]
                lines.append(" ".join([f"Split                    copy_{name} 1 {len(copies)} {name}", *copies]))
                blobs += len(copies)
        return "\n".join(["7767517", f"{len(lines)} {blobs}", *lines, ""])


def rrdbnet(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> Writer:
    """A network by Real-ESRGAN's names: conv_first, body.N.rdbM.convK, ..."""
    out = Writer(state, dtype)
    first = out.convolution(out.add("Input", []), "conv_first")
    last = first
    for block in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))):
        shortcut = last
        for part in "123":
            path = [last]
            for number in "1234":
                joined = path[0] if len(path) == 1 else out.add("Concat", path)
                path.append(out.convolution(joined, f"body.{block}.rdb{part}.conv{number}", LEAKY))
            made = out.convolution(out.add("Concat", path), f"body.{block}.rdb{part}.conv5")
            last = out.add("Eltwise", [made, last], RESIDUAL)
        last = out.add("Eltwise", [last, shortcut], RESIDUAL)
    last = out.add("BinaryOp", [first, out.convolution(last, "conv_body")])
    for name in ("conv_up1", "conv_up2"):
        last = out.convolution(out.add("Interp", [last], "0=1 1=2.000000e+00 2=2.000000e+00"), name, LEAKY)
    out.convolution(out.convolution(last, "conv_hr", LEAKY), "conv_last")
    return out


def srvgg(state: Mapping[str, Tensor], scale: int, dtype: torch.dtype = torch.float16) -> Writer:
    """A network by the names of SRVGG: body.N."""
    out = Writer(state, dtype)
    picture = last = out.add("Input", [])
    for number in range(1 + max(int(name.split(".")[1]) for name in state)):
        if f"body.{number}.bias" in state:
            last = out.convolution(last, f"body.{number}")
        else:
            slopes = state[f"body.{number}.weight"]
            out.data += slopes.float().numpy().tobytes()
            last = out.add("PReLU", [last], f"0={len(slopes)}")
    last = out.add("PixelShuffle", [last], f"0={scale}")
    large = out.add("Interp", [picture], f"0=1 1={scale}.000000e+00 2={scale}.000000e+00")
    out.add("BinaryOp", [last, large])
    return out


def saved(written: Writer, folder: Path, stem: str = "net") -> Path:
    """The path of the graph."""
    (folder / f"{stem}.bin").write_bytes(written.data)
    path = folder / f"{stem}.param"
    path.write_text(written.text())
    return path
