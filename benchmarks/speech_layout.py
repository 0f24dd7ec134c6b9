"""A speech model of the usual layout with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789'-"


def write_speech_layout(folder: Path) -> Path:
    """A VITS as `facebook/mms-tts-eng` is, a part as wide. Letters are its tokens, and each lasts about one frame."""
    from transformers import VitsConfig, VitsModel

    config = VitsConfig(
        vocab_size=len(LETTERS) + 2, use_stochastic_duration_prediction=False, hidden_size=64, num_hidden_layers=3,
        ffn_dim=192, flow_size=64, upsample_initial_channel=64, prior_encoder_num_wavenet_layers=2,
    )  # fmt: skip
    state = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        model = VitsModel(config).eval()
    finally:
        torch.set_rng_state(state)
    model.save_pretrained(folder)
    words = {"<pad>": 0, **{letter: number + 1 for number, letter in enumerate(LETTERS)}, "<unk>": len(LETTERS) + 1}
    (folder / "vocab.json").write_text(json.dumps(words))
    told = {"tokenizer_class": "VitsTokenizer", "phonemize": False, "is_uroman": False, "normalize": True,
            "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder
