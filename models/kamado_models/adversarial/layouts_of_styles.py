"""Generators with styles: StyleGAN2 in two layouts, StyleGAN3. Imports torch where networks are built alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import TensorEntry

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, TensorEntry]
PICTURES = (1, 3, 4)
"""Channels of a picture."""
_SIZES = (8, 4096)
"""The smallest and the largest picture."""
_MOST_TAPS = 32
"""Of a StyleGAN2 filter, in one dimension."""
_FILTER = 6
"""Taps of a StyleGAN3 filter for each sample."""


def _part(tensors: Tensors, prefix: str) -> dict[str, TensorEntry]:
    return {name[len(prefix) :]: entry for name, entry in tensors.items() if name.startswith(prefix)}


def _mapping(tensors: Tensors) -> dict[str, Any]:
    """Facts of the network that makes styles."""
    layers = [name for name in tensors if re.fullmatch(r"fc\d+\.weight", name)]
    w_size, inputs = tensors["fc0.weight"].shape
    embedded, num_classes = tensors["embed.weight"].shape if "embed.weight" in tensors else (0, 0)
    z_size, is_mean_stored = inputs - embedded, "w_avg" in tensors

    def build() -> nn.Module:
        from .networks.mapping import Mapping as Network

        return Network(
            z_size, w_size, len(layers), num_classes=num_classes, embedded=embedded, mean=is_mean_stored
        )  # fmt: skip

    if z_size < 1:
        raise ValueError("classes alone")
    return {
        "z_size": z_size, "w_size": w_size, "num_classes": num_classes, "mean_stored": is_mean_stored, "mapping": build,
        "truncates": True,
    }  # fmt: skip


def stylegan2(tensors: Tensors) -> dict[str, Any] | None:
    """Fields of Layout, of the authors' names."""
    return _stylegan2(_part(tensors, "mapping."), _part(tensors, "synthesis."), is_ported=False)


def ported(tensors: Tensors) -> dict[str, Any] | None:
    """The same, of the port's names."""
    from .stylegan2_names import names

    mapping = {
        f"fc{int(name.split('.')[1]) - 1}.{name.split('.')[2]}": entry
        for name, entry in tensors.items()
        if name.startswith("style.")
    }
    if "latent_avg" in tensors:
        mapping["w_avg"] = tensors["latent_avg"]
    others = ("style.", "latent_avg")
    synthesis = {names(name): entry for name, entry in tensors.items() if not name.startswith(others)}
    return _stylegan2(mapping, synthesis, is_ported=True)


def _stylegan2(mapping: Tensors, synthesis: Tensors, *, is_ported: bool) -> dict[str, Any] | None:
    about = _mapping(mapping)
    sizes = sorted({int(name[1:].partition(".")[0]) for name in synthesis if re.match(r"b\d+\.", name)})
    if not _SIZES[0] <= sizes[-1] <= _SIZES[1] or sizes != [4 << place for place in range(len(sizes))]:
        return None
    shapes = {size: synthesis[f"b{size}.conv1.weight"].shape[-4:] for size in sizes}
    if any(len(shape) != 4 or shape[2:] != (3, 3) for shape in shapes.values()):
        return None
    has_noise = "b4.conv1.noise_const" in synthesis
    taps = synthesis["b8.resample_filter"].shape[0]
    pictures = synthesis[f"b{sizes[-1]}.torgb.weight"].shape[-4]
    if not 2 <= taps <= _MOST_TAPS or pictures not in PICTURES:
        return None
    form = "resnet" if "b8.skip.weight" in synthesis else "skip" if "b4.torgb.weight" in synthesis else "orig"
    values = {
        "w_size": about["w_size"],
        "channels": {size: shape[0] for size, shape in shapes.items()},
        "pictures": pictures,
        "taps": taps,
        "form": form,
        "noise": has_noise,
        "ported": is_ported,
    }

    def build() -> nn.Module:
        from .networks.stylegan2 import StyleGan2Shape, Synthesis

        return Synthesis(StyleGan2Shape(**values))

    noise_sizes = [size for size in sizes for _ in range(1 if size == 4 else 2)]
    return _fields(about, mapping, synthesis, build, size=sizes[-1], num_styles=2 * len(sizes)) | {
        "noises": ("const", "random", "none") if has_noise else ("random", "none"),
        "noise_sizes": tuple(noise_sizes),
    }


def stylegan3(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields of Layout; None where sizes are not those that the settings amount to."""
    from .stylegan3_rates import DEFAULTS, rates

    mapping, synthesis = _part(tensors, "mapping."), _part(tensors, "synthesis.")
    about = _mapping(mapping)
    found = {name.partition(".")[0] for name in synthesis}
    names = sorted(
        (name for name in found if re.fullmatch(r"L\d+_\d+_\d+", name)), key=lambda name: int(name[1:].split("_")[0])
    )
    size = int(names[-1].split("_")[1])
    settings = {name: float(config.get(name, value)) for name, value in DEFAULTS.items()}
    sampling, sizes = rates(size, len(names) - 1, settings)
    if [int(name.split("_")[1]) for name in names] != sizes or max(sizes) > 2 * _SIZES[1]:
        return None
    layers: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        outputs, inputs, kernel, _ = synthesis[f"{name}.weight"].shape
        before, is_last = max(place - 1, 0), place == len(names) - 1
        rate = max(sampling[before], sampling[place]) * (1 if is_last else 2)
        up, down = rate // sampling[before], rate // sampling[place]
        down_filter = synthesis.get(f"{name}.down_filter")
        layers.append({
            "name": name, "inputs": inputs, "outputs": outputs, "kernel": kernel, "in_size": sizes[before],
            "out_size": sizes[place], "up": up, "down": down,
            "up_taps": _FILTER * up if up > 1 and not is_last else 1,
            "down_taps": 1 if down_filter is None else down_filter.shape[0],
            "radial": down_filter is not None and len(down_filter.shape) == 2, "to_picture": is_last,
        })  # fmt: skip
    if outputs not in PICTURES:
        return None
    values = {
        "w_size": about["w_size"], "size": size, "first_rate": sampling[0], "first_cutoff": settings["first_cutoff"],
        "first_size": sizes[0], "first_channels": synthesis["input.freqs"].shape[0],
        "output_scale": settings["output_scale"],
    }  # fmt: skip

    def build() -> nn.Module:
        from .networks.stylegan3 import Layer, StyleGan3Shape, Synthesis

        return Synthesis(StyleGan3Shape(**values, layers=tuple(Layer(**layer) for layer in layers)))

    return _fields(about, mapping, synthesis, build, size=size, num_styles=len(names) + 1)


def _fields(
    about: Mapping[str, Any], mapping: Tensors, synthesis: Tensors, build: Any, *, size: int, num_styles: int
) -> dict[str, Any]:
    fields = {name: value for name, value in about.items() if name != "mapping"}
    return fields | {
        "size": (size, size), "num_styles": num_styles, "tensors": {"mapping": mapping, "synthesis": synthesis},
        "build": {"mapping": about["mapping"], "synthesis": build},
    }  # fmt: skip
