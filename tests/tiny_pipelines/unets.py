"""Pipelines around a UNet: Stable Diffusion 1.5, SDXL, latent consistency, and an unconditional one."""

from __future__ import annotations

from typing import Any

import torch

from .parts import LATENT_BETAS, WIDTH, clip_pictures, clip_text, clip_tokenizer, euler, picture_vae, pndm
from .spec import FOUR, SIZE, PipelineSpec
from .weights import rescale

SD_SIBLINGS = {
    "img2img": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
    "control": "StableDiffusionControlNetPipeline",
    "control_img2img": "StableDiffusionControlNetImg2ImgPipeline",
    "control_inpaint": "StableDiffusionControlNetInpaintPipeline",
}
SDXL_SIBLINGS = {
    "img2img": "StableDiffusionXLImg2ImgPipeline",
    "inpaint": "StableDiffusionXLInpaintPipeline",
    "control": "StableDiffusionXLControlNetPipeline",
}
CHECKER_THRESHOLD = 0.63
"""Likeness to a forbidden concept from which on a picture is blackened."""
BLOCKS: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def unet(**changes: Any) -> Any:
    """Stable Diffusion 1.5's UNet, with two levels."""
    from diffusers import UNet2DConditionModel

    config = BLOCKS | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    }
    return rescale(UNet2DConditionModel(**config | changes), {"conv_out": 1.2})


def xl_unet(*, text: int, ids: int) -> Any:
    """SDXL's UNet for text states of size `text`, which takes `ids` numbers about the picture's size."""
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=text,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * ids + WIDTH,
    )


def sd15(**changes: Any) -> Any:
    """Stable Diffusion 1.5; `changes` are the UNet's."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=picture_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(**changes),
        scheduler=pndm(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd15_inpaint() -> Any:
    """Stable Diffusion 1.5 with a UNet that takes the mask and the masked picture as channels."""
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(**sd15(in_channels=9).components, requires_safety_checker=False)


def sd15_checked() -> Any:
    """Stable Diffusion 1.5 with its safety checker, which blackens about every second picture."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tower | {"image_size": 224, "patch_size": 32}
    config = CLIPConfig(vision_config=vision, text_config=tower | {"vocab_size": 8}, projection_dim=8)
    checker = rescale(StableDiffusionSafetyChecker(config))
    for name, threshold in (("concept_embeds_weights", CHECKER_THRESHOLD), ("special_care_embeds_weights", 1.0)):
        torch.nn.init.constant_(getattr(checker, name), threshold)
    parts = sd15().components | {"safety_checker": checker, "feature_extractor": clip_pictures(size=224)}
    return StableDiffusionPipeline(**parts)


def sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=picture_vae(scaling=0.13025),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=WIDTH, act="gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        unet=xl_unet(text=2 * WIDTH, ids=6),
        scheduler=euler(),
    )


def sdxl_refiner() -> Any:
    import torch
    from diffusers import StableDiffusionXLImg2ImgPipeline

    refiner = xl_unet(text=WIDTH, ids=5)
    with torch.no_grad():  # else its steps blow rounding errors up by a thousand times
        refiner.conv_out.weight.mul_(0.25)
    return StableDiffusionXLImg2ImgPipeline(
        vae=picture_vae(scaling=0.13025),
        text_encoder=None,
        text_encoder_2=clip_text(projection=WIDTH, act="gelu"),
        tokenizer=None,
        tokenizer_2=clip_tokenizer(pad="!"),
        unet=refiner,
        scheduler=euler(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )


def lcm() -> Any:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    parts = sd15(time_cond_proj_dim=16).components
    scheduler = LCMScheduler(**LATENT_BETAS)
    return LatentConsistencyModelPipeline(**parts | {"scheduler": scheduler}, requires_safety_checker=False)


def ddpm() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    model = UNet2DModel(
        **BLOCKS | {"sample_size": 32},
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )
    return DDPMPipeline(unet=rescale(model, {"conv_out": 0.3}), scheduler=DDPMScheduler())


_SMALL = FOUR | {"guidance_scale": 5.0}
SPECS = (
    PipelineSpec(name="sd15", class_name="StableDiffusionPipeline", make=sd15, arguments=_SMALL, siblings=SD_SIBLINGS),
    PipelineSpec(name="sd15-checked", class_name="StableDiffusionPipeline", make=sd15_checked, arguments=_SMALL),
    PipelineSpec(
        name="sd15-inpaint",
        class_name="StableDiffusionInpaintPipeline",
        make=sd15_inpaint,
        arguments=_SMALL,
        takes=frozenset({"prompt", "negative", "image", "mask", "size"}),
    ),
    PipelineSpec(
        name="sdxl", class_name="StableDiffusionXLPipeline", make=sdxl, arguments=_SMALL, siblings=SDXL_SIBLINGS
    ),
    PipelineSpec(
        name="sdxl-refiner",
        class_name="StableDiffusionXLImg2ImgPipeline",
        make=sdxl_refiner,
        arguments={"num_inference_steps": 6, "guidance_scale": 3.0, "strength": 0.6},
        takes=frozenset({"prompt", "negative", "image"}),
    ),
    PipelineSpec(
        name="lcm",
        class_name="LatentConsistencyModelPipeline",
        make=lcm,
        arguments=SIZE | {"num_inference_steps": 3, "guidance_scale": 8.5},
        takes=frozenset({"prompt", "size"}),
        siblings={"img2img": "LatentConsistencyModelImg2ImgPipeline"},
    ),
    PipelineSpec(
        name="ddpm",
        class_name="DDPMPipeline",
        make=ddpm,
        arguments={"num_inference_steps": 5},
        takes=frozenset(),
    ),
)
