"""A tiny random Pocket TTS, or Phonon, saved as people get it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    GradiumPhononTTSConfig,
    GradiumPhononTTSForConditionalGeneration,
    PocketTTSAudioTokenizerConfig,
    PocketTTSAudioTokenizerModel,
    PocketTTSConfig,
    PocketTTSFeatureExtractor,
    PocketTTSForConditionalGeneration,
    PocketTTSProcessor,
    PreTrainedTokenizerFast,
)

from .tiny_speech import LETTERS, decided, quieter, with_settings

RATE = 8000
TEMPLATE = """{%- for each in messages -%}{%- for part in each.content -%}{%- if part.type == "audio" -%}
{{ audio_prompt_bos_token or "" }}{{ audio_prompt_token }}{%- else -%}{{ part.text | trim | lower }}{%- endif -%}
{%- endfor -%}{%- endfor -%}{{ audio_bos_token }}"""
MARKS = {"audio_prompt": "<voice>", "audio_latent": "<frame>", "audio_prompt_bos": "<hear>", "audio_bos": "<speak>"}


def write_codec(folder: Path, **changed: Any) -> Any:
    """The codec that lies there: 32 samples a latent."""
    config = PocketTTSAudioTokenizerConfig(
        sampling_rate=RATE, hidden_size=16, num_filters=4, upsampling_ratios=[2, 2], upsample_groups=16,
        intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, sliding_window=20, latent_stride=8,
        latent_dim=4, num_hidden_layers=1, **changed,
    )  # fmt: skip
    torch.manual_seed(31)
    codec = decided(PocketTTSAudioTokenizerModel(config).eval(), "decoder", factor=1.5)
    last = [name for name, _ in codec.named_parameters() if name.startswith("decoder.decoder_seanet")][-2]
    quieter(codec, last, 0.001)
    codec.save_pretrained(folder)
    return codec


def write_pocket(folder: Path, *, phonon: bool = False, **flow: Any) -> tuple[Path, Any, Any]:
    """One whose codec lies below it, with two voices; the model, and a processor with the codec."""
    marks = {name: mark for name, mark in MARKS.items() if not (phonon and name == "audio_prompt_bos")}
    words = ["<pad>", "<unk>", *marks.values(), *LETTERS, ".", ",", "!"]
    numbers = {word: number for number, word in enumerate(words)}
    shape = {
        "flow_head_config": {
            "hidden_size": 8, "num_hidden_layers": 1, "latent_dim": 4, "condition_dim": 16,
            "frequency_embedding_size": 8, **flow,
        },
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "latent_dim": 4, "pad_token_id": 0, "frame_rate": 4.0,
        **{f"{name}_token_id": numbers[mark] for name, mark in marks.items()},
    }  # fmt: skip
    torch.manual_seed(30)
    model: Any
    if phonon:
        model = GradiumPhononTTSForConditionalGeneration(GradiumPhononTTSConfig(**shape, audio_prompt_dim=6))
    else:
        model = PocketTTSForConditionalGeneration(PocketTTSConfig(**shape))
    decided(model.eval(), "model", "flow_head", factor=6.0)
    with torch.no_grad():
        model.model.bos_latent.normal_()
        model.flow_head.get_submodule("").apply(_shaken)
        model.eos_head.weight.mul_(40.0)
    with_settings(model, do_sample=True, temperature=0.7, num_flow_steps=2, eos_threshold=0.5, min_frames_before_eos=3,
        return_dict_in_generate=True,
    )  # fmt: skip
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    published = {name: each for name, each in stored.items() if "loss_weighting" not in name and "num_up" not in name}
    save_file(published, folder / "model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<pad>", "<unk>", *marks.values())])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left",
        extra_special_tokens={f"{name}_token": mark for name, mark in marks.items()},
    )  # fmt: skip
    codec = write_codec(folder / "audio_tokenizer")
    extractor = PocketTTSFeatureExtractor(sampling_rate=RATE, frame_size=32, pad_to_multiple_of=32)
    processor = PocketTTSProcessor(extractor, fast, None, chat_template=TEMPLATE, frames_after_eos=3)
    processor.save_pretrained(folder)
    settings = folder / "processor_config.json"
    elsewhere = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(folder / "elsewhere")}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"audio_tokenizer": elsewhere}))
    processor.audio_tokenizer = codec
    (folder / "voices").mkdir()
    size = 6 if phonon else 4
    for name, voice in (("ann", torch.randn(7, size)), ("bob", torch.randn(1, 5, size))):
        save_file({"latents": voice}, folder / "voices" / f"{name}.safetensors")
    numpy.save(folder / "voices" / "eve.npy", numpy.zeros((2, 3), numpy.float32))
    return folder, model, processor


def _shaken(module: Any) -> None:
    """Those parts begin as zeros, which draw nothing."""
    for parameter in module.parameters(recurse=False):
        if not parameter.any():
            parameter.normal_(std=0.5)
