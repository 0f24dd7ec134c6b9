"""A tiny random HiggsAudio v2, saved as people get it, and the library's codec for it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    DacFeatureExtractor,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Processor,
    HiggsAudioV2TokenizerConfig,
    HubertConfig,
    PreTrainedTokenizerFast,
)

from .tiny_speech import LETTERS, decided, with_settings

RATE = 24_000
TEMPLATE = """{{ bos_token }}{% for each in messages %}<|start_header_id|>{{ each.role }}<|end_header_id|>

{% for part in each.content %}{{ part.text if part.type == "text" else
"<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>" }}{% endfor %}<|eot_id|>{% endfor %}<|start_header_id|>assistant\
<|end_header_id|>

<|audio_out_bos|>"""


def resampled(sound: Any, rate: int, new_rate: int) -> Any:
    """torchaudio's `resample`, a sample at a time."""
    cutoff = 0.99 * min(rate, new_rate) / 2
    reach = 6 / (2 * cutoff)  # s
    whole = sound.double().numpy()
    made = numpy.zeros((*whole.shape[:-1], -(-whole.shape[-1] * new_rate // rate)))
    for number in range(made.shape[-1]):
        first, last = (max(int((number / new_rate + far) * rate), 0) for far in (-2 * reach, 2 * reach))
        away = number / new_rate - numpy.arange(first, min(last, whole.shape[-1])) / rate
        window = numpy.where(abs(away) < reach, numpy.cos(numpy.pi * away / reach / 2) ** 2, 0.0)
        made[..., number] = (
            (whole[..., first:last] * window * numpy.sinc(2 * cutoff * away)).sum(-1) * 2 * cutoff / rate
        )
    return torch.from_numpy(made).to(sound.dtype)


def codec_class() -> Any:
    """transformers' own, which it hides where torchaudio is missing."""
    torchaudio = ModuleType("torchaudio")
    torchaudio.functional = SimpleNamespace(resample=resampled)  # type: ignore[attr-defined]
    folder = Path(transformers.__file__).parent / "models" / "higgs_audio_v2_tokenizer"
    spec = importlib.util.spec_from_file_location(
        "transformers.models.higgs_audio_v2_tokenizer.hidden", folder / "modeling_higgs_audio_v2_tokenizer.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", torchaudio)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module.HiggsAudioV2TokenizerModel


def write_codec(folder: Path) -> Any:
    """The codec of three books that lies there."""
    semantic = HubertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, conv_dim=(4, 4),
        conv_stride=(20, 16), conv_kernel=(25, 18), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
    )  # fmt: skip
    config = HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac", "encoder_hidden_size": 4, "hidden_size": 8, "downsampling_ratios": [30, 32],
            "upsampling_ratios": [30, 32], "decoder_hidden_size": 16, "sampling_rate": RATE,
        },
        semantic_model_config=semantic.to_dict(), sample_rate=RATE, semantic_sample_rate=16_000, downsample_factor=320,
        codebook_size=16, codebook_dim=4, target_bandwidths=[0.11, 0.31],
    )  # fmt: skip
    assert (config.num_quantizers, config.frame_rate, config.semantic_downsample_factor) == (3, 25, 2)
    torch.manual_seed(20)
    codec = codec_class()(config).eval()
    for each in codec.quantizer.quantizers:
        each.codebook.embed.normal_()
    decided(codec, "acoustic_decoder", factor=3.0).save_pretrained(folder)
    return codec


def write_higgs(folder: Path) -> tuple[Path, Any, Any]:
    """A HiggsAudio whose codec lies below it; the model, and a processor with the codec."""
    names = ["begin_of_text", "start_header_id", "end_header_id", "eot_id", "audio_out_bos", "audio_eos", "AUDIO_OUT",
             "reserved_special_token_6", "scene_desc_start", "scene_desc_end", "pad"]  # fmt: skip
    special = [f"<|{name}|>" for name in names]
    words = [*special, "<unk>", *dict.fromkeys(LETTERS + "\n.GIS")]
    config = HiggsAudioV2Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024, pad_token_id=10, bos_token_id=0,
        eos_token_id=3, num_codebooks=3, codebook_size=18, audio_token_id=6, audio_bos_token_id=4,
        audio_delay_token_id=7, audio_stream_bos_id=16, audio_stream_eos_id=17,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    torch.manual_seed(21)
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).eval()
    decided(model, "model", "audio_lm_head", factor=5.0)
    with_settings(model, ras_win_len=7, ras_win_max_num_repeat=2, max_new_tokens=14, use_text_head=True)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token="<|eot_id|>", pad_token="<|pad|>"
    )
    codec = write_codec(folder / "audio_tokenizer")
    processor = HiggsAudioV2Processor(
        DacFeatureExtractor(sampling_rate=RATE, hop_length=1), fast, None, chat_template=TEMPLATE,
        audio_stream_bos_id=16, audio_stream_eos_id=17,
    )  # fmt: skip
    processor.save_pretrained(folder)
    settings = folder / "processor_config.json"
    elsewhere = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": str(folder / "elsewhere")}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"audio_tokenizer": elsewhere}))
    processor.audio_tokenizer = codec
    return folder, model, processor
