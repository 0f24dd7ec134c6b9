"""Tiny random checkpoints on disk, one for each architecture, and transformers' own answer to a prompt.

They are ordinary folders (safetensors, config, tokenizer). Weights are scaled such that greedy answers vary and the two
best logits lie well apart, so that tokens can be compared for equality.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tiny_configs import CAUSAL, SEQ2SEQ
from tiny_seeds import SEEDS

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<a>", "<b>")
KEPT = ("A_log", "D", "dt_bias", "recurrent_param", "time_decay", "time_first")
"""Parameters that a model needs as it initializes them, to be stable."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """How one tiny checkpoint is made."""

    name: str
    model_type: str
    config: dict[str, Any] = field(repr=False)
    encoder_decoder: bool = False


ARCHITECTURES: dict[str, TinySpec] = {
    name: TinySpec(name=name, model_type=model_type, config=config) for name, (model_type, config) in CAUSAL.items()
} | {
    name: TinySpec(name=name, model_type=model_type, config=config, encoder_decoder=True)
    for name, (model_type, config) in SEQ2SEQ.items()
}


def build(name: str, folder: Path, **changes: Any) -> Path:
    """Write the checkpoint of architecture `name` to `folder`, the same on every call. Returns `folder`. `changes` take
    the place of values in its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    spec = ARCHITECTURES[name]
    auto = AutoModelForSeq2SeqLM if spec.encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS.get(name, sum(name.encode())))
        model = auto.from_config(AutoConfig.for_model(spec.model_type, **spec.config | changes), dtype=torch.float32)
        rescale(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def rescale(model: Any) -> None:
    """Draw matrices with a variance that keeps activations alive, and give norms and biases values that matter.

    Where embeddings are tied, a model tends to repeat its last token: small embeddings and strong layers prevent that.
    """
    config = model.config.get_text_config()
    tied = bool(getattr(config, "tie_word_embeddings", False)) or config.is_encoder_decoder
    scaled = getattr(config, "scale_embedding", False) or config.model_type.startswith("gemma")
    embedding_std = 0.5 if not tied else 0.03 if scaled else 0.1
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            *_, parent, name = ["", *path.split(".")]
            if name in KEPT or "time_mix" in name or not parameter.requires_grad:
                continue
            noise = torch.randn_like(parameter)
            if "sinks" in name:
                parameter.copy_(noise)
            elif parameter.ndim < 2 or "correct_output_scale" in name:
                parameter.add_(0.1 * noise)
            elif "position" in parent or parent == "wpe":
                parameter.copy_(0.3 * noise)
            elif "embed" in parent or parent in ("wte", "shared"):
                parameter.copy_(embedding_std * noise)
            else:
                parameter.copy_(_gain(path, parent, tied) * noise / parameter.shape[-1] ** 0.5)


def _gain(path: str, parent: str, tied: bool) -> float:
    if not tied:
        return 1.5
    if parent.startswith(("q_", "k_")) or parent in ("q", "k"):
        return 3.0
    return 1.0 if "attn" in path.lower() or "attention" in path.lower() else 6.0


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: ids 0 to 7 are special tokens, id 8 + k is the k-th byte of the byte-level alphabet."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


class Oracle:
    """transformers' own `generate` on one checkpoint, in float32, one prompt at a time."""

    def __init__(self, folder: Path, *, own_code: bool = False) -> None:
        """`own_code`: the folder's own classes are run."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        config = AutoConfig.from_pretrained(folder, trust_remote_code=own_code)
        self.encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        auto = AutoModelForSeq2SeqLM if self.encoder_decoder else AutoModelForCausalLM
        # Older versions would take a fused path that leaves the soft cap out.
        softcapped = getattr(config, "attn_logit_softcapping", None) is not None
        how = {"attn_implementation": "eager"} if softcapped else {}
        self.model: Any = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=own_code, **how).eval()

    def greedy(self, prompt_ids: Sequence[int], num_new: int, *, ignore_eos: bool = True) -> list[int]:
        """The tokens after the prompt (of an encoder-decoder: after the decoder's start token)."""
        return self._generate(prompt_ids, num_new, ignore_eos)[0]

    def gaps(self, prompt_ids: Sequence[int], num_new: int, *, ignore_eos: bool = True) -> list[float]:
        """For each token of `greedy`: how far the second best logit lay below the best."""
        return self._generate(prompt_ids, num_new, ignore_eos)[1]

    def _generate(self, prompt_ids: Sequence[int], num_new: int, ignore_eos: bool) -> tuple[list[int], list[float]]:
        ids = torch.tensor([list(prompt_ids)])
        for module in self.model.modules():
            # Recurrent Gemma keeps its state in its modules, and would start from the last prompt's.
            for name in ("conv1d_state", "recurrent_states"):
                if hasattr(module, name):
                    setattr(module, name, None)
        saved = self.model.generation_config.eos_token_id
        if ignore_eos:
            self.model.generation_config.eos_token_id = None
        try:
            with torch.inference_mode():
                out = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=num_new,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
        finally:
            self.model.generation_config.eos_token_id = saved
        tokens = out.sequences[0, 1 if self.encoder_decoder else ids.shape[1] :].tolist()
        best = torch.stack(out.logits)[:, 0].float().topk(2).values
        return tokens, (best[:, 0] - best[:, 1]).tolist()


def greedy(folder: Path, prompt_ids: Sequence[int], num_new: int, *, ignore_eos: bool = True) -> list[int]:
    """transformers' greedy answer of `num_new` tokens. For many prompts of one checkpoint keep an `Oracle`."""
    return Oracle(folder).greedy(prompt_ids, num_new, ignore_eos=ignore_eos)
