"""Tiny random models that speak, saved as people get them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from transformers import (
    BarkConfig,
    BarkModel,
    EncodecConfig,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    VitsConfig,
    VitsModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz '"


def quieter(model: Any, name: str, factor: float = 0.02) -> Any:
    """The model with one tensor made smaller, so that what it says lies within [-1, 1] and is not all of it cut off."""
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


def decided(model: Any, *parts: str, factor: float = 12.0) -> Any:
    """The model with larger weights in these parts: fresh ones are so small that all tokens are about as likely."""
    with torch.no_grad():
        for part in parts:
            for parameter in model.get_submodule(part).parameters():
                if parameter.ndim > 1:
                    parameter.mul_(factor)
    return model


def with_settings(model: Any, **settings: Any) -> Any:
    """The model with generation settings, of which some are its own, so that they are saved and read as they are."""
    model.generation_config._from_model_config = False
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def with_codes(codec: Any) -> Any:
    """The codec with vectors for its codes: those of a fresh one are all zero."""
    for layer in codec.quantizer.layers:
        layer.codebook.embed.normal_()
    return codec


def write_vits(folder: Path, *, speakers: int = 1, **tokenizer: Any) -> tuple[Path, Any]:
    """A VITS with letters as tokens, and the model that it is."""
    config = VitsConfig(
        vocab_size=len(LETTERS) + 2, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, window_size=2,
        ffn_dim=16, flow_size=8, spectrogram_bins=9, upsample_initial_channel=8, upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
        depth_separable_channels=2, depth_separable_num_layers=1, duration_predictor_flow_bins=4,
        duration_predictor_filter_channels=8, prior_encoder_num_flows=1, prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1, duration_predictor_num_flows=2, wavenet_kernel_size=3,
        num_speakers=speakers, speaker_embedding_size=8 if speakers > 1 else 0, sampling_rate=8000,
    )  # fmt: skip
    torch.manual_seed(0)
    model = quieter(VitsModel(config).eval(), "decoder.conv_post.weight")
    model.save_pretrained(folder)
    vocab = {"<pad>": 0, **{letter: number + 1 for number, letter in enumerate(LETTERS)}, "<unk>": len(LETTERS) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    settings = {"tokenizer_class": "VitsTokenizer", "phonemize": False, "is_uroman": False, "normalize": True}
    told = {**settings, "pad_token": "<pad>", "unk_token": "<unk>", **tokenizer}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder, model


def write_pieces(path: Path, size: int = 40) -> None:
    """A SentencePiece model of letters."""
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LETTERS, "hello there. how are you?"] * 4), model_writer=made, model_type="char",
        vocab_size=size, hard_vocab_limit=False, pad_id=1, bos_id=0, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(made.getvalue())


def write_speecht5(folder: Path) -> tuple[Path, Any]:
    """A SpeechT5 without a vocoder, and the model that it is."""
    config = SpeechT5Config(
        vocab_size=64, hidden_size=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, num_mel_bins=8, speech_decoder_prenet_units=8,
        speech_decoder_postnet_units=8, speech_decoder_postnet_layers=2, speaker_embedding_dim=6,
        conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    torch.manual_seed(1)
    model = decided(SpeechT5ForTextToSpeech(config).eval(), "", factor=4.0)
    with torch.no_grad():
        model.speech_decoder_postnet.prob_out.bias.fill_(-2.5)  # it speaks for a while
    model.save_pretrained(folder)
    write_pieces(folder / "spm_char.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "SpeechT5Tokenizer"}))
    return folder, model


def write_vocoder(folder: Path, bins: int = 8) -> tuple[Path, Any]:
    """A HiFi-GAN, and the model that it is."""
    config = SpeechT5HifiGanConfig(
        model_in_dim=bins, sampling_rate=8000, upsample_initial_channel=8, upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]],
    )  # fmt: skip
    torch.manual_seed(2)
    vocoder = decided(SpeechT5HifiGan(config).eval(), "", factor=30.0)
    vocoder.save_pretrained(folder)
    return folder, vocoder


def write_bark(folder: Path) -> tuple[Path, Any]:
    """A Bark with one voice in files, and the model that it is."""
    stage = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "block_size": 300, "dropout": 0.0, "bias": True}
    codec = EncodecConfig(
        sampling_rate=8000, num_filters=4, hidden_size=8, codebook_size=8, codebook_dim=8, upsampling_ratios=[4, 2],
        num_lstm_layers=1, num_residual_layers=1, target_bandwidths=[24.0], norm_type="weight_norm",
    )  # fmt: skip
    config = BarkConfig(
        semantic_config={**stage, "input_vocab_size": 60, "output_vocab_size": 24},
        coarse_acoustics_config={**stage, "input_vocab_size": 64, "output_vocab_size": 64},
        fine_acoustics_config={
            **stage, "input_vocab_size": 9, "output_vocab_size": 9, "n_codes_total": 8, "n_codes_given": 1,
        },
        codec_config=codec.to_dict(),
    )  # fmt: skip
    torch.manual_seed(4)
    model = decided(BarkModel(config).eval(), "semantic", "coarse_acoustics", "fine_acoustics")
    with_codes(model.codec_model)
    settings: dict[str, Any] = {
        "semantic_config": {
            "semantic_vocab_size": 16, "semantic_pad_token": 20, "eos_token_id": 20, "text_encoding_offset": 21,
            "text_pad_token": 21, "semantic_infer_token": 22, "max_new_tokens": 12, "semantic_rate_hz": 50.0,
            "do_sample": True, "temperature": 1.0,
        },
        "coarse_acoustics_config": {
            "coarse_semantic_pad_token": 40, "coarse_infer_token": 41, "max_coarse_history": 12,
            "sliding_window_len": 6, "coarse_rate_hz": 75, "n_coarse_codebooks": 2, "do_sample": True,
            "max_coarse_input_length": 16,
        },
        "fine_acoustics_config": {
            "temperature": 0.5, "max_fine_history_length": 8, "max_fine_input_length": 16, "n_fine_codebooks": 8,
        },
        "sample_rate": 8000,
        "codebook_size": 8,
    }  # fmt: skip
    model.save_pretrained(folder)
    # transformers 5.23 can neither save nor use its own class for these.
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model.generation_config = SimpleNamespace(**settings)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "there", "again", *LETTERS[:26], "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    voice = {
        "semantic_prompt": numpy.arange(6) % 16,
        "coarse_prompt": numpy.arange(8).reshape(2, 4) % 8,
        "fine_prompt": numpy.arange(32).reshape(8, 4) % 8,
    }
    home = folder / "speaker_embeddings" / "v2"
    home.mkdir(parents=True)
    named = {}
    for name, array in voice.items():
        numpy.save(home / f"en_speaker_0_{name}.npy", array)
        named[name] = f"speaker_embeddings/v2/en_speaker_0_{name}.npy"
    listed = {"repo_or_path": "x", "v2/en_speaker_0": named}
    (folder / "speaker_embeddings_path.json").write_text(json.dumps(listed))
    numpy.savez(folder / "speaker_embeddings" / "de_speaker_1.npz", **{k: v[..., ::-1] for k, v in voice.items()})
    return folder, model
