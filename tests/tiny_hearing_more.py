"""More tiny random checkpoints of models that listen, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tiny_hearing import LETTERS, enliven, plain_tokenizer

_PARAKEET: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "subsampling_conv_channels": 8, "num_mel_bins": 80, "conv_kernel_size": 5,
}  # fmt: skip
_PROMPT = ("startofcontext", "startoftranscript", "emo:undefined", "de", "en", "pnc", "nopnc", "noitn", "notimestamp")
_TEMPLATE = (
    "{% set told = messages[0].content | selectattr('type', 'equalto', 'text') | first %}"
    "<|startofcontext|><|{{ told.source_language }}|><|{{ told.target_language }}|>"
    "{{ '<|pnc|>' if told.punctuation else '<|nopnc|>' }}"
)


def moonshine_streaming(folder: Path) -> Path:
    """Write a Moonshine Streaming."""
    from transformers import (
        MoonshineStreamingConfig,
        MoonshineStreamingForConditionalGeneration,
        Wav2Vec2FeatureExtractor,
    )

    shape: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }  # fmt: skip
    encoder = {**shape, "sliding_windows": [[16, 4], [16, 0]]}
    config = MoonshineStreamingConfig(vocab_size=30, decoder_start_token_id=1, encoder_config=encoder, **shape)
    with torch.random.fork_rng(devices=[]):
        model = MoonshineStreamingForConditionalGeneration(config)
        _attend(model, seed=0)
    model.generation_config.max_length = 40
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    plain_tokenizer(folder)
    return folder


def prompted(name: str, folder: Path) -> Path:
    """Write a Canary or a Cohere ASR: `name` is the model type."""
    import transformers

    special = [f"<|{each}|>" for each in (*_PROMPT, "nodiarize")]
    tokenizer = plain_tokenizer(folder, special)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    extractor: Any
    if name == "canary":
        decoder = {**shape, "num_key_value_heads": 2, "head_dim": 8}
        config: Any = transformers.CanaryConfig(
            vocab_size=len(tokenizer), encoder_config=_PARAKEET, decoder_config=decoder, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=4, tie_word_embeddings=False,
        )  # fmt: skip
        extractor, kind = transformers.ParakeetFeatureExtractor(feature_size=80), "Canary"
        processor = transformers.CanaryProcessor(extractor, tokenizer, chat_template=_TEMPLATE)
    else:
        config = transformers.CohereAsrConfig(encoder_config=_PARAKEET, decoder_start_token_id=4, **shape)
        extractor, kind = transformers.CohereAsrFeatureExtractor(feature_size=80), "CohereAsr"
        processor = transformers.CohereAsrProcessor(extractor, tokenizer)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        _attend(model, seed=3)
    model.generation_config.max_length = 40
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _attend(model: Any, seed: int) -> None:
    """The same, for other classes."""
    torch.manual_seed(seed)
    enliven(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".encoder." in name and parameter.ndim > 1:
                parameter.mul_(3.3)
            if "encoder_attn.v" in name or "encoder_attn.q" in name:
                parameter.mul_(4)


def transducer(name: str, folder: Path) -> Path:
    """Write a Parakeet: `name` is the model type, parakeet_tdt or parakeet_rnnt."""
    import transformers
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<unk>", *("\u2581" + letter for letter in LETTERS[:14]), *LETTERS[:14]]
    words = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    words.decoder = decoders.Metaspace()
    words.add_special_tokens(["<pad>", "<blank>"])
    tokenizer = transformers.ParakeetTokenizer(tokenizer_object=words, unk_token="<unk>", pad_token="<pad>")
    blank, kind = len(pieces) + 1, name.removeprefix("parakeet_")
    config = getattr(transformers, f"Parakeet{kind.upper()}Config")(
        vocab_size=blank + 1, decoder_hidden_size=16, num_decoder_layers=2, pad_token_id=blank - 1,
        blank_token_id=blank, encoder_config=_PARAKEET,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, f"ParakeetFor{kind.upper()}")(config)
        torch.manual_seed(1)
        enliven(model, 0.5)
        with torch.no_grad():
            model.joint.head.bias[blank] += 2.0
    model.generation_config.decoder_start_token_id = blank
    model.save_pretrained(folder)
    extractor = transformers.ParakeetFeatureExtractor(feature_size=80)
    transformers.ParakeetProcessor(extractor, tokenizer, decoder_type=kind).save_pretrained(folder)
    return folder


def outside(folder: Path) -> dict[str, Any]:
    """What the folder's processor_config.json says, and a model elsewhere, which `from_pretrained` would look for."""
    found: dict[str, Any] = json.loads((folder / "processor_config.json").read_text())
    named = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(folder.parent / "elsewhere")}
    return {**found, "audio_tokenizer": named}
