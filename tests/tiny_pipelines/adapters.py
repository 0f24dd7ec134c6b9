"""What is loaded beside a pipeline: ControlNets, LoRA files, textual inversions, an IP-Adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .dits import flux
from .parts import WIDTH, clip_vision
from .unets import sd15, sdxl
from .weights import rescale

RANK = 4
ALPHA = 2.0
"""kohya's files scale by ALPHA / RANK."""
TOKEN = "<kiln>"
"""What stands for the textual inversion's embeddings in a prompt."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def controlnet(like: Any) -> Any:
    """A ControlNet for pipelines with the UNet `like`, with weights that matter."""
    from diffusers import ControlNetModel

    model = ControlNetModel.from_unet(like, conditioning_channels=3, conditioning_embedding_out_channels=(8, 8, 8, 8))
    gains = {"controlnet_down_blocks": 0.5, "controlnet_mid_block": 0.5, "controlnet_cond_embedding": 2.0}
    return rescale(model, gains)


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """Paths and layers of a model's attention projections."""
    for path, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and path.endswith(ATTENTION):
            yield path, layer


def _pair(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    down = torch.randn(RANK, layer.in_features) / layer.in_features**0.5
    return down, torch.randn(layer.out_features, RANK) * 0.25


def _text_path(path: str) -> str:
    return f"text_model.{path.removeprefix('text_model.')}"


def lora(models: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A LoRA as diffusers and peft write it. `models`: name of a pipeline's component -> model."""
    tensors = {}
    for component, model in models.items():
        for path, layer in _adapted(model):
            prefix = f"{component}.{_text_path(path) if component.startswith('text') else path}"
            down, up = _pair(layer)
            tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    return tensors


def kohya_lora(models: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A LoRA as kohya's scripts write it: underscores for dots, an alpha for each layer, and for SDXL the names of the
    UNet's blocks in the original code. `models`: "unet", "te" or "te1", "te2" -> model."""
    tensors = {}
    for component, model in models.items():
        for path, layer in _adapted(model):
            name = _text_path(path) if component != "unet" else path
            if component == "unet" and "te2" in models:
                name = _original_block(path, model.config.layers_per_block + 1)
            prefix = f"lora_{component}_{name.replace('.', '_')}"
            down, up = _pair(layer)
            tensors[f"{prefix}.lora_down.weight"] = down
            tensors[f"{prefix}.lora_up.weight"] = up
            tensors[f"{prefix}.alpha"] = torch.tensor(ALPHA)
    return tensors


def _original_block(path: str, per_block: int) -> str:
    """`down_blocks.1.attentions.0.x` -> `input_blocks.3.1.x`."""
    kind, *rest = path.split(".")
    if kind == "mid_block":
        return ".".join(["middle_block", "1", *rest[2:]])
    block, _, layer, *inner = rest
    number = int(block) * per_block + int(layer)
    place = f"input_blocks.{number + 1}" if kind == "down_blocks" else f"output_blocks.{number}"
    return ".".join([place, "1", *inner])


def _save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return path


def _controlnet(make: Callable[[], Any], folder: Path) -> Path:
    controlnet(make().unet).save_pretrained(folder)
    return folder


def _lora(make: Callable[[], Any], names: tuple[str, ...], folder: Path) -> Path:
    pipeline = make()
    return _save(lora({name: getattr(pipeline, name) for name in names}), folder / "pytorch_lora_weights.safetensors")


def _kohya_lora(make: Callable[[], Any], names: dict[str, str], folder: Path) -> Path:
    pipeline = make()
    tensors = kohya_lora({short: getattr(pipeline, name) for short, name in names.items()})
    return _save(tensors, folder / "style.safetensors")


def _textual_inversion(folder: Path) -> Path:
    """Two embeddings for one token."""
    return _save({TOKEN: 2.0 * torch.randn(2, WIDTH)}, folder / "learned_embeds.safetensors")


def _ip_adapter(folder: Path) -> Path:
    """The published layout: models/ with the adapter's file and the folder image_encoder."""
    tokens = 4
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * WIDTH, WIDTH) / WIDTH**0.5,
        "image_proj.proj.bias": 0.1 * torch.randn(tokens * WIDTH),
        "image_proj.norm.weight": torch.ones(WIDTH),
        "image_proj.norm.bias": torch.zeros(WIDTH),
    }
    cross = [layer for path, layer in _adapted(sd15().unet) if path.endswith("attn2.to_k")]
    for index, layer in enumerate(cross):
        for part in ("k", "v"):
            weight = 1.5 * torch.randn(layer.out_features, WIDTH) / WIDTH**0.5
            tensors[f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight"] = weight
    _save(tensors, folder / "models" / "ip-adapter_sd15.safetensors")
    clip_vision(size=224).save_pretrained(folder / "models" / "image_encoder")
    return folder


SDXL_PARTS = ("unet", "text_encoder", "text_encoder_2")
EXTRAS: dict[str, Callable[[Path], Path]] = {
    "controlnet-sd15": partial(_controlnet, sd15),
    "controlnet-sdxl": partial(_controlnet, sdxl),
    "lora-sd15": partial(_lora, sd15, ("unet", "text_encoder")),
    "lora-sd15-kohya": partial(_kohya_lora, sd15, {"unet": "unet", "te": "text_encoder"}),
    "lora-sdxl": partial(_lora, sdxl, SDXL_PARTS),
    "lora-sdxl-kohya": partial(_kohya_lora, sdxl, dict(zip(("unet", "te1", "te2"), SDXL_PARTS, strict=True))),
    "lora-flux": partial(_lora, flux, ("transformer",)),
    "embedding-sd15": _textual_inversion,
    "ip-adapter-sd15": _ip_adapter,
}
"""What writes each extra to a folder, and returns its file or folder."""
