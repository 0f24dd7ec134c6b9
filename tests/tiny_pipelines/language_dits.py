"""Pipelines around a transformer that reads a language model's states: Sana, Lumina 2, Z-Image, Qwen-Image, Flux 2."""

from __future__ import annotations

from typing import Any

from .language import gemma2, gemma_tokenizer, mistral3, mistral_tokenizer, qwen2_vl, qwen3, qwen_tokenizer
from .parts import WIDTH, flow, flux_vae, frames_vae
from .spec import FOUR, PipelineSpec
from .weights import narrow, rescale

DEEP_WIDTH = 16
"""Hidden size of text encoders that need many layers, because a pipeline reads layers by their numbers."""


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    channels = (8, 8, 16, 16)
    vae = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=32,
    )
    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma2(),
        vae=rescale(vae, {"decoder.conv_out": 0.6}),
        transformer=rescale(transformer, {"proj_out": 2.5}),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
    )


def _with_flux_vae(transformer: Any, *, shift: float) -> dict[str, Any]:
    return {"transformer": transformer, "scheduler": flow(shift=shift), "vae": flux_vae()}


def lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=WIDTH,
    )
    rescale(transformer, {"norm_out": 3.0, "time_caption_embed": 2.0})
    return Lumina2Pipeline(
        **_with_flux_vae(transformer, shift=6.0), text_encoder=gemma2(layers=3), tokenizer=gemma_tokenizer()
    )


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    rescale(transformer, {"all_final_layer": 2.0})
    return ZImagePipeline(**_with_flux_vae(transformer, shift=3.0), text_encoder=qwen3(), tokenizer=qwen_tokenizer())


def qwen_image() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=flow(shift=1.0, use_dynamic_shifting=True, shift_terminal=0.02),
        # Two thirds of its last kernel see frames that are not there.
        vae=frames_vae(AutoencoderKLQwenImage, conv_out=1.1),
        text_encoder=qwen2_vl(),
        tokenizer=qwen_tokenizer(),
        transformer=rescale(transformer, {"proj_out": 2.5}),
    )


def _flux2_parts(*, guidance: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * DEEP_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=16, norm_num_groups=4, sample_size=64
    )
    rescale(vae, {"decoder.conv_out": 0.6})
    narrow(vae.quant_conv, gain=1.0)
    return {
        "scheduler": flow(shift=3.0, use_dynamic_shifting=True),
        "vae": vae,
        "transformer": rescale(transformer, {"proj_out": 2.5, "context_embedder": 3.0}, attention=2.4),
    }


def flux2() -> Any:
    """Flux 2 "dev". Its tokenizer is not the published one: that is a processor for pictures too."""
    from diffusers import Flux2Pipeline

    return Flux2Pipeline(
        **_flux2_parts(guidance=True),
        text_encoder=mistral3(layers=30, width=DEEP_WIDTH),
        tokenizer=mistral_tokenizer(),
    )


def flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(
        **_flux2_parts(guidance=False),
        text_encoder=qwen3(layers=27, width=DEEP_WIDTH, causal_lm=True),
        tokenizer=qwen_tokenizer(),
        is_distilled=False,
    )


_NO_NEGATIVE = frozenset({"prompt", "size"})
SPECS = (
    PipelineSpec(
        name="sana",
        class_name="SanaPipeline",
        make=sana,
        arguments=FOUR | {"guidance_scale": 4.5, "use_resolution_binning": False},
    ),
    PipelineSpec(name="lumina2", class_name="Lumina2Pipeline", make=lumina2, arguments=FOUR | {"guidance_scale": 4.0}),
    PipelineSpec(
        name="z-image",
        class_name="ZImagePipeline",
        make=z_image,
        arguments=FOUR | {"guidance_scale": 4.0, "max_sequence_length": 96},
        siblings={"img2img": "ZImageImg2ImgPipeline", "inpaint": "ZImageInpaintPipeline"},
    ),
    PipelineSpec(
        name="qwen-image",
        class_name="QwenImagePipeline",
        make=qwen_image,
        arguments=FOUR | {"true_cfg_scale": 4.0, "negative_prompt": " ", "max_sequence_length": 256},
        siblings={"img2img": "QwenImageImg2ImgPipeline", "inpaint": "QwenImageInpaintPipeline"},
    ),
    PipelineSpec(
        name="flux2",
        class_name="Flux2Pipeline",
        make=flux2,
        arguments=FOUR | {"guidance_scale": 4.0, "max_sequence_length": 128},
        takes=_NO_NEGATIVE,
    ),
    PipelineSpec(
        name="flux2-klein",
        class_name="Flux2KleinPipeline",
        make=flux2_klein,
        arguments=FOUR | {"guidance_scale": 4.0, "max_sequence_length": 128},
        takes=_NO_NEGATIVE,
    ),
)
