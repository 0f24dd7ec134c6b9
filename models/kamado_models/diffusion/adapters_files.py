"""Files of adapters: where a reference leads, what is in the file, and which kind of adapter that is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kamado.checkpoint.folder import ADAPTER_NAMES, list_folder, refuse_pickles
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.paths import below
from kamado.checkpoint.resolve import resolve
from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.stream import LazyTensor

Kind = Literal["lora", "embedding", "image"]

MAX_TENSORS = 50_000
_PEFT_NAME = "adapter_model.safetensors"
_EMBEDDING_NAMES = frozenset({"emb_params", "clip_l", "clip_g"})
_LORA_SIGNS = ("lora", "hada_", "lokr_", "oft_", "diff_b", "dora_scale")
_IMAGE_SIGNS = ("image_proj.", "ip_adapter.")
# Readers of other programs' names count layers with the numbers in them.
_LONG_NUMBER = re.compile(r"[0-9]{5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """One adapter's file. Nothing but its header has been read."""

    reference: str
    """What the person typed."""
    path: Path
    kind: Kind
    entries: Mapping[str, TensorEntry] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    """What the file's header says beside its tensors."""
    config: Mapping[str, Any] = field(repr=False)
    """`adapter_config.json` beside it, as peft writes it; otherwise empty."""

    @property
    def what(self) -> str:
        return f"adapter {self.reference}"

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def read(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, as stored. Raises UnsupportedCheckpoint, also for NaN and infinity."""
        found = {}
        for name, entry in self.entries.items():
            tensor = LazyTensor(entry).read()
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise UnsupportedCheckpoint(f"{self.what}: its tensor {name!r:.120} holds NaN or infinity")
            found[name] = tensor
        return found


def find_file(reference: str, *, offline: bool) -> Path:
    """The one file that the reference means, pulled if need be.

    Raises InvalidRequest, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
    path = resolve(reference, offline=offline)
    if not path.is_dir():
        return path
    listing = list_folder(path)
    if "model_index.json" in listing.in_folder(listing.readable, ""):
        raise UnsupportedCheckpoint(f"adapter {reference} is a whole model, not an adapter")
    names = listing.in_folder(listing.safetensors, "")
    usual = [name for name in ADAPTER_NAMES if name in names]
    if usual or len(names) == 1:
        return below(path, (usual or names)[0])
    if names:
        raise UnsupportedCheckpoint(
            f"adapter {reference}: it is unclear which of its files is meant: {', '.join(names[:4])}; name the file"
        )
    pickles = listing.in_folder(listing.pickles, "")
    if pickles:
        refuse_pickles(path, pickles)
    raise UnsupportedCheckpoint(f"adapter {reference}: no .safetensors file is in {path}; name the file itself")


def open_file(reference: str, path: Path) -> AdapterFile:
    """What `path` is, from its header. Raises UnsupportedCheckpoint, UnsafeCheckpoint."""
    checkpoint = inspect(path, reference=reference)
    if checkpoint.layout != "safetensors":
        raise UnsupportedCheckpoint(f"adapter {reference} must be a .safetensors file, not {checkpoint.layout}")
    names = list(checkpoint.tensors)
    odd = next((name for name in names if _LONG_NUMBER.search(name)), None)
    if odd is not None or len(names) > MAX_TENSORS:
        raise UnsupportedCheckpoint(f"adapter {reference}: no adapter has so many layers ({(odd or names[0])!r:.120})")
    beside = path.parent / "adapter_config.json"
    config = read_json_object(beside) if path.name == _PEFT_NAME and beside.is_file() else {}
    return AdapterFile(
        reference=reference,
        path=path,
        kind=_kind(reference, checkpoint.tensors),
        entries=checkpoint.tensors,
        metadata=checkpoint.metadata,
        config=config,
    )


def shown(names: list[str]) -> str:
    """Three names from a stranger's file, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name!r:.100}" for name in names[:3]) + more


def _kind(reference: str, tensors: Mapping[str, TensorEntry]) -> Kind:
    if any(name.startswith(_IMAGE_SIGNS) for name in tensors):
        return "image"
    if any(sign in name for name in tensors for sign in _LORA_SIGNS):
        return "lora"
    flat = all(len(entry.shape) in (1, 2) for entry in tensors.values())
    if flat and (len(tensors) == 1 or tensors.keys() <= _EMBEDDING_NAMES):
        return "embedding"
    raise UnsupportedCheckpoint(
        f"adapter {reference} is neither a LoRA nor an embedding nor an IP-Adapter; its tensors are "
        f"{shown(list(tensors))}"
    )
