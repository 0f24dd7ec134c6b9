"""Tiny random checkpoints of models that listen, on disk, and recordings for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RATE = 16_000
LETTERS = "etaonihsrdlucmwfgypbvkxjqz"
_CONVS: dict[str, Any] = {"conv_dim": [8, 8, 8], "conv_kernel": [10, 8, 4], "conv_stride": [5, 8, 4]}
_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 30,
    "pad_token_id": 0,
}
CTC: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (model type, configuration)
    "wav2vec2": ("wav2vec2", _SMALL | _CONVS),
    "wav2vec2-layer-norm": (
        "wav2vec2",
        _SMALL | _CONVS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "hubert": ("hubert", _SMALL | _CONVS),
    "wavlm": ("wavlm", _SMALL | _CONVS | {"num_buckets": 32, "max_bucket_distance": 64}),
    "sew": ("sew", _SMALL | _CONVS | {"squeeze_factor": 2}),
    "sew-d": (
        "sew-d",
        _SMALL | _CONVS | {"squeeze_factor": 2, "position_buckets": 8, "max_position_embeddings": 64},
    ),
    "unispeech": ("unispeech", _SMALL | _CONVS),
    "unispeech-layer-norm": (
        "unispeech",
        _SMALL | _CONVS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "unispeech-sat": ("unispeech-sat", _SMALL | _CONVS),
    "data2vec-audio": ("data2vec-audio", _SMALL | _CONVS | {"conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2}),
    "wav2vec2-conformer": ("wav2vec2-conformer", _SMALL | _CONVS | {"conv_depthwise_kernel_size": 5}),
    "wav2vec2-bert": (
        "wav2vec2-bert",
        {key: value for key, value in _SMALL.items() if "conv_pos" not in key}
        | {"feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 5},
    ),
    "parakeet_ctc": (
        "parakeet_ctc",
        {
            "vocab_size": 30,
            "pad_token_id": 29,
            "encoder_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "subsampling_conv_channels": 8,
                "num_mel_bins": 80,
                "conv_kernel_size": 5,
            },
        },
    ),
    "lasr_ctc": (
        "lasr_ctc",
        {
            "vocab_size": 30,
            "encoder_config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "subsampling_conv_channels": 8,
                "num_mel_bins": 80,
                "conv_kernel_size": 5,
            },
        },
    ),
}


def recording(seconds: float, seed: int = 0, rate: int = RATE) -> NDArray[np.float32]:
    """Something like syllables: tones and noise that come and go, with a pause each second. [samples]"""
    draw = np.random.default_rng(seed)
    times = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (150 + 80 * np.sin(3 * times + seed)) * times) + draw.normal(size=len(times)) * 0.3
    loudness = np.clip(np.sin(2 * np.pi * times * (2.3 + seed % 3)), 0, 1) * (times % 1 < 0.8)
    found: NDArray[np.float32] = (0.3 * tone * loudness).clip(-1, 1).astype(np.float32)
    return found


def ctc(name: str, folder: Path) -> Path:
    """Write a model that spells what it hears."""
    from transformers import AutoConfig, AutoModelForCTC, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

    model_type, sizes = CTC[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = AutoModelForCTC.from_config(AutoConfig.for_model(model_type, **sizes))
        enliven(model)
    if name == "wav2vec2-bert":
        extractor: Any = SeamlessM4TFeatureExtractor()
    elif name == "parakeet_ctc":
        from transformers import ParakeetFeatureExtractor

        extractor = ParakeetFeatureExtractor(feature_size=80)
    elif name == "lasr_ctc":
        from transformers import LasrFeatureExtractor

        extractor = LasrFeatureExtractor(feature_size=80)
    else:
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask="layer-norm" in name)
    extractor.save_pretrained(folder)
    _balance(model, extractor, often=[4, 29] if name == "parakeet_ctc" else [0, 4])
    model.save_pretrained(folder)
    if name == "parakeet_ctc":
        _piece_tokenizer(folder)
    elif name == "lasr_ctc":
        _lasr_tokenizer(folder)
    else:
        _letter_tokenizer(folder)
    return folder


def whisper(folder: Path, *, multilingual: bool = True, seed: int = 0, alignment: bool = True) -> Path:
    """Write a Whisper with windows of 2 s."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    names = _whisper_tokenizer(folder)
    config = WhisperConfig(
        vocab_size=max(names.values()) + 1, num_mel_bins=16, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=100, max_target_positions=60, decoder_start_token_id=names["<|startoftranscript|>"],
        bos_token_id=names["<|endoftext|>"], eos_token_id=names["<|endoftext|>"], pad_token_id=names["<|endoftext|>"],
        suppress_tokens=None, begin_suppress_tokens=None, median_filter_width=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(config)
        enliven(model)
        _listen(model.model)
    settings = model.generation_config
    settings._from_model_config = False  # else transformers makes it anew of what it knows itself
    settings.max_length = 48
    settings.no_timestamps_token_id = names["<|notimestamps|>"]
    settings.prev_sot_token_id = names["<|startofprev|>"]
    settings.suppress_tokens = [names["<|startoflm|>"], names["<|startofprev|>"], names["<|nospeech|>"]]
    settings.begin_suppress_tokens = [names["<|endoftext|>"]]
    settings.is_multilingual = multilingual
    if alignment:
        settings.alignment_heads = [[0, 1], [1, 0]]
    if multilingual:
        settings.lang_to_id = {name: names[name] for name in ("<|en|>", "<|de|>", "<|fr|>")}
        settings.task_to_id = {name: names[f"<|{name}|>"] for name in ("transcribe", "translate")}
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


def moonshine(folder: Path) -> Path:
    """Write a Moonshine."""
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor

    config = MoonshineConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, decoder_start_token_id=1, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, partial_rotary_factor=1.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MoonshineForConditionalGeneration(config)
        enliven(model, 0.5)
    model.generation_config.max_length = 40
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    plain_tokenizer(folder)
    return folder


def speech_to_text(folder: Path) -> Path:
    """Write a Speech2Text."""
    from transformers import Speech2TextConfig, Speech2TextFeatureExtractor, Speech2TextForConditionalGeneration

    config = Speech2TextConfig(
        vocab_size=30, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, conv_channels=16, input_feat_per_channel=20,
        max_source_positions=3000, max_target_positions=60, decoder_start_token_id=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Speech2TextForConditionalGeneration(config)
        enliven(model)
    model.generation_config.max_length = 20
    model.generation_config.num_beams = 2
    model.save_pretrained(folder)
    Speech2TextFeatureExtractor(feature_size=20, num_mel_bins=20).save_pretrained(folder)
    plain_tokenizer(folder)
    return folder


def seamless(folder: Path, *, whole: bool, version: str = "") -> Path:
    """Write a SeamlessM4T; `whole`: with the parts that read and speak; `version`: "" or "v2"."""
    import transformers

    sizes: dict[str, Any] = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    if version:
        sizes = {"char_vocab_size": 20, "t2u_variance_predictor_embed_dim": 16, "t2u_variance_predictor_hidden_dim": 8}
        sizes |= {"left_max_position_embeddings": 16, "right_max_position_embeddings": 4}
        sizes |= {"speech_encoder_chunk_size": 30, "speech_encoder_left_chunk_num": 1}
    config = getattr(transformers, f"SeamlessM4T{version}Config")(
        vocab_size=40, t2u_vocab_size=20, hidden_size=16, speech_encoder_layers=1, speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, t2u_encoder_layers=1, t2u_decoder_layers=1,
        t2u_encoder_attention_heads=2, t2u_decoder_attention_heads=2, t2u_encoder_ffn_dim=32, t2u_decoder_ffn_dim=32,
        feature_projection_input_dim=160, unit_hifi_gan_vocab_size=20, unit_embed_dim=8, upsample_initial_channel=64,
        max_position_embeddings=64, max_new_tokens=12, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = getattr(transformers, f"SeamlessM4T{version}{'Model' if whole else 'ForSpeechToText'}")(config)
        enliven(model)
    model.generation_config.text_decoder_lang_to_code_id = {"eng": 30, "deu": 31}
    model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)
    plain_tokenizer(folder)
    return folder


def enliven(model: Any, std: float = 0.3) -> None:
    """Weights that make answers vary."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
            elif "bias" in name:
                parameter.normal_(std=0.1)


def _balance(model: Any, extractor: Any, often: list[int]) -> None:
    """Give each letter its turn, and those of `often` (blanks, ends of words) more."""
    heard = extractor(recording(5.0, 2), sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    head = model.ctc_head if hasattr(model, "ctc_head") else model.lm_head
    with torch.no_grad():
        model.eval()
        logits = model(**{name: heard[name] for name in (model.main_input_name, "attention_mask")}).logits[0]
        head.bias -= logits.mean(0)
        head.bias[often] += logits.std(0).mean()


def _listen(model: Any) -> None:
    """Weights with which what is heard matters more than what was said."""
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(2)
        model.encoder.conv1.weight.normal_(std=0.8)
        model.encoder.embed_positions.weight.normal_(std=0.5)
        for layer in model.decoder.layers:
            layer.encoder_attn.v_proj.weight.mul_(6)
            layer.encoder_attn.q_proj.weight.mul_(3)
            layer.encoder_attn.k_proj.weight.mul_(3)


def _letter_tokenizer(folder: Path) -> None:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}
    vocabulary |= {letter: 5 + place for place, letter in enumerate(LETTERS[:25])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", "pad_token": "<pad>"})
    )


def plain_tokenizer(folder: Path, more: Sequence[str] = ()) -> Any:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "<s>", "</s>", "<unk>", *("\u2581" + letter for letter in LETTERS[:13]), *LETTERS[:23]]
    tokenizer = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    found.add_special_tokens({"additional_special_tokens": list(more)})
    if more:
        found.add_tokens(["\u2581"])
    found.save_pretrained(folder)
    return found


def _piece_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import ParakeetTokenizer

    pieces = ["<unk>", *("\u2581" + letter for letter in LETTERS[:14]), *LETTERS[:14]]
    tokenizer = Tokenizer(models.BPE(vocab={piece: place for place, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>"])
    ParakeetTokenizer(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)


def _lasr_tokenizer(folder: Path) -> None:
    from transformers import LasrTokenizer

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *("\u2581" + letter for letter in LETTERS[:13]), *LETTERS[:13]]
    LasrTokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0).save_pretrained(folder)


def _whisper_tokenizer(folder: Path) -> dict[str, int]:
    """Bytes, special tokens, and times up to 2 s. Returns the numbers of what are no bytes."""
    from transformers import WhisperTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: place for place, character in enumerate(bytes_to_unicode().values())}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>"]
    special += ["<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    times = [f"<|{place * 0.02:.2f}|>" for place in range(101)]
    tokenizer.add_tokens(times)
    tokenizer.save_pretrained(folder)
    return {name: tokenizer.convert_tokens_to_ids(name) for name in (*special, *times)}
