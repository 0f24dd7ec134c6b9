"""Which model a single file holds, by the names and shapes of its tensors. Imports no torch.

What each kind is made of stands in the TOML files beside this one; sizes that a file tells by itself are taken from it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint

KINDS = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3", "flux", "flux-schnell")

_UNET = "model.diffusion_model."
_TEXTS = {  # the more telling first: the refiner's prefix is also the start of names in others
    "sdxl": "conditioner.embedders.1.model.",
    "sdxl-refiner": "conditioner.embedders.0.model.",
    "sd2": "cond_stage_model.model.",
    "sd1": "cond_stage_model.transformer.",
}
_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Of the text states that a UNet reads, where its file has no text encoder."""
_ATTENDS = re.compile(r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
_DOUBLE, _SINGLE = re.compile(r"double_blocks\.(\d+)\."), re.compile(r"single_blocks\.(\d+)\.")
_JOINT, _SECOND = re.compile(r"joint_blocks\.(\d+)\."), re.compile(r"joint_blocks\.(\d+)\.x_block\.attn2\.")
_UNUSED = (r"(^|\.)position_ids$", "^logit_scale$", "^attn_mask$", r"^loss\.", r"^model_ema\.")
"""Of all parts: what is computed anew, or was needed for training alone."""
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One model of a kind."""

    kind: tuple[str, str]
    """(library, class)."""
    prefixes: tuple[str, ...]
    """What the names of its tensors start with, in one file or another; "" is whatever no other part claims."""
    config: Mapping[str, Any]
    unused: tuple[str, ...]
    """Tensors of the file that the class has no place for: patterns of the names after the prefix."""
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What one kind of file is made of."""

    name: str
    title: str
    denoiser: str
    """The part that every file of this kind has."""
    variants: Mapping[int, Mapping[str, str]]
    """By channels that the denoiser reads: its `pipeline`, and `base`, where the tokenizers can be had."""
    settings: Mapping[str, Any]
    tokenizers: Mapping[str, str]
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file turned out to be."""

    kind: Kind
    channels: int
    tensors: Mapping[str, Mapping[str, TensorEntry]] = field(repr=False)
    """Of each part that the file has, by the names in the file."""
    told: Mapping[str, Any]
    """Entries of the denoiser's configuration that the file tells, and that must be those of any other source."""
    sizes: Mapping[str, Any]
    """Further entries, where there is no other source."""

    @property
    def pipeline(self) -> str:
        return self.kind.variants[self.channels]["pipeline"]

    @property
    def base(self) -> str:
        """The repository of the model that files of this kind come from."""
        return self.kind.variants[self.channels]["base"]


def is_known(tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether a file with these tensors is of a kind that is known here."""
    return _seen(tensors) is not None


def recognised(tensors: Mapping[str, TensorEntry]) -> Found | None:
    """What a file with these tensors is; None for what is of no kind that is known here. Raises UnsupportedCheckpoint
    for a variant of a known kind that cannot be run."""
    seen = _seen(tensors)
    if seen is None:
        return None
    name, channels, told, sizes = seen
    kind = load_kind(name)
    if channels not in kind.variants:
        raise UnsupportedCheckpoint(
            f"a {kind.title} model that reads {channels} channels cannot be run; those with "
            f"{', '.join(map(str, kind.variants))} can"
        )
    return Found(kind=kind, channels=channels, tensors=_divided(kind, tensors), told=told, sizes=sizes)


@cache
def load_kind(name: str) -> Kind:
    """One of `KINDS`."""
    facts = _facts(name)
    return Kind(
        name=name,
        title=facts["title"],
        denoiser=facts["denoiser"],
        variants={int(channels): variant for channels, variant in facts["variants"].items() if variant},
        settings=facts.get("settings", {}),
        tokenizers={key: value for key, value in facts["tokenizers"].items() if value},
        scheduler=facts["scheduler"],
        parts={
            key: Part(
                kind=("transformers" if key.startswith("text_encoder") else "diffusers", part["class"]),
                prefixes=tuple(part["prefixes"]),
                config=part["config"],
                unused=(*_UNUSED, *part.get("unused", ())),
                optional=part.get("optional", False),
            )
            for key, part in facts["components"].items()
            if part["class"]
        },
    )


def _facts(name: str) -> dict[str, Any]:
    facts = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return _merged(_facts(facts["like"]), facts) if "like" in facts else facts


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the entries of `over` in place of its own, table by table. A scheduler is one whole."""
    result = dict(under)
    for key, value in over.items():
        deeper = isinstance(value, dict) and value and isinstance(result.get(key), dict) and key != "scheduler"
        result[key] = _merged(result[key], value) if deeper else value
    return result


_Seen = tuple[str, int, dict[str, Any], dict[str, Any]]
"""(kind, channels, told, sizes); see Found."""


def _seen(tensors: Mapping[str, TensorEntry]) -> _Seen | None:
    return next((seen for look in (_unet, _sd3, _flux) if (seen := look(tensors)) is not None), None)


def _unet(tensors: Mapping[str, TensorEntry]) -> _Seen | None:
    first = tensors.get(f"{_UNET}input_blocks.0.0.weight")
    attends = next((entry for name, entry in tensors.items() if _ATTENDS.fullmatch(name.removeprefix(_UNET))), None)
    if first is None or len(first.shape) != 4 or attends is None or len(attends.shape) != 2:
        return None
    width = attends.shape[1]
    name = next((kind for kind, prefix in _TEXTS.items() if any(key.startswith(prefix) for key in tensors)), None)
    name = name or _WIDTHS.get(width)
    if name is None:
        return None
    return name, first.shape[1], {"cross_attention_dim": width}, {"in_channels": first.shape[1]}


def _sd3(tensors: Mapping[str, TensorEntry]) -> _Seen | None:
    shapes = _shapes(tensors, "joint_blocks.0.x_block.attn.qkv.weight")
    patches, context = shapes.get("x_embedder.proj.weight", ()), shapes.get("context_embedder.weight", ())
    positions, pooled = shapes.get("pos_embed", ()), shapes.get("y_embedder.mlp.0.weight", ())
    if (len(patches), len(context), len(positions), len(pooled)) != (4, 2, 3, 2):
        return None
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    told = {
        "num_layers": len(_numbers(_JOINT, shapes)),
        "caption_projection_dim": context[0],
        "joint_attention_dim": context[1],
        "pooled_projection_dim": pooled[1],
        "pos_embed_max_size": isqrt(positions[1]),
        "dual_attention_layers": sorted(_numbers(_SECOND, shapes)),
        "qk_norm": "rms_norm" if normed else None,
    }
    return "sd3", patches[1], told, {"in_channels": patches[1], "num_attention_heads": context[0] // 64}


def _flux(tensors: Mapping[str, TensorEntry]) -> _Seen | None:
    shapes = _shapes(tensors, "double_blocks.0.img_attn.qkv.weight")
    # Its successors have blocks of the same names, but no place for a pooled text or for the text's states.
    image, text, pooled = (shapes.get(f"{each}.weight", ()) for each in ("img_in", "txt_in", "vector_in.in_layer"))
    out = shapes.get("final_layer.linear.weight", ())
    if {len(image), len(text), len(pooled), len(out)} != {2}:
        return None
    guided = "guidance_in.in_layer.weight" in shapes
    told = {
        "num_layers": len(_numbers(_DOUBLE, shapes)),
        "num_single_layers": len(_numbers(_SINGLE, shapes)),
        "joint_attention_dim": text[1],
        "pooled_projection_dim": pooled[1],
        "guidance_embeds": guided,
    }
    sizes = {"in_channels": image[1], "out_channels": out[0], "num_attention_heads": image[0] // 128}
    return "flux" if guided else "flux-schnell", image[1], told, sizes


def _shapes(tensors: Mapping[str, TensorEntry], sign: str) -> dict[str, tuple[int, ...]]:
    """Shapes by the names after the denoiser's prefix; empty without the tensor `sign`."""
    prefix = next((each for each in (_UNET, "") if each + sign in tensors), None)
    if prefix is None:
        return {}
    return {name[len(prefix) :]: entry.shape for name, entry in tensors.items() if name.startswith(prefix)}


def _numbers(pattern: re.Pattern[str], names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := pattern.match(name))}


def _divided(kind: Kind, tensors: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """The file's tensors by part. What no part of the kind claims is left out: averaged weights, training states."""
    prefixes = {prefix: name for name, part in kind.parts.items() for prefix in part.prefixes if prefix}
    bare = not any(key.startswith(_UNET) for key in tensors)
    found: dict[str, dict[str, TensorEntry]] = {}
    for key, entry in tensors.items():
        prefix = next((each for each in prefixes if key.startswith(each)), "")
        name = prefixes.get(prefix)
        if name is None and bare:
            name = kind.denoiser
        if name is None or any(re.search(each, key[len(prefix) :]) for each in kind.parts[name].unused):
            continue
        found.setdefault(name, {})[key] = entry
    return found
