"""What a checkpoint is, from names and headers alone: no weight is read, no code of the checkpoint is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint
from .folder import ADAPTER_NAMES, PICKLE_SUFFIXES, Listing, list_folder, read_weights, refuse_pickles, wants_code
from .gguf_header import read_gguf_header
from .ncnn_header import read_ncnn_header
from .paths import below
from .recommended import FILE as RECOMMENDED
from .recommended import read_recommended
from .safetensors_header import read_safetensors_header
from .strict_json import read_json_object
from .types import Checkpoint, Detail, Progress, TensorEntry

_CODE_CONFIGS = frozenset(
    {
        "config.json", "generation_config.json", "model_index.json", "modular_model_index.json",
        "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    }
)  # fmt: skip
_NEEDS_CONFIG = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""What libraries call weights that have a config.json beside them. A lone file of another name may be a whole model."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json",
               "sentencepiece.bpe.model", "source.spm", "tiktoken.model")  # fmt: skip


def inspect(
    what: Path | str,
    *,
    offline: bool = False,
    reference: str | None = None,
    progress: Progress | None = None,
    detail: Detail | None = None,
) -> Checkpoint:
    """Header data of a checkpoint: of a `Path` to a folder or a file (`.safetensors`, `.gguf`, ncnn's `.param`), or of
    any reference as a `str`, which is resolved first, and pulled if it is not here and `offline` allows it.

    `reference` is what the person typed, if that was something else. Raises ModelNotFound, UnsupportedCheckpoint
    (damaged or incomplete, saying what) and UnsafeCheckpoint (pickles only, or names that leave the folder).

    Layouts: `transformers` (config.json and safetensors), `diffusers` (model_index.json; tensors are keyed
    `component/tensor.name`, and `metadata["components"]` holds each component's config), `component` (a model of
    diffusers without a pipeline), `safetensors`, `gguf`, `ncnn` (a file, or a folder that holds no other). If the
    checkpoint asks for code of its own, `metadata["wants_code"]` lists where; that code is listed, and never run here.
    """
    if isinstance(what, str):
        from .resolve import recommended, resolve

        path = resolve(what, offline=offline, progress=progress, detail=detail)
        found = inspect(path, reference=reference or what)
        return replace(found, defaults=recommended(what) or found.defaults)
    path = what
    reference = reference or str(what)
    revision = stored_revision(path)
    if path.is_dir():
        found = _folder(path, reference, revision)
        told = found.files.get(RECOMMENDED)
        return found if told is None else replace(found, defaults=read_recommended(told))
    if not path.is_file():
        raise ModelNotFound(f"{path} does not exist")
    return _single_file(path, reference, revision)


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise UnsupportedCheckpoint if nothing in the checkpoint can turn text into tokens. For families of text."""
    if checkpoint.layout == "gguf":
        missing = "tokenizer.ggml.tokens" not in checkpoint.metadata
    else:
        missing = not any(name.rpartition("/")[2] in _TOKENIZERS for name in checkpoint.files)
    if missing:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference} has no tokenizer: one of tokenizer.json, tokenizer.model, vocab.json is needed"
        )


def stored_revision(path: Path) -> str | None:
    """The revision at which the store holds `path`, if it does."""
    from .store import Store

    entry = Store.open().entry_of(path)
    return None if entry is None else entry.revision


def _single_file(path: Path, reference: str, revision: str | None) -> Checkpoint:
    suffix = path.suffix.lower()
    if suffix in (".gguf", ".safetensors"):
        is_gguf = suffix == ".gguf"
        header = read_gguf_header(path) if is_gguf else read_safetensors_header(path)
        return Checkpoint(
            reference=reference, root=path, layout="gguf" if is_gguf else "safetensors", config={},
            metadata=header.metadata, tensors=_some(header.tensors, path), files={}, revision=revision,
        )  # fmt: skip
    if suffix == ".param":
        graph = read_ncnn_header(path)
        return Checkpoint(
            reference=reference, root=path, layout="ncnn", config={}, metadata={"layers": graph.layers},
            tensors=_some(dict(graph.tensors), path), files={path.name: path}, revision=revision,
        )  # fmt: skip
    if suffix == ".bin" and path.with_suffix(".param").is_file():
        return _single_file(path.with_suffix(".param"), reference, revision)
    if suffix in PICKLE_SUFFIXES:
        raise UnsafeCheckpoint(
            f"{path} is a pickle, and loading a pickle can run code. "
            f"If you trust it: kamado convert-pickle {path} FOLDER"
        )
    raise UnsupportedCheckpoint(f"{path} is not a checkpoint: a folder, a .safetensors, .gguf or .param file is needed")


def _some(tensors: dict[str, TensorEntry], path: Path) -> dict[str, TensorEntry]:
    if not tensors:
        raise UnsupportedCheckpoint(f"{path} holds no tensors: weights are missing")
    return tensors


def _folder(root: Path, reference: str, revision: str | None) -> Checkpoint:
    listing = list_folder(root)
    top = listing.in_folder(listing.readable, "")
    if "model_index.json" in top:
        return _diffusers(listing, reference, revision)
    if "config.json" in top and listing.in_folder(listing.safetensors, ""):
        return _transformers(listing, reference, revision)
    ggufs = listing.in_folder(listing.gguf, "")
    if len(ggufs) == 1:
        return _single_file(below(root, ggufs[0]), reference, revision)
    if ggufs:
        raise UnsupportedCheckpoint(f"{root} holds several GGUF files; name one of them: {', '.join(ggufs[:6])}")
    if "config.json" in top:
        read_weights(listing, "")
        raise UnsupportedCheckpoint(f"{root} has a config.json, but weights are missing: no .safetensors file is there")
    if weights := listing.in_folder(listing.safetensors, ""):
        if "adapter_config.json" in top or set(ADAPTER_NAMES).intersection(weights):
            raise UnsupportedCheckpoint(f"{root} is an adapter, not a whole model; give it as --adapter")
        if len(weights) == 1 and weights[0] not in _NEEDS_CONFIG and "-of-0" not in weights[0]:
            return _single_file(below(root, weights[0]), reference, revision)
        raise UnsupportedCheckpoint(
            f"{root} has weights, but config.json is missing; fetch it, or name the .safetensors file itself"
        )
    graphs = listing.in_folder(listing.ncnn, "")
    if len(graphs) == 1:
        return _single_file(below(root, graphs[0]), reference, revision)
    if graphs:
        raise UnsupportedCheckpoint(f"{root} holds several networks of ncnn; name one: {', '.join(graphs[:6])}")
    if listing.pickles:
        refuse_pickles(root, list(listing.pickles))
    raise UnsupportedCheckpoint(
        f"{root} is not a checkpoint: neither config.json, model_index.json nor a .gguf file is in it"
    )


def _transformers(listing: Listing, reference: str, revision: str | None) -> Checkpoint:
    root = listing.root
    config = read_json_object(below(root, "config.json"))
    tensors = _some(read_weights(listing, ""), root)
    code = wants_code(listing, {"config.json": config, **configs_in(listing, "")})
    return Checkpoint(
        reference=reference, root=root, config=config,
        layout="component" if is_diffusers_model(config) else "transformers",
        metadata={"wants_code": code} if code else {},
        tensors=tensors, files=_files(listing), code=_code(listing) if code else {}, revision=revision,
    )  # fmt: skip


def _diffusers(listing: Listing, reference: str, revision: str | None) -> Checkpoint:
    root = listing.root
    index = read_json_object(below(root, "model_index.json"))
    tensors: dict[str, TensorEntry] = {}
    components: dict[str, dict[str, Any]] = {}
    configs = {"model_index.json": index, **configs_in(listing, "")}
    for name, value in index.items():
        if name.startswith("_") or not _is_component(value):
            continue
        folder = below(root, name, where=str(root / "model_index.json"))
        if not folder.is_dir() or "/" in name:
            raise UnsupportedCheckpoint(f"{root}: the component {name!r} of model_index.json is missing")
        configs.update(configs_in(listing, name))
        weights = read_weights(listing, name)
        if "config.json" in listing.in_folder(listing.readable, name):
            components[name] = read_json_object(below(root, f"{name}/config.json"))
            if not weights:
                raise UnsupportedCheckpoint(f"{root}: weights are missing: no .safetensors file is in {name}")
        elif weights:
            raise UnsupportedCheckpoint(f"{root}: config.json of the component {name!r} is missing")
        tensors.update({f"{name}/{key}": entry for key, entry in weights.items()})
    code = wants_code(listing, configs)
    return Checkpoint(
        reference=reference, root=root, layout="diffusers", config=index,
        metadata={"components": components, **({"wants_code": code} if code else {})},
        tensors=_some(tensors, root), files=_files(listing), code=_code(listing) if code else {}, revision=revision,
    )  # fmt: skip


def _is_component(value: object) -> bool:
    """`[library, class]` with both set. Other values are options of the pipeline, `[null, null]` is a missing part."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def is_diffusers_model(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of one model of diffusers."""
    return isinstance(config.get("_class_name"), str) and "architectures" not in config


def configs_in(listing: Listing, folder: str) -> dict[str, dict[str, Any]]:
    """The JSON files of `folder` that could ask for code, by their name relative to the root."""
    prefix = f"{folder}/" if folder else ""
    names = [prefix + name for name in listing.in_folder(listing.readable, folder) if name in _CODE_CONFIGS]
    return {name: read_json_object(below(listing.root, name)) for name in names}


def _files(listing: Listing) -> dict[str, Path]:
    return {name: below(listing.root, name) for name in listing.readable}


def _code(listing: Listing) -> dict[str, Path]:
    return {name: below(listing.root, name, where=str(listing.root)) for name in listing.in_folder(listing.code, "")}
