"""Which generator a checkpoint is, by names and shapes of its tensors. Imports torch where networks are built alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint, TensorEntry

from . import layouts_of_styles as of_styles

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, TensorEntry]
_COUNTERS = ".num_batches_tracked"
_BIGGAN_STATS = 51
_FASTGAN_SIZES = (256, 512, 1024)
_MAX_STAGES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A recognised generator."""

    name: str
    z_size: int
    size: tuple[int, int]
    """Height and width of a picture."""
    tensors: Mapping[str, Tensors] = field(repr=False)
    """By component and by the network's names."""
    build: Mapping[str, Callable[[], nn.Module]] = field(repr=False)
    """Its components, which have no weights yet."""
    num_classes: int = 0
    num_styles: int = 0
    """How many styles a picture takes; 0: it has none."""
    w_size: int = 0
    noises: tuple[str, ...] = ()
    """What can be asked of noise, the usual first: "const", "random", "none"."""
    noise_sizes: tuple[int, ...] = ()
    """Height and width of each noise."""
    truncates: bool = False
    """Whether truncation means something: styles drawn to their mean, or latents of a cut distribution."""
    stats_by_truncation: bool = False
    """Whether the network has statistics for each truncation."""
    features: int = 64
    """About how many numbers for each pixel are in memory at a time."""
    mean_stored: bool = False
    """Whether the mean of the styles is in the checkpoint."""


def recognised(checkpoint: Checkpoint) -> Layout | None:
    """The layout of a checkpoint; None: none of those that are known here."""
    if checkpoint.layout not in ("safetensors", "transformers") or "model_type" in checkpoint.config:
        return None
    for probe, recognise in _LAYOUTS.items():
        prefix = _prefix(checkpoint.tensors, probe)
        if prefix is None:
            continue
        tensors = {
            name[len(prefix) :]: entry
            for name, entry in checkpoint.tensors.items()
            if name.startswith(prefix) and not name.endswith(_COUNTERS)
        }
        if any(0 in entry.shape for entry in tensors.values()):
            continue  # nothing is made of nothing
        outside = {} if not prefix else {
            name: entry for name, entry in checkpoint.tensors.items() if not name.startswith(prefix)
        }  # fmt: skip
        try:
            found = recognise(
                tensors | {key: value for key, value in outside.items() if key == "latent_avg"}, checkpoint
            )
        except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, OverflowError):
            continue  # names or shapes of another network
        if found is not None:
            return found
    return None


def _prefix(tensors: Tensors, probe: str) -> str | None:
    """What stands before `probe` in the one name that ends in it."""
    found = [name[: -len(probe)] for name in tensors if name == probe or name.endswith(f".{probe}")]
    return found[0] if len(found) == 1 else None


def weight_form(tensors: Tensors) -> str:
    """See networks.ops."""
    if not any(name.endswith(".weight_orig") for name in tensors):
        return "plain"
    return "uv" if any(name.endswith(".weight_v") for name in tensors) else "u"


def _dcgan(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    numbers = sorted({int(name.partition(".")[0]) for name in tensors})
    convs = [number for number in numbers if len(tensors[f"{number}.weight"].shape) == 4]
    if not 2 <= len(convs) <= _MAX_STAGES or convs != [3 * place for place in range(len(convs))]:
        return None
    if numbers != [number for conv in convs for number in (conv, conv + 1)][: len(numbers)]:
        return None
    from_shapes = []
    channels = tensors["0.weight"].shape[0]
    z_size = channels
    for conv in convs:
        inputs, outputs, size, width = tensors[f"{conv}.weight"].shape
        norm = conv + 1 in numbers
        if (
            inputs != channels
            or size != width
            or (conv and size % 2)
            or (norm and not _is_norm(tensors, conv + 1, outputs))
        ):
            return None
        from_shapes.append((conv, inputs, outputs, size, f"{conv}.bias" in tensors, norm))
        channels = outputs
    if channels not in of_styles.PICTURES or from_shapes[-1][-1]:
        return None
    side = from_shapes[0][3] << (len(convs) - 1)

    def build() -> nn.Module:
        from .networks.dcgan import Dcgan, Stage

        fields = ("number", "inputs", "outputs", "size", "bias", "norm")
        return Dcgan([Stage(**dict(zip(fields, each, strict=True))) for each in from_shapes])  # type: ignore[arg-type]

    renamed = {f"main.{name}": entry for name, entry in tensors.items()}
    return Layout(
        name="DCGAN", z_size=z_size, size=(side, side), tensors={"generator": renamed}, build={"generator": build}
    )  # fmt: skip


def _is_norm(tensors: Tensors, number: int, channels: int) -> bool:
    parts = ("weight", "bias", "running_mean", "running_var")
    return all(tensors[f"{number}.{part}"].shape == (channels,) for part in parts)


def _biggan(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    config = checkpoint.config
    layers = tuple((bool(up), int(inputs), int(outputs)) for up, inputs, outputs in config["layers"])
    z_size, num_classes = tensors["embeddings.weight"].shape
    values: dict[str, Any] = {
        "z_size": z_size,
        "num_classes": num_classes,
        "channels": int(config["channel_width"]),
        "layers": layers,
        "attention_at": int(config["attention_layer_position"]),
        "eps": float(config.get("eps", 1e-4)),
        "num_stats": int(config.get("n_stats", _BIGGAN_STATS)),
        "form": weight_form(tensors),
    }
    if z_size != config["z_dim"] or len(layers) > _MAX_STAGES * 4 or values["channels"] < 3:
        return None
    side = 4 << sum(1 for up, _, _ in layers if up)

    def build() -> nn.Module:
        from .networks.biggan import BigGan, BigGanShape

        return BigGan(BigGanShape(**values))

    # Before the divided weights were computed, some libraries stored them too.
    kept = {
        name: entry for name, entry in tensors.items() if not name.endswith(".weight") or f"{name}_orig" not in tensors
    }
    return Layout(
        name="BigGAN-deep", z_size=z_size, size=(side, side), num_classes=num_classes, truncates=True,
        stats_by_truncation=True, tensors={"generator": kept}, build={"generator": build},
    )  # fmt: skip


def _biggan_2018(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    places = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")})
    if places != list(range(len(places))) or len(places) > _MAX_STAGES or "blocks.0.0.conv3.weight" in tensors:
        return None  # a third convolution: the deep one, by other names than those known here
    # Statistics go by a name in between where the release's own norm was used; "sv" is for its log alone, and it stores
    # more vectors than the one that counts, if told to.
    kept = {
        re.sub(r"\.bn\.(?=stored|accumulation)", ".", name): entry
        for name, entry in tensors.items() if not re.search(r"\.(sv\d+|u[1-9]\d*)$", name)
    }  # fmt: skip
    blocks = tuple(tuple(kept[f"blocks.{place}.0.conv1.weight"].shape[1::-1]) for place in places)
    gammas = tuple(getattr(kept.get(f"blocks.{place}.1.gamma"), "shape", None) for place in places)
    z_part, wide = kept["linear.weight"].shape[1], kept["blocks.0.0.bn1.gain.weight"].shape[1]
    num_classes, shared = kept["shared.weight"].shape if "shared.weight" in kept else (
        kept["blocks.0.0.bn1.gain.weight"].shape[0], 0
    )  # fmt: skip
    split = bool(shared) and wide == shared + z_part
    if (shared and wide not in (shared, shared + z_part)) or not {None, (), (1,)}.issuperset(gammas):
        return None
    # Only weights that the release's scripts converted from those of the authors lack it; they want another epsilon.
    is_converted = "linear.u0" in kept and "linear.sv0" not in tensors
    values: dict[str, Any] = {
        "num_classes": num_classes, "shared": shared, "z_part": z_part, "split": split, "blocks": blocks,
        "gammas": gammas, "form": "u0" if "linear.u0" in kept else "plain",
        "counted": "output_layer.0.accumulation_counter" in kept,
        "eps": float(checkpoint.config.get("BN_eps", 1e-4 if is_converted else 1e-5)),
    }  # fmt: skip

    def build() -> nn.Module:
        from .networks.biggan_2018 import BigGan2018, BigGan2018Shape

        return BigGan2018(BigGan2018Shape(**values))

    side = 4 << len(places)
    return Layout(
        name="BigGAN", z_size=z_part * (len(places) + 1 if split else 1), size=(side, side), num_classes=num_classes,
        truncates=True, features=4 * blocks[-1][0], tensors={"generator": kept}, build={"generator": build},
    )  # fmt: skip


def _fastgan(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    form = weight_form(tensors)
    weight = "weight" if form == "plain" else "weight_orig"
    z_size, wide = tensors[f"init.init.0.{weight}"].shape[:2]
    sizes = sorted({int(name.split(".")[0][5:]) for name in tensors if name.startswith("feat_")})
    if not sizes or sizes[-1] not in _FASTGAN_SIZES or sizes != [8 << place for place in range(len(sizes))]:
        return None
    channels = {4: wide // 2} | {size: tensors[f"feat_{size}.1.{weight}"].shape[0] // 2 for size in sizes}
    pictures = tensors[f"to_big.{weight}"].shape[0]
    side = sizes[-1]
    if pictures not in of_styles.PICTURES:
        return None
    from_shapes = {"z_size": z_size, "channels": channels, "pictures": pictures, "form": form}

    def build() -> nn.Module:
        from .networks.fastgan import FastGan, FastGanShape

        return FastGan(FastGanShape(**from_shapes))  # type: ignore[arg-type]

    # The small picture beside the large one is for training.
    kept = {name: entry for name, entry in tensors.items() if not name.startswith("to_128.")}
    noise_sizes = tuple(size for size in sizes if size in (8, 32, 128, 512) for _ in range(2))
    return Layout(
        name="FastGAN", z_size=z_size, size=(side, side), noises=("random", "none"), noise_sizes=noise_sizes,
        tensors={"generator": kept}, build={"generator": build},
    )  # fmt: skip


def _stylegan2(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    return _with_styles("StyleGAN2", of_styles.stylegan2(tensors))


def _ported(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    return _with_styles("StyleGAN2", of_styles.ported(tensors))


def _stylegan3(tensors: Tensors, checkpoint: Checkpoint) -> Layout | None:
    return _with_styles("StyleGAN3", of_styles.stylegan3(tensors, checkpoint.config))


def _with_styles(name: str, found: dict[str, Any] | None) -> Layout | None:
    return None if found is None else Layout(**{"name": name, **found})


_LAYOUTS: Mapping[str, Callable[[Tensors, Checkpoint], Layout | None]] = {
    "synthesis.b4.const": _stylegan2,
    "synthesis.input.freqs": _stylegan3,
    "input.input": _ported,
    "generator.conv_to_rgb.weight_orig": _biggan,
    "generator.conv_to_rgb.weight": _biggan,
    "output_layer.2.weight": _biggan_2018,
    "init.init.0.weight_orig": _fastgan,
    "init.init.0.weight": _fastgan,
    "0.weight": _dcgan,
}
"""By the end of a name that is in no other layout. What stands before it stands before all names."""
