"""Small random checkpoints that make vectors and scores, in the layouts that people publish."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [
    *("the", "a", "cat", "dog", "sat", "on", "mat", "stock", "market", "fell", "far", "yes", "no", "paris", "is"),
    *("capital", "of", "france", "big", "small", "red", "##s", "##ing", "."),
]
SIGNS = {
    "bert": {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "roberta": {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
    "decoder": {"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": "<|unk|>"},
}
_KINDS = {
    "bert": ("Bert", "bert"),
    "xlm-roberta": ("XLMRoberta", "roberta"),
    "roberta": ("Roberta", "roberta"),
    "mpnet": ("MPNet", "roberta"),
    "distilbert": ("DistilBert", "bert"),
    "modernbert": ("ModernBert", "bert"),
    "electra": ("Electra", "bert"),
    "deberta-v2": ("DebertaV2", "bert"),
    "albert": ("Albert", "bert"),
    "qwen3": ("Qwen3", "decoder"),
    "t5": ("T5", "decoder"),
}
_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 66,
}  # fmt: skip
_OTHER_SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 66},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    "electra": {**_SIZES, "embedding_size": 16},
    "albert": {**_SIZES, "embedding_size": 16},
    "modernbert": {**_SIZES, "global_attn_every_n_layers": 2, "local_attention": 16},
    "deberta-v2": {**_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
}


def tokenizer(signs: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Of whole words, with the signs of one kin."""
    special = SIGNS[signs]
    listed = list(dict.fromkeys([special["pad_token"], special["unk_token"], *special.values(), *WORDS]))
    if signs == "roberta":
        listed = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS]
    found = Tokenizer(models.WordPiece({word: i for i, word in enumerate(listed)}, unk_token=special["unk_token"]))
    found.normalizer = normalizers.Lowercase()
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = {word: i for i, word in enumerate(listed)}
    if signs == "decoder":
        end = special["eos_token"]
        found.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, ids[end])])
    else:
        first, last = special["cls_token"], special["sep_token"]
        second = f"{last} $B {last}" if signs == "roberta" else f"$B:1 {last}:1"
        found.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=f"{first} $A {last} {second}",
            special_tokens=[(first, ids[first]), (last, ids[last])],
        )  # fmt: skip
    names = ["input_ids", *(["token_type_ids"] if signs == "bert" else []), "attention_mask"]
    made = PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=10**30, model_input_names=names, **special)
    if template is not None:
        made.chat_template = template
    return made


def build(
    kind: str, head: str, folder: Path, *, named: str | None = None, template: str | None = None, **settings: Any
) -> Any:
    """A checkpoint of the class `kind` + `head` ("Model", "ForMaskedLM", ...), and its model. `named`: what its
    configuration says it is, where that is another head."""
    prefix, signs = _KINDS[kind]
    words = tokenizer(signs, template)
    config = transformers.AutoConfig.for_model(
        kind,
        **{
            **_OTHER_SIZES.get(kind, _SIZES),
            "vocab_size": len(words),
            "pad_token_id": words.pad_token_id,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": words.bos_token_id,
            **settings,
        },
    )
    torch.manual_seed(len(kind) + len(head))
    model = getattr(transformers, f"{prefix}{head}")(config).eval()
    for parameter in model.parameters():  # initial values hide mistakes: all texts look alike
        parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if named is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [f"{prefix}{named}"]}))
    return model


def as_sentence_model(
    folder: Path,
    pooling: Mapping[str, Any],
    steps: Sequence[tuple[str, Mapping[str, Any], Mapping[str, torch.Tensor]]] = (),
    *,
    lengths: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Add the files of sentence-transformers. `steps`: class, config.json and weights of what is behind the pooling."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [(kind, f"{number}_{kind}") for number, (kind, _, _) in enumerate(steps, start=2)]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    for (kind, told, weights), (_, path) in zip(steps, modules[2:], strict=True):
        (folder / path).mkdir()
        if kind != "Normalize":
            (folder / path / "config.json").write_text(json.dumps(dict(told)))
            save_file(dict(weights), folder / path / "model.safetensors")
    (folder / "sentence_bert_config.json").write_text(json.dumps(dict(lengths or {})))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(dict(settings or {})))
