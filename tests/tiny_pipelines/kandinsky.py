"""Kandinsky 2.2: a prior that makes picture embeddings of a prompt, and a decoder that makes pictures of those."""

from __future__ import annotations

from typing import Any

import torch

from .parts import WIDTH, clip_pictures, clip_text, clip_tokenizer, clip_vision
from .spec import FOUR, PipelineSpec
from .weights import rescale


def _decoder_parts() -> dict[str, Any]:
    from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
    movq = VQModel(
        block_out_channels=(32, 32, 32),  # what its spatial norm divides into groups
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=32,
        vq_embed_dim=4,
    )
    rescale(movq, {"decoder.conv_out": 0.6})
    for module in movq.decoder.modules():
        if hasattr(module, "conv_y"):  # a norm that the latents scale: else it would let them grow with each layer
            torch.nn.init.ones_(module.conv_y.bias)
            module.conv_y.weight.data *= 0.2
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, variance_type="learned_range", clip_sample_range=2.0, steps_offset=1
    )
    return {
        "unet": rescale(unet, {"conv_out": 0.3}),
        "movq": movq,
        "scheduler": scheduler,
    }


def _prior_parts() -> dict[str, Any]:
    from diffusers import PriorTransformer, UnCLIPScheduler

    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=2)
    return {
        "prior": rescale(prior, {"proj_to_clip_embeddings": 1.5}),
        "image_encoder": clip_vision(),
        "text_encoder": clip_text(projection=WIDTH, act="gelu"),
        "tokenizer": clip_tokenizer(),
        "scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=10.0
        ),
        "image_processor": clip_pictures(),
    }


def decoder() -> Any:
    from diffusers import KandinskyV22Pipeline

    return KandinskyV22Pipeline(**_decoder_parts())


def combined() -> Any:
    """Prior and decoder in one folder."""
    from diffusers import KandinskyV22CombinedPipeline

    prior = {f"prior_{name}": part for name, part in _prior_parts().items()}
    return KandinskyV22CombinedPipeline(**_decoder_parts(), **prior)


_SMALL = FOUR | {"guidance_scale": 4.0}
SPECS = (
    PipelineSpec(
        name="kandinsky22-decoder",
        class_name="KandinskyV22Pipeline",
        make=decoder,
        arguments=_SMALL,
        takes=frozenset({"embedding", "size"}),
        siblings={"img2img": "KandinskyV22Img2ImgPipeline"},
    ),
    PipelineSpec(
        name="kandinsky22",
        class_name="KandinskyV22CombinedPipeline",
        make=combined,
        arguments=_SMALL | {"prior_num_inference_steps": 3},
        siblings={"img2img": "KandinskyV22Img2ImgCombinedPipeline"},
    ),
)
