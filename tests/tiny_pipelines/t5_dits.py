"""Pipelines around a transformer that reads T5's or BERT's states: PixArt, Hunyuan-DiT, Wan."""

from __future__ import annotations

from typing import Any

from .language import bert, bert_tokenizer
from .parts import LATENT_BETAS, WIDTH, frames_vae, picture_vae, t5_encoder, t5_tokenizer
from .spec import FOUR, PipelineSpec
from .weights import rescale


def _pixart_transformer(*, sample_size: int, conditions: bool) -> Any:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=sample_size,  # 32 is the smallest for which there are tables of picture sizes
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=4,
        cross_attention_dim=48,  # a third of it for each of three conditions
        caption_channels=WIDTH,
        use_additional_conditions=conditions,
    )
    return rescale(model, {"proj_out": 2.0, "adaln_single": 1.6})


def _pixart_parts(transformer: Any, *, length: int) -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler

    return {
        "tokenizer": t5_tokenizer(length=length),
        "text_encoder": t5_encoder(),
        "vae": picture_vae(),
        "transformer": transformer,
        "scheduler": DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    }


def pixart_alpha() -> Any:
    """PixArt of the size that takes the picture's size and shape as conditions."""
    from diffusers import PixArtAlphaPipeline

    transformer = _pixart_transformer(sample_size=128, conditions=True)
    return PixArtAlphaPipeline(**_pixart_parts(transformer, length=120))


def pixart_sigma() -> Any:
    from diffusers import PixArtSigmaPipeline

    transformer = _pixart_transformer(sample_size=32, conditions=False)
    return PixArtSigmaPipeline(**_pixart_parts(transformer, length=300))


def hunyuan_dit() -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    transformer = HunyuanDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        hidden_size=32,
        mlp_ratio=2.0,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
        use_style_cond_and_image_meta_size=True,
    )
    return HunyuanDiTPipeline(
        vae=picture_vae(scaling=0.13025),
        text_encoder=bert(),
        tokenizer=bert_tokenizer(),
        transformer=rescale(transformer, {"proj_out": 1.5}),
        scheduler=DDPMScheduler(**LATENT_BETAS | {"beta_end": 0.02}, prediction_type="v_prediction", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(length=256),
    )


def wan() -> Any:
    """Wan 2.1: 4 k + 1 frames."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = frames_vae(AutoencoderKLWan, conv_out=0.6)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(length=512),
        text_encoder=t5_encoder(universal=True),
        vae=vae,
        scheduler=scheduler,
        transformer=rescale(transformer, {"proj_out": 2.5}),
    )


_HUNYUAN = FOUR | {"guidance_scale": 4.5, "use_resolution_binning": False}
_PIXART = _HUNYUAN | {"clean_caption": False}  # that would need Beautiful Soup
SPECS = (
    PipelineSpec(name="pixart-alpha", class_name="PixArtAlphaPipeline", make=pixart_alpha, arguments=_PIXART),
    PipelineSpec(name="pixart-sigma", class_name="PixArtSigmaPipeline", make=pixart_sigma, arguments=_PIXART),
    PipelineSpec(name="hunyuan-dit", class_name="HunyuanDiTPipeline", make=hunyuan_dit, arguments=_HUNYUAN),
    PipelineSpec(
        name="wan",
        class_name="WanPipeline",
        make=wan,
        arguments={"num_inference_steps": 3, "guidance_scale": 5.0, "height": 32, "width": 32, "num_frames": 5}
        | {"max_sequence_length": 48},
        takes=frozenset({"prompt", "negative", "size", "frames"}),
        siblings={"video": "WanVideoToVideoPipeline"},
    ),
)
