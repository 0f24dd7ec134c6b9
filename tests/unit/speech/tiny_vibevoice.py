"""A tiny random VibeVoice, saved as people get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    PreTrainedTokenizerFast,
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
    VibeVoiceProcessor,
)

from .tiny_speech import LETTERS, decided, with_settings

RATE = 8000
BEGIN, END, FRAME = "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"
TEMPLATE = """{%- set heard = namespace(roles=[]) -%}
{%- for each in messages if each.content[0].type == "audio" -%}
Voice {{ each.role }}:<|vision_start|><|vision_pad|><|vision_end|>{{ "\\n" }}{%- endfor -%}
{%- for each in messages -%}Speaker {{ each.role }}: {{ each.content[-1].text }}{{ "\\n" }}{%- endfor -%}
Speech:{{ "\\n" }}<|vision_start|>"""


def write_vibevoice(folder: Path) -> tuple[Path, Any, Any]:
    """The model, and its processor."""
    words = ["<|endoftext|>", BEGIN, END, FRAME, "<unk>", *dict.fromkeys(LETTERS + "\n.:VS0123456789")]
    codec = {"num_filters": 2, "downsampling_ratios": [4, 4], "depths": [1, 1, 1], "kernel_size": 3}
    config = VibeVoiceConfig(
        text_config={
            "model_type": "qwen2", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        },
        audio_config={"model_type": "vibevoice_acoustic_tokenizer", "hidden_size": 4, **codec},
        semantic_model_config={"model_type": "vibevoice_acoustic_tokenizer_encoder", "hidden_size": 6, **codec},
        diffusion_head_config={"num_hidden_layers": 1, "intermediate_size": 16, "frequency_embedding_size": 8},
        pad_token_id=0, eos_token_id=0, audio_bos_token_id=1, audio_eos_token_id=2, audio_token_id=3,
    )  # fmt: skip
    torch.manual_seed(40)
    model = VibeVoiceForConditionalGeneration(config).eval()
    decided(model, "model.language_model", "model.diffusion_head", "model.multi_modal_projector", factor=6.0)
    decided(model, "model.audio_tower", "model.semantic_tokenizer_encoder", factor=20.0)
    with torch.no_grad():
        model.model.latent_scaling_factor.fill_(0.7)
        # It goes on speaking, but for a while.
        model.model.language_model.embed_tokens.weight[:, 0] = 4.0
        for connector in (model.model.multi_modal_projector, model.model.semantic_connector):
            connector.linear_2.bias[0] = 2.0
        model.lm_head.weight[:4] *= 10.0
        model.lm_head.weight[3, 0] = 2.0
    with_settings(model, max_new_tokens=9, do_sample=False, guidance_scale=1.3, num_diffusion_steps=3,
        noise_scheduler_class="DPMSolverMultistepScheduler",
        noise_scheduler_config={"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:4]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    extractor = VibeVoiceAcousticTokenizerFeatureExtractor(sampling_rate=RATE, pad_to_multiple_of=16)
    processor = VibeVoiceProcessor(extractor, fast, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return folder, model, processor
