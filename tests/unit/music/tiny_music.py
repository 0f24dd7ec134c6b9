"""Tiny random models that make music, saved as people get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

WORDS = ("<pad>", "</s>", "<unk>", "a", "slow", "fast", "tune", "drums", "rain")
RATE = 1600


def write_words(folder: Path, words: tuple[str, ...] = WORDS) -> Any:
    """A tokenizer of whole words."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<pad>"
    )
    fast.save_pretrained(folder)
    return fast


def write_musicgen(folder: Path, *, channels: int = 1, melody: bool = False, books: int = 4) -> tuple[Path, Any]:
    """A MusicGen, and the model that it is."""
    text = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=RATE, num_filters=4, hidden_size=8, codebook_size=16, codebook_dim=8, upsampling_ratios=[4, 4],
        num_lstm_layers=1, num_residual_layers=1, target_bandwidths=[1.6], norm_type="weight_norm",
    )  # fmt: skip
    shape = {
        "vocab_size": 16, "max_position_embeddings": 100, "num_hidden_layers": 1, "ffn_dim": 16,
        "num_attention_heads": 2, "hidden_size": 16, "num_codebooks": books * channels, "audio_channels": channels,
        "pad_token_id": 16, "bos_token_id": 16, "activation_function": "gelu",
    }  # fmt: skip
    torch.manual_seed(5)
    if melody:
        decoder: Any = MusicgenMelodyDecoderConfig(**shape)
        config: Any = MusicgenMelodyConfig(
            text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict(), chroma_length=6,
            num_chroma=12,
        )  # fmt: skip
        model: Any = MusicgenMelodyForConditionalGeneration(config).eval()
    else:
        decoder = MusicgenDecoderConfig(**shape)
        config = MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
        model = MusicgenForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.audio_encoder.quantizer.layers:
            layer.codebook.embed.normal_()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("audio_encoder."):
                parameter.mul_(10)
    settings = model.generation_config
    settings.do_sample, settings.guidance_scale, settings.max_length = True, 3.0, 100
    settings.pad_token_id = settings.decoder_start_token_id = settings.bos_token_id = 16
    model.save_pretrained(folder)
    write_words(folder)
    return folder, model
