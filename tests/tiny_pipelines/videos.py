"""Pipelines that make videos: Wan, LTX, CogVideoX, AnimateDiff, Stable Video Diffusion."""

from __future__ import annotations

from typing import Any

from .language import gemma2, gemma_tokenizer
from .parts import (
    LATENT_BETAS,
    WIDTH,
    clip_pictures,
    clip_text,
    clip_tokenizer,
    clip_vision,
    flow,
    frames_vae,
    picture_vae,
    t5_encoder,
    t5_tokenizer,
)
from .spec import SHORT, PipelineSpec
from .unets import unet
from .weights import rescale


def wan_i2v(*, ends: bool = False) -> Any:
    """Wan 2.1 that begins with a picture, which it also sees through CLIP; `ends`: and ends with one."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=36,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=WIDTH,
        added_kv_proj_dim=24,
        pos_embed_seq_len=2 * 5 if ends else None,  # tokens of a picture: 4 and the class
    )
    return WanImageToVideoPipeline(
        tokenizer=t5_tokenizer(length=512),
        text_encoder=t5_encoder(universal=True),
        image_encoder=clip_vision(projection=False),
        image_processor=clip_pictures(),
        vae=frames_vae(AutoencoderKLWan, conv_out=0.6),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=rescale(transformer, {"proj_out": 2.5}),
    )


def wan_ends() -> Any:
    """Wan 2.1 that is given the first and the last picture."""
    return wan_i2v(ends=True)


def ltx(*, conditions: bool = False) -> Any:
    """LTX-Video: 8 k + 1 frames; `conditions`: of the versions whose checkpoints name the class that takes them."""
    from diffusers import AutoencoderKLLTXVideo, LTXConditionPipeline, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
    )
    return (LTXConditionPipeline if conditions else LTXPipeline)(
        tokenizer=t5_tokenizer(length=128),
        text_encoder=t5_encoder(),
        vae=rescale(vae, {"decoder.conv_out": 0.6}),
        scheduler=flow() if conditions else flow(use_dynamic_shifting=True, shift_terminal=0.1),
        transformer=rescale(transformer, {"proj_out": 2.5}),
    )


def ltx_conditions() -> Any:
    """LTX-Video 0.9.5 and later."""
    return ltx(conditions=True)


def _ltx2_sound() -> dict[str, Any]:
    """What LTX-2 has for its sound: spectrograms of two channels and 16 bands, a quarter of them latents."""
    from diffusers import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    sound_vae = AutoencoderKLLTX2Audio(
        base_channels=8,
        num_res_blocks=1,
        latent_channels=2,
        resolution=32,
        mel_bins=16,
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,  # states of two layers, and what they begin with
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * 16,
        hidden_channels=32,
        upsample_kernel_sizes=[12, 10, 16],
        upsample_factors=[6, 5, 8],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return {
        "audio_vae": rescale(sound_vae),
        "connectors": rescale(connectors),
        "vocoder": rescale(vocoder),
    }


def ltx2() -> Any:
    """LTX-2, which makes a sound track with its video."""
    from diffusers import (
        AutoencoderKLLTX2Video,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )

    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=WIDTH,
        rope_double_precision=False,
        rope_type="split",
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_spatial_padding_mode="zeros",
        decoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return LTX2Pipeline(
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=rescale(vae, {"decoder.conv_out": 0.6}),
        text_encoder=gemma2(),
        tokenizer=gemma_tokenizer(),
        transformer=rescale(transformer, {"proj_out": 2.5, "audio_proj_out": 2.5}),
        **_ltx2_sound(),
    )


def _cogvideox_parts(*, in_channels: int) -> dict[str, Any]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=48,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=in_channels > 4,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=32,
        sample_width=32,
    )
    return {
        "tokenizer": t5_tokenizer(length=226),
        "text_encoder": t5_encoder(),
        "vae": rescale(vae, {"decoder.conv_out": 0.6}),
        "transformer": rescale(transformer, {"proj_out": 1.5}),
        "scheduler": CogVideoXDDIMScheduler(
            beta_end=0.012, beta_start=0.00085, prediction_type="v_prediction", timestep_spacing="trailing"
        ),
    }


def cogvideox() -> Any:
    from diffusers import CogVideoXPipeline

    return CogVideoXPipeline(**_cogvideox_parts(in_channels=4))


def cogvideox_i2v() -> Any:
    from diffusers import CogVideoXImageToVideoPipeline

    return CogVideoXImageToVideoPipeline(**_cogvideox_parts(in_channels=8))


def animatediff() -> Any:
    """Stable Diffusion 1.5 with a motion adapter, as AnimateDiff's pipeline saves it."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )
    return AnimateDiffPipeline(
        vae=picture_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        motion_adapter=rescale(adapter),
        scheduler=DDIMScheduler(**LATENT_BETAS | {"beta_schedule": "linear"}, steps_offset=1, clip_sample=False),
    )


def stable_video() -> Any:
    """Stable Video Diffusion: a picture that begins to move."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )

    denoiser = UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),  # its normalization has 32 groups
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        num_frames=5,
    )
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=4,
        force_upcast=False,
    )
    return StableVideoDiffusionPipeline(
        vae=rescale(vae, {"decoder.conv_out": 0.6}),
        image_encoder=clip_vision(size=224),
        unet=rescale(denoiser, {"conv_out": 1.2}),
        scheduler=EulerDiscreteScheduler(
            **LATENT_BETAS, prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True,
            timestep_spacing="leading", sigma_min=0.002, sigma_max=700.0,
        ),
        feature_extractor=clip_pictures(size=224),
    )  # fmt: skip


_TEXT = frozenset({"prompt", "negative"})
SPECS = (
    PipelineSpec(
        name="wan-i2v",
        class_name="WanImageToVideoPipeline",
        make=wan_i2v,
        arguments=SHORT | {"guidance_scale": 5.0, "max_sequence_length": 48},
        takes=_TEXT | {"image"},
    ),
    PipelineSpec(
        name="wan-ends",
        class_name="WanImageToVideoPipeline",
        make=wan_ends,
        arguments=SHORT | {"guidance_scale": 5.0, "max_sequence_length": 48},
        takes=_TEXT | {"image", "last image"},
    ),
    PipelineSpec(
        name="ltx",
        class_name="LTXPipeline",
        make=ltx,
        arguments=SHORT | {"guidance_scale": 3.0, "num_frames": 9, "height": 64, "width": 64},
        takes=_TEXT,
        siblings={"image": "LTXImageToVideoPipeline"},
    ),
    PipelineSpec(
        name="ltx-conditions",
        class_name="LTXConditionPipeline",
        make=ltx_conditions,
        arguments=SHORT | {"guidance_scale": 3.0, "num_frames": 17, "height": 64, "width": 64},
        takes=_TEXT,
    ),
    PipelineSpec(
        name="ltx2",
        class_name="LTX2Pipeline",
        make=ltx2,
        arguments=SHORT
        | {"guidance_scale": 2.0, "num_frames": 9, "height": 64, "width": 64, "max_sequence_length": 48}
        | {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0},
        takes=_TEXT,
        siblings={"image": "LTX2ImageToVideoPipeline"},
    ),
    PipelineSpec(
        name="cogvideox",
        class_name="CogVideoXPipeline",
        make=cogvideox,
        arguments=SHORT | {"guidance_scale": 6.0, "max_sequence_length": 48, "num_frames": 9},
        takes=_TEXT,
        siblings={"video": "CogVideoXVideoToVideoPipeline"},
    ),
    PipelineSpec(
        name="cogvideox-i2v",
        class_name="CogVideoXImageToVideoPipeline",
        make=cogvideox_i2v,
        arguments=SHORT | {"guidance_scale": 6.0, "max_sequence_length": 48, "num_frames": 9},
        takes=_TEXT | {"image"},
    ),
    PipelineSpec(
        name="animatediff",
        class_name="AnimateDiffPipeline",
        make=animatediff,
        arguments=SHORT | {"guidance_scale": 7.5, "num_frames": 4},
        takes=_TEXT,
        siblings={"video": "AnimateDiffVideoToVideoPipeline"},
    ),
    PipelineSpec(
        name="stable-video",
        class_name="StableVideoDiffusionPipeline",
        make=stable_video,
        arguments=SHORT | {"max_guidance_scale": 3.0},
        takes=frozenset({"image"}),
    ),
)
