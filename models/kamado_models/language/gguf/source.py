"""What the configuration and the tensor map need of a GGUF file: its key-values, and which tensors it has. No torch."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint

from .metadata import GgufMetadata

_MAX_SMALL_BYTES = 1 << 16


class GgufSource:
    """Header data of one GGUF file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.file = checkpoint.root
        self.meta = GgufMetadata(checkpoint)
        self.tensors: Mapping[str, TensorEntry] = checkpoint.tensors

    @property
    def architecture(self) -> str:
        """GGUF's name: `llama`, `qwen3moe`, ..."""
        return self.meta.architecture

    def num_layers(self) -> int:
        """Number of blocks. Raises UnsupportedCheckpoint when the file has no tensors of the last one."""
        count = self.meta.integer("{arch}.block_count")
        if count < 1 or not any(name.startswith(f"blk.{count - 1}.") for name in self.tensors):
            raise UnsupportedCheckpoint(
                f"{self.file} says that it has {count} layers, but lacks the tensors of layer {count - 1}"
            )
        return count

    def has(self, *names: str) -> bool:
        """Whether one of these tensors is there."""
        return any(name in self.tensors for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises UnsupportedCheckpoint when the tensor is missing."""
        entry = self.tensors.get(name)
        if entry is None:
            raise UnsupportedCheckpoint(f"{self.file} lacks the tensor {name}, which {self.architecture} models need")
        return entry.shape

    def floats(self, name: str) -> list[float]:
        """The numbers of a small float32 tensor (RoPE factors), read now. Raises UnsupportedCheckpoint."""
        entry = self.tensors[name]
        if entry.dtype != "F32" or entry.nbytes != 4 * entry.numel or entry.nbytes > _MAX_SMALL_BYTES:
            raise UnsupportedCheckpoint(f"{self.file}: tensor {name} must be a short list of float32 numbers")
        try:
            with open(entry.file, "rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.nbytes)
        except OSError as error:
            raise UnsupportedCheckpoint(f"{entry.file}: cannot read tensor {name}: {error.strerror}") from error
        if len(data) < entry.nbytes:
            raise UnsupportedCheckpoint(f"{entry.file} ends inside tensor {name}; fetch the file again")
        return list(struct.unpack(f"<{entry.numel}f", data))
