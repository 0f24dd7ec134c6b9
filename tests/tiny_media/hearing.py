"""Models that hear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import AUDIO, TEXT, VOCABULARY, Kind, llama, save, template, write_tokenizer

_AUDIO: dict[str, Any] = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 100,
}


def _qwen2_audio(folder: Path) -> Path:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2Config,
        WhisperFeatureExtractor,
    )

    config = Qwen2AudioConfig(
        text_config=Qwen2Config(**TEXT | {"vocab_size": VOCABULARY}).to_dict(),
        audio_config=_AUDIO | {"model_type": "qwen2_audio_encoder"},
        audio_token_index=AUDIO,
    )
    processor = Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        write_tokenizer(audio_token="<audio>", audio_bos_token="<boi>", audio_eos_token="<eoi>"),
        chat_template=template(audio="<boi><audio><eoi>"),
    )
    return save(config, Qwen2AudioForConditionalGeneration, processor, folder)


def _audioflamingo3(folder: Path) -> Path:
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        Qwen2Config,
        WhisperFeatureExtractor,
    )

    config = AudioFlamingo3Config(
        text_config=Qwen2Config(**TEXT | {"vocab_size": VOCABULARY}).to_dict(),
        audio_config=_AUDIO | {"model_type": "audioflamingo3_encoder"},
        audio_token_id=AUDIO,
    )
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = AudioFlamingo3Processor(
        extractor, write_tokenizer(), audio_token="<audio>", chat_template=template(audio="<audio>")
    )
    return save(config, AudioFlamingo3ForConditionalGeneration, processor, folder, seed=2)


def _glmasr(folder: Path) -> Path:
    from transformers import (
        GlmAsrConfig,
        GlmAsrForConditionalGeneration,
        GlmAsrProcessor,
        WhisperFeatureExtractor,
    )

    audio: dict[str, Any] = {
        "model_type": "glmasr_encoder", "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_mel_bins": 16, "max_position_embeddings": 100,
    }  # fmt: skip
    config = GlmAsrConfig(text_config=llama(), audio_config=audio, audio_token_id=AUDIO, tie_word_embeddings=False)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = GlmAsrProcessor(extractor, write_tokenizer(), audio_token="<audio>", chat_template=template())
    return save(config, GlmAsrForConditionalGeneration, processor, folder)


def _qwen3_asr(folder: Path) -> Path:
    from transformers import (
        Qwen3ASRConfig,
        Qwen3ASRFeatureExtractor,
        Qwen3ASRForConditionalGeneration,
        Qwen3ASRProcessor,
        Qwen3Config,
    )

    sizes = {name: size for name, size in _AUDIO.items() if name != "max_source_positions"}
    config = Qwen3ASRConfig(
        text_config=Qwen3Config(**TEXT | {"vocab_size": VOCABULARY}).to_dict(),
        audio_config=sizes | {"model_type": "qwen3_asr_encoder", "output_dim": 32, "downsample_hidden_size": 8},
        audio_token_id=AUDIO,
        timestamp_token_id=AUDIO + 3,
        pad_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    processor = Qwen3ASRProcessor(
        Qwen3ASRFeatureExtractor(feature_size=16),
        write_tokenizer(audio_token="<audio>", audio_bos_token="<boi>", audio_eos_token="<eoi>"),
        chat_template=template(audio="<boi><audio><eoi>"),
    )
    return save(config, Qwen3ASRForConditionalGeneration, processor, folder)


KINDS: Mapping[str, Kind] = {
    "audioflamingo3": Kind(make=_audioflamingo3, kinds=("audio",), most=1),
    "glmasr": Kind(make=_glmasr, kinds=("audio",), most=1),
    "qwen2_audio": Kind(make=_qwen2_audio, kinds=("audio",)),
    "qwen3_asr": Kind(make=_qwen3_asr, kinds=("audio",), most=1),
}
