"""LoRAs (Hu et al. 2021): what a file adds to which layers, and the place on a layer where that is added.

The weights of a model are never changed. A layer that some LoRA knows has a `Slot`, a forward hook that does nothing
unless it is told which LoRAs count now. Names of other programs are read by diffusers' own conversions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from kamado.checkpoint.strict_json import parse_json_object
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage

from ..language.materialize import library_call
from .adapters_files import AdapterFile, shown

Layers = Mapping[str, Mapping[str, nn.Module]]
"""component -> path -> layer: whatever a LoRA could add to."""

_DENOISERS = ("unet", "transformer", "prior")
_PEFT_PREFIX = "base_model.model."
_METADATA = "lora_adapter_metadata"
_MATRIX = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])(?:\.default)?\.(?P<part>weight|bias)")
_ALPHA_END = re.compile(r"(?:\.lora_[AB](?:\.default)?(?:\.weight)?)?\.alpha")
_OTHER_FORMS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with three factors",
}
_CONVOLUTIONS = {3: torch.nn.functional.conv1d, 4: torch.nn.functional.conv2d, 5: torch.nn.functional.conv3d}


@dataclass(slots=True, eq=False)
class Delta:
    """What one LoRA adds to the output of one layer: `up(down(x)) * scale`."""

    down: Tensor
    """(rank, in), of a convolution (rank, in, *kernel)."""
    up: Tensor
    """(out, rank), of a convolution (out, rank, 1, ...)."""
    bias: Tensor | None
    scale: float
    """alpha / rank; of rank-stabilized LoRAs, alpha / sqrt(rank)"""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.down, self.up, self.bias) if tensor is not None)

    def move(self, device: str) -> None:
        """Put its tensors there."""
        self.down, self.up = self.down.to(device), self.up.to(device)
        self.bias = None if self.bias is None else self.bias.to(device)

    def added(self, layer: nn.Module, inputs: Tensor, output: Tensor, weight: float) -> Tensor:
        """`output` of `layer` for `inputs`, with `weight` times this on top."""
        low: Any
        if isinstance(layer, _ConvNd):
            low = layer._conv_forward(inputs.to(self.down.dtype), self.down, None)
            high = _CONVOLUTIONS[self.up.ndim](low, self.up, self.bias)
        else:
            low = nn.functional.linear(inputs.to(self.down.dtype), self.down)
            high = nn.functional.linear(low, self.up, self.bias)
        return (output + high * (self.scale * weight)).to(output.dtype)


class Slot:
    """The place on one layer where LoRAs are added."""

    def __init__(self, layer: nn.Module) -> None:
        self.active: tuple[tuple[Delta, float], ...] = ()
        """What counts now, each with its weight."""
        self._handle = layer.register_forward_hook(self, with_kwargs=True)

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self.active:
            return None  # the output stays as it is
        inputs = args[0] if args else next(iter(kwargs.values()))
        for delta, weight in self.active:
            output = delta.added(layer, inputs, output, weight)
        return output

    def remove(self) -> None:
        """The layer is as it was before."""
        self.active = ()
        self._handle.remove()


class Lora:
    """A LoRA for one model."""

    def __init__(self, deltas: Mapping[str, Mapping[str, Delta]]) -> None:
        """`deltas`: component -> path -> what it adds there."""
        self.deltas = deltas
        self.components = frozenset(deltas)
        self.nbytes = sum(delta.nbytes for layers in deltas.values() for delta in layers.values())

    def move(self, device: str) -> None:
        """Put its tensors there."""
        for layers in self.deltas.values():
            for delta in layers.values():
                delta.move(device)


def layers_of(models: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Module]]:
    """The layers of each model that a LoRA could add to."""
    return {
        name: {path: layer for path, layer in model.named_modules() if path and _is_layer(layer)}
        for name, model in models.items()
    }


def read_lora(file: AdapterFile, base: Any, models: Mapping[str, nn.Module], layers: Layers, reference: str) -> Lora:
    """The LoRA in `file` for the model `reference` of the pipeline class `base`.

    Raises UnsupportedCheckpoint for what is damaged or of another form, InvalidRequest for what is not for this model.
    """
    tensors = file.read()
    for name, tensor in tensors.items():
        form = next((form for sign, form in _OTHER_FORMS.items() if sign in name), None)
        if form is not None:
            raise UnsupportedCheckpoint(f"{file.what} is a {form} ({name!r:.100}), which this version cannot apply")
        if not tensor.numel():
            raise UnsupportedCheckpoint(f"{file.what}: its tensor {name!r:.100} is empty: rank 0")
        if name.endswith(".alpha") and tensor.numel() > 1:
            raise UnsupportedCheckpoint(f"{file.what}: its {name!r:.100} has {tensor.numel()} values, not one")
    converted, alphas = _converted(file, tensors, base, models)
    return Lora(_Matching(file, layers, reference).deltas(converted, alphas))


def _is_layer(layer: nn.Module) -> bool:
    if isinstance(layer, _ConvNd):
        return layer.groups == 1 and not layer.transposed
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return False  # torch's own attention has these, and uses their weights without calling them
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _converted(
    file: AdapterFile, tensors: dict[str, Tensor], base: Any, models: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Matrices and alphas under `component.path.lora_A.weight`, `component.path`."""
    denoiser = next((name for name in _DENOISERS if name in models), None)
    if file.config and denoiser is not None and all(name.startswith(_PEFT_PREFIX) for name in tensors):
        if file.config.get("peft_type") != "LORA" or file.config.get("use_dora"):
            raise UnsupportedCheckpoint(f"{file.what}: adapter_config.json is not that of a plain LoRA")
        return {f"{denoiser}.{name.removeprefix(_PEFT_PREFIX)}": tensors[name] for name in tensors}, {}
    if not hasattr(base, "lora_state_dict"):
        raise InvalidRequest(f"{file.what} is a LoRA, and {base.__name__} takes none")
    options = {"unet_config": models["unet"].config} if "unet" in models else {}
    try:
        with library_call():
            found = base.lora_state_dict(dict(tensors), return_alphas=True, **options)
            state, alphas = (found[0], found[1] or {}) if isinstance(found, tuple) else (found, {})
            renamed = _peft_names(state)
    except Exception as error:  # whatever a conversion makes of names that it does not know
        if is_shortage(error):
            raise
        raise UnsupportedCheckpoint(
            f"{file.what}: its names are of no form that diffusers knows for {base.__name__}: {shown(list(tensors))}"
        ) from error
    before, after = _num_pairs(tensors), sum(".lora_A" in name for name in renamed.values())
    if after < before:
        raise UnsupportedCheckpoint(f"{file.what}: {before - after} of its {before} layers have no place in diffusers")
    scales = {
        _ALPHA_END.sub("", f"{renamed.get(key.removesuffix('.alpha'), key.removesuffix('.alpha'))}.alpha"): float(value)
        for key, value in {**alphas, **{key: state[key] for key in state if key.endswith(".alpha")}}.items()
    }
    return {renamed[key]: state[key] for key in state if not key.endswith(".alpha")}, scales


def _peft_names(state: Mapping[str, Any]) -> dict[str, str]:
    """name -> the name that peft gives it, by diffusers' own tables."""
    from diffusers.utils import state_dict_utils as tables

    renamed: dict[str, str] = {}
    for name in state:
        component, _, rest = name.partition(".")
        if ".lora_A" in rest or ".lora_B" in rest:
            renamed[name] = name
            continue
        if component.startswith("text_encoder"):
            mapping = {**tables.DIFFUSERS_TO_PEFT, **tables.DIFFUSERS_OLD_TO_PEFT}
        else:
            mapping = tables.UNET_TO_DIFFUSERS
        (new,) = tables.convert_state_dict({rest: None}, mapping)
        renamed[name] = f"{component}.{new}"
    return renamed


def _num_pairs(tensors: Mapping[str, Tensor]) -> int:
    return sum("lora" in name and any(sign in name for sign in ("lora_A", "lora_down", ".down.")) for name in tensors)


class _Matching:
    """Finds the layer for every tensor of a file."""

    def __init__(self, file: AdapterFile, layers: Layers, reference: str) -> None:
        self._file = file
        self._layers = layers
        self._reference = reference

    def deltas(self, tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, dict[str, Delta]]:
        """component -> path -> what is added. Raises InvalidRequest, UnsupportedCheckpoint."""
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        homeless = []
        for name, tensor in tensors.items():
            match = _MATRIX.fullmatch(name)
            place = self._place(match["path"]) if match is not None else None
            if match is None or place is None:
                homeless.append(name)
            else:
                found.setdefault(place, {})[f"{match['side']}.{match['part']}"] = tensor
        scales = {self._place(path): value for path, value in alphas.items()}
        homeless += [f"{path}.alpha" for path in alphas if self._place(path) not in found]
        self._check(len(tensors) + len(alphas), homeless)
        settings = {component: self._settings(component) for component, _ in found}
        result: dict[str, dict[str, Delta]] = {}
        for (component, path), parts in found.items():
            alpha = scales.get((component, path))
            delta = self._delta(component, path, parts, alpha, settings[component])
            result.setdefault(component, {})[path] = delta
        return result

    def _place(self, name: str) -> tuple[str, str] | None:
        component, _, path = name.partition(".")
        layers = self._layers.get(component, {})
        # Versions of transformers differ in whether a text model has this level.
        for candidate in (path, path.removeprefix("text_model."), f"text_model.{path}"):
            if candidate in layers:
                return component, candidate
        return None

    def _check(self, total: int, homeless: list[str]) -> None:
        if not homeless:
            return
        count = "none of its" if len(homeless) == total else f"only {total - len(homeless)} of its"
        raise InvalidRequest(
            f"{self._file.what}: {count} {total} tensors have a place in {self._reference}, so it was made for another "
            f"model; there is none for {shown(homeless)}"
        )

    def _delta(
        self, component: str, path: str, parts: Mapping[str, Tensor], alpha: float | None, settings: _Settings
    ) -> Delta:
        layer, name = self._layers[component][path], f"{component}.{path}"
        down, up, bias = parts.get("A.weight"), parts.get("B.weight"), parts.get("B.bias")
        if down is None or up is None or "A.bias" in parts:
            raise UnsupportedCheckpoint(f"{self._file.what}: {name} has only {', '.join(sorted(parts))} of its pair")
        weight = getattr(layer, "weight", None)
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dtype.itemsize > 1
        dtype = weight.dtype if isinstance(weight, Tensor) and plain else torch.float32
        down, up = self._fitted(layer, f"{name}.lora_A", down), self._fitted(layer, f"{name}.lora_B", up)
        wanted_down, wanted_up = _wanted(layer, down.shape[0])
        for side, tensor, wanted in (("lora_A", down, wanted_down), ("lora_B", up, wanted_up)):
            if tuple(tensor.shape) != wanted:
                raise InvalidRequest(
                    f"{self._file.what} was made for another model: its tensor {name}.{side} has the shape "
                    f"{list(tensor.shape)}, and {self._reference} needs {list(wanted)}"
                )
        if bias is not None and tuple(bias.shape) != wanted_up[:1]:
            raise InvalidRequest(f"{self._file.what}: its tensor {name}.lora_B.bias has the shape {list(bias.shape)}")
        scale = settings.scale(path, down.shape[0], alpha)
        tensors = [tensor if tensor is None else self._cast(name, tensor, dtype) for tensor in (down, up, bias)]
        assert tensors[0] is not None and tensors[1] is not None
        return Delta(tensors[0], tensors[1], tensors[2], scale)

    def _fitted(self, layer: nn.Module, name: str, tensor: Tensor) -> Tensor:
        """Matrices and pointwise convolutions are the same, and programs write one for the other."""
        if tensor.ndim < 2:
            raise UnsupportedCheckpoint(f"{self._file.what}: its tensor {name} has the shape {list(tensor.shape)}")
        if not isinstance(layer, _ConvNd):
            return tensor.flatten(1) if all(size == 1 for size in tensor.shape[2:]) else tensor
        missing = layer.weight.ndim - tensor.ndim
        return tensor.reshape(*tensor.shape, *[1] * missing) if missing > 0 else tensor

    def _cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        cast = tensor.to(dtype).contiguous()
        if not bool(torch.isfinite(cast).all()):
            raise UnsupportedCheckpoint(f"{self._file.what}: {name} has values too large for {dtype}; use float32")
        return cast

    def _settings(self, component: str) -> _Settings:
        return _Settings(self._file.what, dict(_stored_settings(self._file, component)))


def _wanted(layer: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of both matrices."""
    if isinstance(layer, _ConvNd):
        return (rank, *layer.weight.shape[1:]), (layer.weight.shape[0], rank, *[1] * (layer.weight.ndim - 2))
    ins, outs = layer.in_features, layer.out_features
    assert isinstance(ins, int) and isinstance(outs, int)
    return (rank, ins), (outs, rank)


def _stored_settings(file: AdapterFile, component: str) -> Iterator[tuple[str, Any]]:
    """What the file, or the one beside it, says of the LoRA of one component."""
    if file.config:
        yield from file.config.items()
    text = file.metadata.get(_METADATA, "{}")
    stored = parse_json_object(text.encode(), what=f"{file.what}: {_METADATA} in its header")
    prefix = f"{component}."
    for key, value in stored.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), value


class _Settings:
    """What peft's settings say of the scale; nothing else of them is used, for they could name code."""

    def __init__(self, what: str, stored: Mapping[str, Any]) -> None:
        self._what = what
        self._alpha = stored.get("lora_alpha")
        self._is_rs = stored.get("use_rslora") is True
        patterns = stored.get("alpha_pattern")
        self._patterns = _Patterns(patterns if isinstance(patterns, Mapping) else {})
        if stored.get("use_dora") is True:
            raise UnsupportedCheckpoint(f"{what} is a DoRA, which this version cannot apply")

    def scale(self, path: str, rank: int, alpha: float | None) -> float:
        """alpha / rank, with the alpha of the file before that of the settings before the rank itself. Rank-stabilized
        LoRAs (Kalajdzievski 2023) divide by its root."""
        value: Any = alpha
        if value is None:
            value = self._patterns.first(path, self._alpha)
        if value is None:
            value = rank
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise UnsupportedCheckpoint(f"{self._what}: its alpha is {value!r:.40}, which is no number")
        return float(value) / (sqrt(rank) if self._is_rs else rank)


class _Patterns:
    """Values by peft's patterns: a layer's name, or the end of one. Those with more than a name are not run.

    Looking one up takes no longer where there are many: files of strangers may have one for every layer, or more."""

    def __init__(self, patterns: Mapping[str, Any]) -> None:
        self._exact: dict[str, tuple[int, Any]] = {}
        self._endings: dict[str, tuple[int, Any]] = {}
        for order, (pattern, value) in enumerate(patterns.items()):
            name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            (self._exact if pattern.startswith("^") else self._endings).setdefault(name, (order, value))

    def first(self, path: str, default: Any) -> Any:
        """The value of the first pattern that means the layer."""
        parts = path.split(".")
        found = [self._exact.get(path), *(self._endings.get(".".join(parts[n:])) for n in range(len(parts)))]
        known = [each for each in found if each is not None]
        return min(known, key=lambda each: each[0])[1] if known else default
