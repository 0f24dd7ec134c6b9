"""What tiny checkpoints of models that see or hear are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiny import SPECIAL_TOKENS, rescale

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}IMAGE_TOKEN"
    "{% elif part['type'] == 'video' %}VIDEO_TOKEN"
    "{% elif part['type'] == 'audio' %}AUDIO_TOKEN{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 3,
}
EXTRA = ("<image>", "<video>", "<audio>", "<boi>", "<eoi>", "<more>")
IMAGE, VIDEO, AUDIO, BEGIN, END, MORE = (len(SPECIAL_TOKENS) + 256 + number for number in range(len(EXTRA)))
VOCABULARY = len(SPECIAL_TOKENS) + 256 + len(EXTRA) + 2


def write_tokenizer(extra: Sequence[str] = EXTRA, **named: str) -> Any:
    """The byte-level tokenizer of `tiny`, with tokens behind it that stand for media. Returns transformers'. `named`:
    tokens that processors look for by a name."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet, *extra])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    special = [*SPECIAL_TOKENS, *extra]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(named),
        clean_up_tokenization_spaces=False,
    )


def unchecked(own: Any) -> Any:
    """A processor's class that does not look for a video processor, which torchvision has to be there for."""
    return type(own.__name__, (own,), {"check_argument_for_proper_class": lambda self, name, argument: object})


def save(
    config: Any,
    model_class: Any,
    processor: Any,
    folder: Path,
    *,
    seed: int = 0,
    loud: float = 1.0,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random model of `config`, and its processor; `settings`: of one that cannot be written as a whole.
    `loud`: how much larger the projector's last matrix is, for models that would not look at anything else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        rescale(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "projector.linear_2" in name:
                    parameter.mul_(loud)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    if getattr(processor, "video_processor", True) is not None:
        processor.save_pretrained(folder)
        return folder
    # As older checkpoints have it, and without the part that nobody can make here.
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(processor.chat_template, encoding="utf-8")
    told = {"processor_class": type(processor).__name__, **(settings or {})}
    (folder / "processor_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def template(image: str = "<image>", video: str = "<video>", audio: str = "<audio>") -> str:
    return CHAT_TEMPLATE.replace("IMAGE_TOKEN", image).replace("VIDEO_TOKEN", video).replace("AUDIO_TOKEN", audio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How a model type's tiny checkpoint is made."""

    make: Callable[[Path], Path]
    kinds: tuple[str, ...] = ("image",)
    """What its prompts are tried with."""
    most: int = 2
    """Things of one kind in a prompt."""
    chat: bool = True
    """Whether it has a chat template."""
    wants: str = ""
    """A library that its processor cannot do without."""


def llama(**changes: Any) -> dict[str, Any]:
    from transformers import LlamaConfig

    return dict(LlamaConfig(**TEXT | {"vocab_size": VOCABULARY} | changes).to_dict())


def clip() -> dict[str, Any]:
    from transformers import CLIPVisionConfig

    return dict(CLIPVisionConfig(**VISION).to_dict())


def siglip(**changes: Any) -> dict[str, Any]:
    from transformers import SiglipVisionConfig

    return dict(SiglipVisionConfig(**VISION | changes).to_dict())
