"""Language models that serve as text encoders, and their tokenizers: Qwen, Gemma 2, Mistral 3, BERT."""

from __future__ import annotations

from typing import Any

from .parts import T5_CHARACTERS, WIDTH, byte_alphabet
from .weights import rescale

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_VOCABULARY = 272
"""256 bytes, the special tokens, and what is never used."""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MISTRAL_CHAT = (
    "<s>{% for message in messages %}"
    "{% set tag = 'SYSTEM_PROMPT' if message['role'] == 'system' else 'INST' %}"
    "[{{ tag }}]{% for block in message['content'] %}{{ block['text'] }}{% endfor %}[/{{ tag }}]{% endfor %}"
)


def qwen_tokenizer() -> Any:
    """Qwen's byte-level tokenizer without merges, with the chat template's special tokens."""
    from transformers import Qwen2Tokenizer

    tokens = [*byte_alphabet(), *QWEN_SPECIAL]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        extra_special_tokens=list(QWEN_SPECIAL[1:]),
        chat_template=CHATML,
        model_max_length=4096,
    )


def _sizes(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": width // 2,
        "max_position_embeddings": 4096,
    }


def qwen3(*, layers: int = 3, width: int = WIDTH, causal_lm: bool = False) -> Any:
    """Qwen3 with or without its head."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(**_sizes(width, layers), vocab_size=QWEN_VOCABULARY, tie_word_embeddings=True)
    model = Qwen3ForCausalLM(config) if causal_lm else Qwen3Model(config)
    return rescale(model, embedding=layers**0.5)


def llama(*, layers: int = 4) -> Any:
    """Llama without its head. Of HunyuanVideo, which reads the third layer from the end."""
    from transformers import LlamaConfig, LlamaModel

    return rescale(LlamaModel(LlamaConfig(**_sizes(WIDTH, layers))), embedding=3.0)


def qwen2_vl() -> Any:
    """Qwen2.5-VL with a vision tower of one layer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = _sizes(WIDTH, 2) | {
        "vocab_size": QWEN_VOCABULARY,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    ids = {token.strip("<|>"): 256 + index for index, token in enumerate(QWEN_SPECIAL)}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        tie_word_embeddings=True,
    )
    return rescale(Qwen2_5_VLForConditionalGeneration(config))


LLAVA_SPECIAL = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>", "<pad>")


def llava_tokenizer() -> Any:
    """Llama 3's tokenizer without merges, with the tokens that HunyuanVideo's template for pictures has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*byte_alphabet(), *LLAVA_SPECIAL]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in LLAVA_SPECIAL])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=4096)


def llava(*, layers: int = 4) -> Any:
    """LLaVA: Llama that sees four patches of a picture of 28 pixels."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = _sizes(WIDTH, layers) | {"model_type": "llama", "vocab_size": 272}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=256 + LLAVA_SPECIAL.index("<image>"),
        pad_token_id=256 + LLAVA_SPECIAL.index("<pad>"),
    )
    return rescale(LlavaForConditionalGeneration(config), embedding=3.0)


def gemma_tokenizer() -> Any:
    """Gemma's tokenizer of single characters, with the bytes for what has no character of its own."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *T5_CHARACTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=4096)


def gemma2(*, layers: int = 2) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(**_sizes(WIDTH, layers), vocab_size=360, query_pre_attn_scalar=16, sliding_window=1024)
    return rescale(Gemma2Model(config))


def mistral_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template for messages whose content is a list of blocks.

    The words of the message that Flux 2 puts before each prompt are tokens of their own, else it would be most of the
    text.
    """
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, words = [*MISTRAL_SPECIAL, *byte_alphabet()], sorted(set(SYSTEM_MESSAGE.split()))
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in MISTRAL_SPECIAL])
    backend.add_tokens([AddedToken(word, lstrip=True, single_word=True) for word in words if len(word) > 3])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL_CHAT,
        model_max_length=4096,
    )


def mistral3(*, layers: int, width: int) -> Any:
    """Mistral 3 with a vision tower of one layer."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = _sizes(width, layers) | {"model_type": "mistral", "vocab_size": 300}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=MISTRAL_SPECIAL.index("[IMG]"), spatial_merge_size=1
    )
    return rescale(Mistral3ForConditionalGeneration(config), embedding=layers**0.5)


def bert_tokenizer() -> Any:
    """BERT's tokenizer of single characters."""
    from transformers import BertTokenizer

    letters = [character for character in T5_CHARACTERS if not character.isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=77)


def bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=160,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
    )
    return rescale(BertModel(config))
