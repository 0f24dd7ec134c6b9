"""Pipelines around a transformer that reads CLIP's and T5's states, and DiT, which takes class labels."""

from __future__ import annotations

from typing import Any

from .parts import WIDTH, clip_text, clip_tokenizer, flow, flux_vae, picture_vae, t5_encoder, t5_tokenizer
from .spec import FOUR, PipelineSpec
from .weights import rescale

OUT = {"proj_out": 2.5}
FLUX_SIBLINGS = {"img2img": "FluxImg2ImgPipeline", "inpaint": "FluxInpaintPipeline"}
SD3_SIBLINGS = {"img2img": "StableDiffusion3Img2ImgPipeline", "inpaint": "StableDiffusion3InpaintPipeline"}


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    t5_width = 80  # more than both CLIPs together, whose states are filled up with zeros
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=t5_width,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=rescale(transformer, OUT),
        scheduler=flow(shift=3.0),
        vae=picture_vae(latent=16, scaling=1.5305, shift=0.0609, quant=False),
        text_encoder=clip_text(projection=WIDTH),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(projection=WIDTH, act="gelu"),
        tokenizer_2=clip_tokenizer(pad="!"),
        text_encoder_3=t5_encoder(width=t5_width),
        tokenizer_3=t5_tokenizer(),
    )


def _flux_parts(*, guidance: bool) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "transformer": rescale(transformer, OUT),
        "scheduler": flow(shift=3.0, use_dynamic_shifting=True),
        "vae": flux_vae(),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
    }


def flux() -> Any:
    """Flux as "dev": guidance is an input of the transformer."""
    from diffusers import FluxPipeline

    return FluxPipeline(**_flux_parts(guidance=True))


def flux_schnell() -> Any:
    """Flux without guidance, its time steps not shifted."""
    from diffusers import FluxPipeline

    return FluxPipeline(**_flux_parts(guidance=False) | {"scheduler": flow(shift=1.0)})


def flux_kontext() -> Any:
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_flux_parts(guidance=True))


def dit() -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,  # half of them is a variance, which is dropped
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_embeds_ada_norm=1000,  # the pipeline takes label 1000 for "none"
    )
    return DiTPipeline(
        transformer=rescale(transformer, {"proj_out_2": 1.2}),
        vae=picture_vae(),
        scheduler=DDIMScheduler(),
        id2label={0: "tench, Tinca tinca", 1: "goldfish", 999: "toilet tissue"},
    )


_FLUX = FOUR | {"max_sequence_length": 48}
SPECS = (
    PipelineSpec(
        name="sd3",
        class_name="StableDiffusion3Pipeline",
        make=sd3,
        arguments=FOUR | {"guidance_scale": 5.0, "max_sequence_length": 48},
        siblings=SD3_SIBLINGS,
    ),
    PipelineSpec(
        name="flux",
        class_name="FluxPipeline",
        make=flux,
        arguments=_FLUX | {"guidance_scale": 3.5},
        siblings=FLUX_SIBLINGS,
    ),
    PipelineSpec(
        name="flux-schnell",
        class_name="FluxPipeline",
        make=flux_schnell,
        arguments=_FLUX | {"guidance_scale": 0.0},
        siblings=FLUX_SIBLINGS,
    ),
    PipelineSpec(
        name="flux-kontext",
        class_name="FluxKontextPipeline",
        make=flux_kontext,
        arguments=_FLUX | {"guidance_scale": 2.5, "max_area": 64 * 64, "_auto_resize": False},
        takes=frozenset({"prompt", "negative", "image", "size"}),
    ),
    PipelineSpec(
        name="dit",
        class_name="DiTPipeline",
        make=dit,
        arguments={"num_inference_steps": 4, "guidance_scale": 4.0},
        takes=frozenset({"class"}),
    ),
)
