"""Components that several pipelines have: text encoders, tokenizers, picture VAEs, schedulers."""

from __future__ import annotations

from typing import Any

from .weights import narrow, rescale

WIDTH = 32
"""Hidden size of the text encoders."""
LATENT_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, "!" first as in CLIP's vocabulary."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer(*, pad: str = CLIP_EOS) -> Any:
    """CLIP's byte-level tokenizer without merges: one token a byte."""
    from transformers import CLIPTokenizer

    alphabet = byte_alphabet()
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), CLIP_BOS, CLIP_EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def clip_text(*, projection: int | None = None, act: str = "quick_gelu", layers: int = 2) -> Any:
    """CLIP's text encoder. `projection`: the size of its pooled embedding, if it has a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=projection or WIDTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    model = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    return rescale(model)


def clip_vision(*, size: int = 28, projection: bool = True) -> Any:
    """CLIP's picture encoder, with a projection or without."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
    )
    return rescale((CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config))


def clip_pictures(*, size: int = 28) -> Any:
    """What prepares pictures for `clip_vision`."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


T5_CHARACTERS = [chr(code) for code in range(33, 127)]


def t5_tokenizer(*, length: int = 512) -> Any:
    """A Unigram tokenizer of single characters, of the class that T5's checkpoints name."""
    from transformers import T5Tokenizer

    words = [("▁" + character, -3.0) for character in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *words]
    vocabulary += [(character, -4.0) for character in T5_CHARACTERS]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def t5_encoder(*, universal: bool = False, width: int = WIDTH) -> Any:
    """T5's encoder, or UMT5's."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config_class, model_class = (UMT5Config, UMT5EncoderModel) if universal else (T5Config, T5EncoderModel)
    config = config_class(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return rescale(model_class(config), attention=0.8)  # it does not divide by the square root of the head's size


def picture_vae(
    *, latent: int = 4, scaling: float = 0.18215, shift: float | None = None, quant: bool = True, levels: int = 4
) -> Any:
    """AutoencoderKL. Latents are smaller than the picture by 2^(levels - 1)."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        force_upcast=False,
    )
    rescale(model, {"decoder.conv_out": 0.6})
    narrow(model.quant_conv if quant else model.encoder.conv_out, gain=1.0 / scaling)
    return model


def flux_vae() -> Any:
    """The AutoencoderKL of Flux, which other pipelines took over."""
    return picture_vae(latent=16, scaling=0.3611, shift=0.1159, quant=False)


def frames_vae(kind: Any, *, conv_out: float) -> Any:
    """An autoencoder of frames, `AutoencoderKLWan` or one made after it. `conv_out`: the gain of its last kernel."""
    model = kind(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    rescale(model, {"decoder.conv_out": conv_out})
    narrow(model.quant_conv, gain=1.0)
    return model


def pndm() -> Any:
    """Stable Diffusion 1.5's scheduler."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(**LATENT_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)


def euler() -> Any:
    """SDXL's scheduler."""
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(**LATENT_BETAS, steps_offset=1, timestep_spacing="leading")


def flow(**changes: Any) -> Any:
    """The flow-matching Euler scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)
