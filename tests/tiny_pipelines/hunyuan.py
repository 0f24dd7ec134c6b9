"""HunyuanVideo, which makes videos of texts and of pictures."""

from __future__ import annotations

from typing import Any

from .language import llama, llava, llava_tokenizer, qwen_tokenizer
from .parts import WIDTH, clip_pictures, clip_text, clip_tokenizer, flow
from .spec import SHORT, PipelineSpec
from .weights import rescale

_LATENT = 4
_HEADER, _END = "<|start_header_id|>{}<|end_header_id|>", "<|eot_id|>"
_SEEING: dict[str, Any] = {
    "template": f"{_HEADER.format('s')}<image>d{_END}{_HEADER.format('u')}{{}}{_END}{_HEADER.format('a')}",
    "crop_start": 9,
    "image_emb_start": 3,
    "image_emb_end": 7,
    "image_emb_len": 4,
}
"""A template of the form of the pipeline's own, whose every token is one here too."""


def _parts(*, in_channels: int, seeing: str | None) -> dict[str, Any]:
    """All but what reads the prompt. `seeing`: how the transformer is shown a picture."""
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=in_channels,
        out_channels=_LATENT,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=seeing != "latent_concat",
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=seeing,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=_LATENT, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return {
        "transformer": rescale(transformer, {"proj_out": 2.0}),
        "vae": rescale(vae, {"decoder.conv_out": 0.6}),
        "scheduler": flow(shift=7.0),
        "text_encoder_2": clip_text(),
        "tokenizer_2": clip_tokenizer(),
    }


def hunyuan_video() -> Any:
    """HunyuanVideo, which reads the prompt with Llama and CLIP."""
    from diffusers import HunyuanVideoPipeline

    parts = _parts(in_channels=_LATENT, seeing=None)
    return HunyuanVideoPipeline(text_encoder=llama(), tokenizer=qwen_tokenizer(), **parts)


def hunyuan_i2v(seeing: str = "token_replace") -> Any:
    """HunyuanVideo-I2V, which reads prompt and picture with LLaVA; the picture takes the first frame's place."""
    from diffusers import HunyuanVideoImageToVideoPipeline

    return HunyuanVideoImageToVideoPipeline(
        **_parts(in_channels=2 * _LATENT + 1 if seeing == "latent_concat" else _LATENT, seeing=seeing),
        text_encoder=llava(),
        tokenizer=llava_tokenizer(),
        image_processor=clip_pictures(),
    )


def hunyuan_i2v_beside() -> Any:
    """Its older variant: the picture lies beside the latents, with a mask, and no guidance is embedded."""
    return hunyuan_i2v("latent_concat")


_ARGUMENTS: dict[str, Any] = SHORT | {"max_sequence_length": 48}
_CLASS = "HunyuanVideoImageToVideoPipeline"
SPECS = (
    PipelineSpec(
        name="hunyuan-video",
        class_name="HunyuanVideoPipeline",
        make=hunyuan_video,
        arguments=_ARGUMENTS | {"guidance_scale": 6.0, "prompt_template": {"template": "{}", "crop_start": 0}},
        takes=frozenset({"prompt"}),
    ),
    PipelineSpec(
        name="hunyuan-i2v",
        class_name=_CLASS,
        make=hunyuan_i2v,
        arguments=_ARGUMENTS | {"guidance_scale": 6.0, "prompt_template": _SEEING},
        takes=frozenset({"prompt", "image"}),
    ),
    PipelineSpec(
        name="hunyuan-i2v-beside",
        class_name=_CLASS,
        make=hunyuan_i2v_beside,
        arguments=_ARGUMENTS | {"true_cfg_scale": 2.0, "prompt_template": _SEEING},
        takes=frozenset({"prompt", "negative", "image"}),
    ),
)
