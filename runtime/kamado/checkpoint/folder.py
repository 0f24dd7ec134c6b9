"""What lies in a checkpoint's folder: which files may be read, which hold weights, which would run code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnsafeCheckpoint, UnsupportedCheckpoint
from .paths import below
from .safetensors_header import read_safetensors_header
from .strict_json import read_json_object
from .types import TensorEntry

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
READABLE_SUFFIXES = frozenset(
    {".json", ".jsonl", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe", ".spm", ".md", ".npy", ".npz"}
)
"""Files of a checkpoint that are data and may be read. Code (`.py`), pickles and everything unknown stay out. Who opens
numpy's files (`.npy`, `.npz`: voices) refuses those that hold pickles."""
ADAPTER_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "learned_embeds.safetensors")
"""What diffusers and peft call the file of an adapter, where there are several."""
MAX_FILES = 10_000
MAX_FOLDER_DEPTH = 4
MAX_INDEX_BYTES = 32 << 20
_MAX_SEARCH_DEPTH = 64
_INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")  # the part before json names a variant
_CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_pipeline", "custom_generate"})
_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "_attn_implementation_internal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Names of regular files below a root, hidden ones left out, by what they are."""

    root: Path
    readable: tuple[str, ...]
    safetensors: tuple[str, ...]
    gguf: tuple[str, ...]
    ncnn: tuple[str, ...]
    """Graphs (`.param`); the `.bin` files beside them are among the pickles by their names."""
    pickles: tuple[str, ...]
    code: tuple[str, ...] = field(default=())

    def in_folder(self, names: tuple[str, ...], folder: str) -> list[str]:
        """Those of `names` that lie directly in `folder` ("" for the root), without the folder's name."""
        prefix = f"{folder}/" if folder else ""
        return [n[len(prefix) :] for n in names if n.startswith(prefix) and "/" not in n[len(prefix) :]]


def list_folder(root: Path) -> Listing:
    """List `root`, at most 4 folders deep. Raises UnsafeCheckpoint for a link that leaves it, UnsupportedCheckpoint
    for a folder that cannot be read or has more than 10,000 files."""
    names: list[str] = []
    _walk(root, "", names)
    by_suffix: dict[str, list[str]] = {}
    for name in sorted(names):
        suffix = os.path.splitext(name)[1].lower()
        by_suffix.setdefault(suffix, []).append(name)

    def of(suffixes: frozenset[str]) -> tuple[str, ...]:
        chosen = tuple(sorted(name for suffix in suffixes for name in by_suffix.get(suffix, ())))
        for name in chosen:
            below(root, name, where=str(root))
        return chosen

    return Listing(
        root=root,
        readable=of(READABLE_SUFFIXES),
        safetensors=of(frozenset({".safetensors"})),
        gguf=of(frozenset({".gguf"})),
        ncnn=of(frozenset({".param"})),
        pickles=of(PICKLE_SUFFIXES),
        code=tuple(by_suffix.get(".py", ())),
    )


def _walk(root: Path, folder: str, names: list[str], depth: int = 0) -> None:
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                # Linked folders are not entered: they could be a loop or lead out of the root.
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_FOLDER_DEPTH:
                        _walk(root, name, names, depth + 1)
                elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    names.append(name)
                if len(names) > MAX_FILES:
                    raise UnsupportedCheckpoint(
                        f"{root} has more than {MAX_FILES} files; it is not a checkpoint's folder"
                    )
    except OSError as error:
        raise UnsupportedCheckpoint(f"{root / folder} cannot be listed: {error.strerror or error}") from error


def read_weights(listing: Listing, folder: str) -> dict[str, TensorEntry]:
    """The tensors of the safetensors files directly in `folder` of the listing, by name; empty if it has no weights.

    Raises UnsafeCheckpoint if there are only pickles, UnsupportedCheckpoint if files are damaged, missing or unclear.
    """
    names = listing.in_folder(listing.safetensors, folder)
    base = listing.root / folder
    single, index = _choose(names, listing.in_folder(listing.readable, folder), base)
    if index is not None:
        return _read_sharded(base, index)
    if single is not None:
        return read_safetensors_header(below(base, single, where=str(base))).tensors
    pickles = [name for name in listing.in_folder(listing.pickles, folder) if not _is_by_product(name)]
    if pickles:
        refuse_pickles(listing.root, [f"{folder}/{name}" if folder else name for name in pickles])
    return {}


def refuse_pickles(root: Path, names: list[str]) -> None:
    """Raise UnsafeCheckpoint that names the pickles and the explicit way to convert them."""
    raise UnsafeCheckpoint(
        f"{root} has its weights only as pickles ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}), "
        f"and loading a pickle can run code. If you trust it: kamado convert-pickle {root} FOLDER"
    )


def _is_by_product(name: str) -> bool:
    """Pickles that training leaves behind; they hold no weights."""
    return name.startswith(("training_args", "optimizer", "scheduler", "rng_state", "scaler"))


def _choose(names: list[str], readable: list[str], base: Path) -> tuple[str | None, str | None]:
    """Either one file or one index: the plain one before variants (`model.fp16.safetensors`)."""
    indexes = [name for name in readable if _INDEX.fullmatch(name)]
    for stem in ("model", "diffusion_pytorch_model"):
        if f"{stem}.safetensors" in names:
            return f"{stem}.safetensors", None
        if f"{stem}.safetensors.index.json" in indexes:
            return None, f"{stem}.safetensors.index.json"
    if len(indexes) == 1:
        return None, indexes[0]
    if len(names) == 1 and "-of-0" not in names[0]:
        return names[0], None
    if names or indexes:
        shards = [name for name in names if "-of-0" in name]
        what = (
            f"the index of its shards ({shards[0]}, ...) is missing" if shards else f"it holds {', '.join(names[:4])}"
        )
        raise UnsupportedCheckpoint(f"{base}: it is unclear which weights to take: {what}; name one file instead")
    return None, None


def _read_sharded(base: Path, index_name: str) -> dict[str, TensorEntry]:
    index = below(base, index_name, where=str(base))
    weight_map = read_json_object(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedCheckpoint(f"{index} has no weight_map that says which tensor lies in which file")
    shards: dict[str, dict[str, TensorEntry]] = {}
    for shard in dict.fromkeys(str(value) if isinstance(value, str) else repr(value) for value in weight_map.values()):
        path = below(base, shard, where=str(index))
        if not shard.endswith(".safetensors"):
            refuse_pickles(base, [shard])
        if not path.is_file():
            raise UnsupportedCheckpoint(f"{base}: weights are missing: {shard} is named in {index_name} but not there")
        shards[shard] = read_safetensors_header(path).tensors
    tensors: dict[str, TensorEntry] = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise UnsupportedCheckpoint(f"{base}: {index_name} says that {name!r} lies in {shard}, but it does not")
        tensors[name] = shards[shard][name]
    return tensors


def wants_code(listing: Listing, configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The places that ask for code other than that of the installed libraries, as `file: key = value`.

    `configs`: parsed JSON files by name. A family refuses such a checkpoint unless it was told otherwise.
    """
    found: list[str] = []
    for file, config in configs.items():
        found += [f"{file}: {key} = {value}" for key, value in _search(config)]
    # diffusers names a component's class as [module, class]; a module file beside it would be imported.
    for component, value in configs.get("model_index.json", {}).items():
        module = value[0] if isinstance(value, list) and value else None
        if isinstance(module, str) and {f"{component}/{module}.py", f"{module}.py"} & set(listing.code):
            found.append(f"model_index.json: {component} = {module}.py")
    return found


def _search(value: object, depth: int = 0) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if depth > _MAX_SEARCH_DEPTH:
        return found
    if isinstance(value, list):
        for item in value:
            found += _search(item, depth + 1)
    if isinstance(value, dict):
        for key, item in value.items():
            if (
                (key in _CODE_KEYS and item)
                or (key == "trust_remote_code" and item)
                or (key in _KERNEL_KEYS and isinstance(item, str) and "/" in item)
            ):
                found.append((key, str(item)[:120]))
            elif isinstance(item, dict | list):
                found += _search(item, depth + 1)
    return found
