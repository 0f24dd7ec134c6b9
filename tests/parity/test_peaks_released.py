"""First estimates at the sizes of released models, beside what the libraries' own classes lay out: on the meta device,
where nothing is computed, with two layers of each kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kamado.checkpoint.types import Checkpoint
from kamado.tasks.library import live_bytes
from kamado_models.diffusion import joining
from kamado_models.diffusion.extents import Extent
from kamado_models.diffusion.joining import JoinedLayers
from kamado_models.diffusion.peaks import component_peak

SIDE = 1024
LATENTS = SIDE // 8
IMAGE = (LATENTS // 2) ** 2
"""Tokens, of 2 x 2 latents."""
KL = {"latent_channels": 16, "block_out_channels": (128, 256, 512, 512)}
SANA_VAE = {"_class_name": "AutoencoderDC", "encoder_block_out_channels": (128,) * 6, "latent_channels": 32}
FLUX_VAE = {"_class_name": "AutoencoderKL", **KL}


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _flux(model: Any) -> object:
    return model(
        hidden_states=_empty(1, IMAGE, 64),
        encoder_hidden_states=_empty(1, 512, 4096),
        pooled_projections=_empty(1, 768),
        timestep=_empty(1),
        img_ids=_empty(IMAGE, 3),
        txt_ids=_empty(512, 3),
        guidance=_empty(1),
    )


def _flux2(model: Any) -> object:
    return model(
        hidden_states=_empty(1, IMAGE, 128),
        encoder_hidden_states=_empty(1, 512, 15360),
        timestep=_empty(1),
        img_ids=_empty(1, IMAGE, 4),
        txt_ids=_empty(1, 512, 4),
        guidance=_empty(1),
    )


def _sd3(model: Any) -> object:
    return model(
        hidden_states=_empty(2, 16, LATENTS, LATENTS),
        encoder_hidden_states=_empty(2, 333, 4096),
        pooled_projections=_empty(2, 2048),
        timestep=_empty(2),
    )


def _pixart(model: Any) -> object:
    return model(
        hidden_states=_empty(2, 4, LATENTS, LATENTS),
        encoder_hidden_states=_empty(2, 300, 4096),
        timestep=_empty(2),
        encoder_attention_mask=_empty(2, 300),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )


def _sana(model: Any) -> object:
    return model(
        hidden_states=_empty(2, 32, SIDE // 32, SIDE // 32),
        encoder_hidden_states=_empty(2, 300, 2304),
        timestep=_empty(2),
        encoder_attention_mask=_empty(2, 300),
    )


def _sdxl(model: Any) -> object:
    conditions = {"text_embeds": _empty(2, 1280), "time_ids": _empty(2, 6)}
    text = _empty(2, 77, 2048)
    time = torch.zeros((), device="meta")
    return model(_empty(2, 4, LATENTS, LATENTS), time, encoder_hidden_states=text, added_cond_kwargs=conditions)


def _sd15(model: Any) -> object:
    return model(
        _empty(2, 4, LATENTS, LATENTS), torch.zeros((), device="meta"), encoder_hidden_states=_empty(2, 77, 768)
    )


def _decode(channels: int, scale: int, frames: tuple[int, ...] = ()) -> Callable[[Any], object]:
    return lambda model: model.decode(_empty(1, channels, *frames, SIDE // scale, SIDE // scale))


SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 2),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
FOUR: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
MOVQ = FOUR | {"norm_type": "spatial", "num_vq_embeddings": 16384, "vq_embed_dim": 4, "latent_channels": 4}
MOVQ |= {"block_out_channels": (128, 256, 256, 512)}
TWO = {"num_layers": 2, "num_single_layers": 2}
SD35 = {"num_attention_heads": 38, "num_layers": 2, "sample_size": 128, "pos_embed_max_size": 192}
SD35 |= {"qk_norm": "rms_norm"}
SD35 |= {"caption_projection_dim": 2432, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
SD3M = SD35 | {"num_attention_heads": 24, "caption_projection_dim": 1536, "dual_attention_layers": (0,)}
PIXART = {"num_layers": 2, "sample_size": 128, "caption_channels": 4096, "cross_attention_dim": 1152}
PIXART |= {"use_additional_conditions": False}
RELEASED: dict[str, tuple[str, str, dict[str, Any], Callable[[Any], object]]] = {
    # name: the pipeline's class, the component's, what its configuration says, how it is called
    "flux": ("FluxPipeline", "FluxTransformer2DModel", TWO | {"guidance_embeds": True}, _flux),
    "flux2": ("Flux2Pipeline", "Flux2Transformer2DModel", TWO, _flux2),
    "sd3.5-large": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", SD35, _sd3),
    "sd3.5-medium": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", SD3M, _sd3),
    "pixart-sigma": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", PIXART, _pixart),
    "sana": ("SanaPipeline", "SanaTransformer2DModel", {"num_layers": 2, "sample_size": 32}, _sana),
    "sdxl": ("StableDiffusionXLPipeline", "UNet2DConditionModel", SDXL, _sdxl),
    "sd15": (
        "StableDiffusionPipeline",
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        _sd15,
    ),
    "kl": ("FluxPipeline", "AutoencoderKL", FOUR | {"latent_channels": 16}, _decode(16, 8)),
    "movq": ("KandinskyV22Pipeline", "VQModel", MOVQ, _decode(4, 8)),
    "qwen-image-vae": ("QwenImagePipeline", "AutoencoderKLQwenImage", {}, _decode(16, 8, (1,))),
    "tiny-vae": ("StableDiffusionPipeline", "AutoencoderTiny", {}, _decode(4, 8)),
}


@pytest.mark.parametrize("name", RELEASED)
def test_estimates_are_never_far_below_and_not_far_above(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    pipeline, kind, config, call = RELEASED[name]
    monkeypatch.setattr(live_bytes, "_has_storage", lambda tensor: type(tensor) in live_bytes._PLAIN)
    # On a real device no score is written out; here there would be.
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config).to(torch.bfloat16).eval()
    with torch.inference_mode(), live_bytes.LiveBytes() as live:
        call(model)
    joined = JoinedLayers(model)
    # On the meta device there is nothing to compare.
    monkeypatch.setattr(joining._Group, "_checked", lambda group, index, input, part: part)
    with torch.inference_mode(), joined.running(), live_bytes.LiveBytes() as live_joined:
        call(model)
    parts = {"VQModel": "movq", "UNet2DConditionModel": "unet"}
    part = parts.get(kind, "vae" if "Autoencoder" in kind else "transformer")
    vae = FLUX_VAE if name != "sana" else SANA_VAE
    components = {"vae": vae, part: {"_class_name": kind, **model.config}}
    estimate = component_peak(_checkpoint(pipeline, components), part, Extent(SIDE, SIDE), 2)
    for bytes in (live.bytes, live_joined.bytes):
        assert 0.95 * bytes <= estimate <= 1.35 * bytes, estimate / bytes


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)


def _checkpoint(pipeline: str, components: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        reference="released",
        root=Path("/nowhere"),
        layout="diffusers",
        config={"_class_name": pipeline},
        metadata={"components": components},
        tensors={},
        files={},
    )


@pytest.mark.parametrize(
    ("config", "tokens", "class_name"),
    [
        ({"d_model": 4096, "d_ff": 10240, "num_heads": 64, "d_kv": 64, "num_layers": 2}, 512, "T5EncoderModel"),
        ({"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20}, 77, "CLIPTextModel"),
        ({"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32}, 512, "Qwen3Model"),
    ],
)
def test_text_encoders(config: dict[str, Any], tokens: int, class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(live_bytes, "_has_storage", lambda tensor: type(tensor) in live_bytes._PLAIN)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
    kind = getattr(transformers, class_name)
    layers = {} if "T5" in class_name else {"num_hidden_layers": 2}
    with torch.device("meta"):
        model = kind(kind.config_class(**config, **layers)).to(torch.bfloat16).eval()
    ids = torch.empty(1, tokens, dtype=torch.long, device="meta")
    with torch.inference_mode(), live_bytes.LiveBytes() as live:
        model(input_ids=ids, output_hidden_states="T5" not in class_name)
    components = {"text_encoder": model.config.to_dict()}
    estimate = component_peak(_checkpoint("FluxPipeline", components), "text_encoder", Extent(SIDE, SIDE), 2)
    assert 0.95 * live.bytes <= estimate <= 1.65 * live.bytes, estimate / live.bytes
