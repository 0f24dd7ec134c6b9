"""Tiny random models that speak in codes of a codec, saved as people get them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    CsmConfig,
    CsmForConditionalGeneration,
    CsmProcessor,
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    EncodecFeatureExtractor,
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerHifiGan,
    FastSpeech2ConformerHifiGanConfig,
    FastSpeech2ConformerModel,
    FastSpeech2ConformerWithHifiGan,
    FastSpeech2ConformerWithHifiGanConfig,
    MimiConfig,
    PreTrainedTokenizerFast,
)

from .tiny_speech import LETTERS, decided, quieter


def write_dia(folder: Path) -> tuple[Path, Any, Any]:
    """A Dia whose codec lies below it; the model and the codec."""
    codes = {"pad_token_id": 17, "eos_token_id": 16, "bos_token_id": 18}
    config = DiaConfig(
        encoder_config={
            "max_position_embeddings": 1024, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16,
        },
        decoder_config={
            "max_position_embeddings": 64, "num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "cross_num_attention_heads": 2,
            "cross_head_dim": 8, "cross_num_key_value_heads": 2, "cross_hidden_size": 16, "vocab_size": 19,
            "num_channels": 3, **codes,
        },
        delay_pattern=[0, 1, 2], **codes,
    )  # fmt: skip
    torch.manual_seed(6)
    model = decided(DiaForConditionalGeneration(config).eval(), "model", "logits_dense", factor=5.0)
    settings = model.generation_config
    settings.update(**codes, do_sample=True, guidance_scale=3.0, top_k=12, max_length=24, decoder_start_token_id=18)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DiaTokenizer"}))
    DiaFeatureExtractor(sampling_rate=1600, hop_length=8).save_pretrained(folder)
    shape = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=16, n_codebooks=3, codebook_size=16,
        codebook_dim=4, sampling_rate=1600,
    )  # fmt: skip
    codec = decided(DacModel(shape).eval(), "quantizer", "decoder", factor=2.5)
    codec.save_pretrained(folder / "audio_tokenizer")
    return folder, model, codec


def write_csm(folder: Path) -> tuple[Path, Any]:
    """A CSM, and the model that it is."""
    shape = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_codebooks": 4, "vocab_size": 20,
    }  # fmt: skip
    codec = MimiConfig(
        num_filters=2, hidden_size=16, vector_quantization_hidden_dimension=8, codebook_dim=8, codebook_size=32,
        num_quantizers=4, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=16, upsample_groups=16, num_semantic_quantizers=1,
    )  # fmt: skip
    special = ["<pad>", "<s>", "</s>", "<|AUDIO|>", "<|audio_eos|>", "<unk>"]
    words = [*special, *LETTERS, "[", "]", ".", *"0123456789"]
    config = CsmConfig(
        **shape, text_vocab_size=len(words), max_position_embeddings=256, codebook_pad_token_id=18,
        codebook_eos_token_id=0, audio_token_id=3, audio_eos_token_id=4, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, depth_decoder_config={**shape, "backbone_hidden_size": 16, "max_position_embeddings": 5},
        codec_config=codec.to_dict(),
    )  # fmt: skip
    torch.manual_seed(7)
    model = decided(CsmForConditionalGeneration(config).eval(), "backbone_model", "depth_decoder", factor=5.0)
    quieter(model, next(name for name in reversed(dict(model.named_parameters())) if name.endswith("conv.weight")))
    for part in (model.codec_model.quantizer.semantic_residual_vector_quantizer,
                 model.codec_model.quantizer.acoustic_residual_vector_quantizer):  # fmt: skip
        for layer in part.layers:
            layer.codebook.embed_sum.normal_()
    model.generation_config.update(do_sample=True, temperature=0.9, max_new_tokens=4)
    model.depth_decoder.generation_config.update(do_sample=True, temperature=0.8)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    CsmProcessor(EncodecFeatureExtractor(sampling_rate=24_000), fast).save_pretrained(folder)
    return folder, model


def write_fastspeech2(folder: Path, *, whole: bool = True) -> tuple[Path, Any]:
    """A FastSpeech2 Conformer, with or without the vocoder in it, and a module that speaks."""
    acoustic = FastSpeech2ConformerConfig(
        hidden_size=16, vocab_size=12, num_mel_bins=8, encoder_num_attention_heads=2, encoder_layers=1,
        encoder_linear_units=16, encoder_kernel_size=3, decoder_layers=1, decoder_num_attention_heads=2,
        decoder_linear_units=16, decoder_kernel_size=3, speech_decoder_postnet_layers=2,
        speech_decoder_postnet_units=8, duration_predictor_channels=8, energy_predictor_channels=8,
        pitch_predictor_channels=8, pitch_predictor_layers=1, energy_predictor_layers=1, duration_predictor_layers=1,
    )  # fmt: skip
    vocoder = FastSpeech2ConformerHifiGanConfig(
        model_in_dim=8, sampling_rate=8000, upsample_initial_channel=8, upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    torch.manual_seed(8)
    own = FastSpeech2ConformerWithHifiGan(
        FastSpeech2ConformerWithHifiGanConfig(model_config=acoustic.to_dict(), vocoder_config=vocoder.to_dict())
    ).eval()
    decided(own, "vocoder", "model.decoder", "model.speech_decoder_postnet")
    with torch.no_grad():
        own.model.duration_predictor.linear.bias.fill_(1.5)
    if whole:
        own.save_pretrained(folder)
    else:
        assert isinstance(own.model, FastSpeech2ConformerModel)
        assert isinstance(own.vocoder, FastSpeech2ConformerHifiGan)
        own.model.save_pretrained(folder)
        own.vocoder.save_pretrained(folder / "vocoder")
    phonemes = ["<blank>", "<unk>", "HH", "AH0", "L", "OW1", "W", "ER1", "D", ".", "<sos/eos>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(phonemes)}))
    return folder, own
