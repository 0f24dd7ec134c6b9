"""Pipelines that make sounds: AudioLDM 2, MusicLDM, Stable Audio, ACE-Step."""

from __future__ import annotations

from typing import Any

from .language import qwen3, qwen_tokenizer
from .parts import LATENT_BETAS, WIDTH, flow, t5_encoder, t5_tokenizer
from .spec import PipelineSpec
from .unets import unet
from .weights import narrow, rescale

_RATE = 4000
_BANDS = 8


def _spectrogram_vae() -> Any:
    """AutoencoderKL of spectrograms, which have one channel."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8),
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    rescale(model, {"decoder.conv_out": 0.6})
    narrow(model.quant_conv, gain=5.0)
    return model


def _vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = SpeechT5HifiGanConfig(
        model_in_dim=_BANDS,
        sampling_rate=_RATE,
        upsample_initial_channel=16,
        upsample_rates=[2, 4],
        upsample_kernel_sizes=[4, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    return rescale(SpeechT5HifiGan(config))


def _roberta_tokenizer() -> Any:
    """Byte-level without merges, as CLAP's."""
    from transformers import RobertaTokenizer

    from .parts import byte_alphabet

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_alphabet()]
    return RobertaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _clap() -> Any:
    """CLAP."""
    from transformers import ClapConfig, ClapModel

    text = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
        "projection_dim": WIDTH,
        "pad_token_id": 1,
    }
    sound = {
        "spec_size": 64,
        "window_size": 4,
        "num_mel_bins": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "hidden_size": 2 * 16,
        "patch_embeds_hidden_size": 16,
        "projection_dim": WIDTH,
    }
    return rescale(ClapModel(ClapConfig(text_config=text, audio_config=sound, projection_dim=WIDTH)))


def _hearing() -> Any:
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(feature_size=64, hop_length=480)


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**LATENT_BETAS, clip_sample=False, set_alpha_to_one=False)


def audioldm2() -> Any:
    """AudioLDM 2: CLAP, T5 and GPT-2 read the prompt."""
    from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
    from transformers import GPT2Config, GPT2LMHeadModel

    denoiser = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 16, WIDTH), (None, 16, WIDTH)),
        attention_head_dim=4,
    )
    language = GPT2Config(
        vocab_size=300,
        n_embd=16,
        n_inner=32,
        n_layer=2,
        n_head=2,
        n_positions=256,
        max_new_tokens=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return AudioLDM2Pipeline(
        vae=_spectrogram_vae(),
        text_encoder=_clap(),
        text_encoder_2=t5_encoder(),
        projection_model=rescale(
            AudioLDM2ProjectionModel(text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=16)
        ),
        language_model=rescale(GPT2LMHeadModel(language)),
        tokenizer=_roberta_tokenizer(),
        tokenizer_2=t5_tokenizer(length=77),
        feature_extractor=_hearing(),
        unet=rescale(denoiser, {"conv_out": 1.2}),
        scheduler=_ddim(),
        vocoder=_vocoder(),
    )


def musicldm() -> Any:
    """MusicLDM: CLAP alone reads the prompt."""
    from diffusers import MusicLDMPipeline

    return MusicLDMPipeline(
        vae=_spectrogram_vae(),
        text_encoder=_clap(),
        tokenizer=_roberta_tokenizer(),
        feature_extractor=_hearing(),
        unet=unet(
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=WIDTH,
            class_embeddings_concat=True,
            cross_attention_dim=(16, 32),  # it looks at nothing but itself
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=_ddim(),
        vocoder=_vocoder(),
    )


def stable_audio() -> Any:
    """Stable Audio Open: stereo, of a length that is fixed and cut."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    transformer = StableAudioDiTModel(
        sample_size=64,
        in_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=8,
        cross_attention_dim=WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=[2, 4, 4],
        channel_multiples=[1, 2, 2],
        decoder_channels=8,
        decoder_input_channels=8,
        audio_channels=2,
        sampling_rate=_RATE,
    )
    return StableAudioPipeline(
        vae=vae.eval(),
        text_encoder=t5_encoder(),
        projection_model=rescale(
            StableAudioProjectionModel(text_encoder_dim=WIDTH, conditioning_dim=WIDTH, min_value=0, max_value=8)
        ),
        tokenizer=t5_tokenizer(length=48),
        transformer=rescale(transformer, {"proj_out": 1.5}),
        scheduler=EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def _ace_step_conditions() -> Any:
    """What reads lyrics, texts and timbres."""
    import torch
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    model = AceStepConditionEncoder(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        text_hidden_dim=WIDTH,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=2,
        num_timbre_encoder_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    rescale(model).silence_latent.copy_(0.3 * torch.randn_like(model.silence_latent))
    return model


def _ace_step_codes() -> dict[str, Any]:
    """What makes codes of a sound that is to be covered, and latents of them."""
    from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "audio_acoustic_hidden_dim": 8,
        "num_attention_pooler_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return {
        "audio_tokenizer": rescale(AceStepAudioTokenizer(**sizes, fsq_dim=WIDTH)),
        "audio_token_detokenizer": rescale(AceStepAudioTokenDetokenizer(**sizes)),
    }


def ace_step() -> Any:
    """ACE-Step 1.5: songs, of what is in them and of what is sung."""
    from diffusers import AceStepPipeline, AceStepTransformer1DModel, AutoencoderOobleck

    transformer = AceStepTransformer1DModel(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        in_channels=3 * 8,
        audio_acoustic_hidden_dim=8,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=[4, 8, 8],
        channel_multiples=[1, 2, 2],
        decoder_channels=8,
        decoder_input_channels=8,
        audio_channels=2,
        sampling_rate=_RATE,
    )
    return AceStepPipeline(
        vae=vae.eval(),
        text_encoder=qwen3(layers=2),
        tokenizer=qwen_tokenizer(),
        transformer=rescale(transformer, {"proj_out": 1.5}),
        condition_encoder=_ace_step_conditions(),
        scheduler=flow(num_train_timesteps=1, shift=1.0),
        **_ace_step_codes(),
    )


_TAKES = frozenset({"prompt", "negative"})
SPECS = (
    PipelineSpec(
        name="audioldm2",
        class_name="AudioLDM2Pipeline",
        make=audioldm2,
        arguments={"num_inference_steps": 3, "audio_length_in_s": 0.1, "guidance_scale": 2.0},
        takes=_TAKES,
    ),
    PipelineSpec(
        name="musicldm",
        class_name="MusicLDMPipeline",
        make=musicldm,
        arguments={"num_inference_steps": 3, "audio_length_in_s": 0.1, "guidance_scale": 2.0},
        takes=_TAKES,
    ),
    PipelineSpec(
        name="stable-audio",
        class_name="StableAudioPipeline",
        make=stable_audio,
        arguments={"num_inference_steps": 3, "audio_end_in_s": 0.3, "guidance_scale": 3.0},
        takes=_TAKES,
    ),
    PipelineSpec(
        name="ace-step",
        class_name="AceStepPipeline",
        make=ace_step,
        arguments={"num_inference_steps": 3, "audio_duration": 0.5, "guidance_scale": 3.0, "lyrics": "[verse]\nla la"},
        takes=frozenset({"prompt"}),
    ),
)
