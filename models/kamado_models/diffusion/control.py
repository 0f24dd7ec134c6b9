"""ControlNets: which pipelines of a family take their pictures, and how pictures and nets are given to them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from kamado.checkpoint.parts import SEVERAL
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.media.edges import canny
from kamado.picture_requests import PictureOptions

from .auto import auto_pipeline

Task = Literal["text", "image", "mask"]
"""What a picture is made from, beside the ControlNet's picture."""

_TASKS: tuple[Task, ...] = ("text", "image", "mask")
_ENDINGS = ("-controlnet", "-controlnet-union")
_SHARED = (
    *("cross_attention_dim", "projection_class_embeddings_input_dim", "block_out_channels"),
    *("joint_attention_dim", "pooled_projection_dim"),
)
"""What configurations of nets say as their denoisers' do."""
_UNLISTED = {"text": "ControlNetPipeline", "image": "ControlNetImg2ImgPipeline", "mask": "ControlNetInpaintPipeline"}
"""How diffusers names those classes that its mappings do not list."""


def task_of(options: PictureOptions) -> Task:
    """What the request makes a picture from."""
    return "mask" if options.mask is not None else "image" if options.image is not None else "text"


def nets_of(components: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The ControlNets among components, in order."""
    return {
        name: part
        for name, part in sorted(components.items())
        if (name == SEVERAL or name.startswith(f"{SEVERAL}_")) and isinstance(part, nn.Module)
    }


def sibling(base: Any, task: Task) -> Any:
    """The class for the same models as `base`, without a ControlNet, that does `task`; None if there is none."""
    mapping = _mappings()[task]
    return next((mapping[stem] for stem in _stems(base) if stem in mapping), None)


def without_control(base: Any) -> Any:
    """`base`, or the class for the same models that needs no ControlNet."""
    if SEVERAL not in inspect.signature(base.__init__).parameters:
        return base
    for task, mapping in _mappings().items():
        if base in mapping.values() and (found := sibling(base, task)) is not None:
            return found
    return base


def with_control(base: Any, task: Task, nets: Sequence[type]) -> Any:
    """The class for the same models as `base` that does `task` with ControlNets of these classes, or None."""
    return next((kind for kind in _controlled(base, task) if _takes(kind, nets)), None)


def check_nets(reference: str, base: Any, nets: Mapping[str, type]) -> None:
    """Raise UnsupportedCheckpoint for ControlNets that no pipeline of the family takes."""
    kinds = list(nets.values())
    if not kinds or any(with_control(base, task, kinds) is not None for task in _TASKS):
        return
    known = {kind.__name__ for task in _TASKS for each in _controlled(base, task) for kind in _single(each)}
    given = ", ".join(sorted({kind.__name__ for kind in kinds}))
    if not known:
        raise UnsupportedCheckpoint(f"{reference}: no pipeline for {base.__name__} takes a ControlNet ({given})")
    several = f"{len(kinds)} of them" if all(kind.__name__ in known for kind in kinds) else given
    raise UnsupportedCheckpoint(f"{reference}: its controlnet must be {' or '.join(sorted(known))}, not {several}")


def check_fit(reference: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UnsupportedCheckpoint for ControlNets that were made for another denoiser, by the configurations of the
    components: diffusers finds out in the middle of the first step."""
    name = next((each for each in ("unet", "transformer") if each in configs), None)
    if name is None:
        return
    for net, config in configs.items():
        if net != SEVERAL and not net.startswith(f"{SEVERAL}_"):
            continue
        facts, wanted = _facts(config), _facts(configs[name])
        for key in facts:
            if key in wanted and facts[key] != wanted[key]:
                raise UnsupportedCheckpoint(
                    f"{reference}: its {net} was made for another family of models: its {key} is {facts[key]}, and "
                    f"that of the {name} {wanted[key]}"
                )


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a net has in common with its denoiser, as far as its configuration says so."""
    found = {key: value for key in _SHARED if (value := config.get(key)) is not None}
    if "base_block_out_channels" in config:  # a net that is narrower than its denoiser
        found["block_out_channels"] = config["base_block_out_channels"]
    for key, value in found.items():
        if isinstance(value, (list, tuple)):
            same = key == "cross_attention_dim" and len(set(map(str, value))) == 1
            found[key] = value[0] if same else list(value)
    if "addition_embed_type" in config:
        found["addition_embed_type"] = config["addition_embed_type"]
    heads, width = config.get("num_attention_heads"), config.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(width, int):
        found["width"] = heads * width
    return found


def joined(kind: Any, nets: Sequence[nn.Module]) -> Any:
    """What a pipeline of class `kind` is given as its ControlNet: the one there is, or diffusers' model of several."""
    if len(nets) == 1:
        return nets[0]
    return _several(kind)(list(nets))


def completed(options: PictureOptions, reference: str, nets: Sequence[nn.Module]) -> PictureOptions:
    """The options with a picture and a scale for each ControlNet. Raises InvalidRequest."""
    control, scale = options.control, options.control_scale
    if control is None or not nets:
        return options
    pictures = control if isinstance(control, list) else [control]
    # A union net takes a picture for each of its modes.
    if len(pictures) != len(nets) and not any("Union" in type(net).__name__ for net in nets):
        raise InvalidRequest(
            f"control: {reference} was loaded with {len(nets)} ControlNet{'s' if len(nets) > 1 else ''}, so it takes "
            f"{len(nets)} picture{'s' if len(nets) > 1 else ''}, not {len(pictures)}"
        )
    if isinstance(scale, list) and len(scale) != len(nets):
        raise InvalidRequest(f"control_scale: give {len(nets)} numbers, one for each ControlNet, not {len(scale)}")
    if len(nets) == 1:
        return replace(
            options,
            control=pictures[0] if len(pictures) == 1 else pictures,
            control_scale=scale[0] if isinstance(scale, list) else scale,
        )
    scales = scale if isinstance(scale, list) else [1.0 if scale is None else scale] * len(nets)
    return replace(options, control=pictures, control_scale=scales)


def _mappings() -> dict[Task, Mapping[str, Any]]:
    auto = auto_pipeline()
    return {
        "text": auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "image": auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "mask": auto.AUTO_INPAINT_PIPELINES_MAPPING,
    }


def _stems(base: Any) -> list[str]:
    """What diffusers' mappings call the family of `base`."""
    found: dict[str, None] = {}
    for mapping in _mappings().values():
        for name, kind in mapping.items():
            if kind is base:
                found[name.removesuffix("-union").removesuffix("-controlnet")] = None
    return list(found)


def _controlled(base: Any, task: Task) -> Iterator[Any]:
    import diffusers

    mapping = _mappings()[task]
    for stem in _stems(base):
        yield from (mapping[stem + ending] for ending in _ENDINGS if stem + ending in mapping)
    unlisted = getattr(diffusers, base.__name__.removesuffix("Pipeline") + _UNLISTED[task], None)
    if isinstance(unlisted, type):
        yield unlisted


def _takes(kind: Any, nets: Sequence[type]) -> bool:
    single = tuple(_single(kind))
    return all(issubclass(net, single) for net in nets) and (len(nets) == 1 or _several(kind) is not None)


def _single(kind: Any) -> list[type]:
    return [each for each in _accepted(kind) if not get_args(each) and "Multi" not in each.__name__]


def _several(kind: Any) -> Any:
    return next((each for each in _accepted(kind) if not get_args(each) and "Multi" in each.__name__), None)


def _accepted(kind: Any) -> tuple[Any, ...]:
    """What the class says that its ControlNet may be: classes, and lists of them."""
    found: tuple[Any, ...] = kind._get_signature_types().get(SEVERAL, ())
    return found


def with_map(options: PictureOptions) -> PictureOptions:
    """With the control pictures as `control_map` says, of opened ones. Raises InvalidRequest."""
    if options.control_map is None:
        return options
    if options.control is None:
        raise InvalidRequest("control_map says what is made of control; give that too")
    if isinstance(options.control, (list, tuple)):
        return replace(options, control=[canny(picture) for picture in options.control])
    return replace(options, control=canny(options.control))
