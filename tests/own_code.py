"""Tiny checkpoints whose classes are their own code: a Llama with another activation, and models that are wholly own.

Every module writes its name to a file as soon as it is imported, so that a test can say whether anything was run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MARK = """from pathlib import Path
with Path({path!r}).open("a") as file:
    file.write(__name__.rpartition(".")[2] + "\\n")
"""

LLAMA_CONFIGURATION = """
from transformers import LlamaConfig


class TwistedConfig(LlamaConfig):
    model_type = "twisted"

    def __init__(self, twist=3.0, **kwargs):
        super().__init__(**kwargs)
        self.twist = twist
"""
LLAMA_MODELING = """
import torch
from torch import nn
from transformers import LlamaForCausalLM

from .configuration_twisted import TwistedConfig
from .helper_twisted import bend


class TwistedActivation(nn.Module):
    def __init__(self, twist):
        super().__init__()
        self.twist = twist

    def forward(self, x):
        return bend(x, self.twist)


class TwistedForCausalLM(LlamaForCausalLM):
    config_class = TwistedConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = TwistedActivation(config.twist)
"""
LLAMA_HELPER = """
import torch


def bend(x, twist):
    return torch.tanh(x) * torch.sigmoid(twist * x)
"""

OWN_CONFIGURATION = """
from transformers import PreTrainedConfig


class OwnConfig(PreTrainedConfig):
    model_type = "wholly-own"
    attribute_map = {"num_hidden_layers": "depth", "hidden_size": "width"}

    def __init__(self, vocab_size=264, width=32, depth=3, parts=4, custom_gain=1.0, **kwargs):
        self.vocab_size = vocab_size
        self.width = width
        self.depth = depth
        self.parts = parts
        self.custom_gain = custom_gain
        super().__init__(**kwargs)
"""
OWN_MODELING = """
import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_own import OwnConfig


class Mixer(nn.Module):
    '''Attention that falls off with distance, written out by hand; one key for two queries.'''

    def __init__(self, config, index):
        super().__init__()
        self.index, self.parts, self.size = index, config.parts, config.width // config.parts
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width // 2, bias=False)
        self.v_proj = nn.Linear(config.width, config.width // 2, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, seen, where, cache):
        rows, new, _ = x.shape
        q, k, v = (p(x).view(rows, new, -1, self.size).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = cache.update(k, v, self.index)
        k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
        scores = q @ k.transpose(-1, -2) / self.size**0.5 - 0.1 * where
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.mixer = Mixer(config, index)
        self.up = nn.Linear(config.width, 2 * config.width)
        self.down = nn.Linear(2 * config.width, config.width)
        self.first, self.second = nn.LayerNorm(config.width), nn.LayerNorm(config.width)

    def forward(self, x, seen, where, cache):
        x = x + self.mixer(self.first(x), seen, where, cache)
        return x + self.down(torch.relu(self.up(self.second(x))))


class OwnForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList([Block(config, index) for index in range(config.depth)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, MASKpast_key_values=None, use_cache=None, cache_position=None, **kwargs):
        cache = DynamicCache() if past_key_values is None else past_key_values
        new, past = input_ids.shape[1], cache.get_seq_length()
        if cache_position is None:
            cache_position = torch.arange(past, past + new, device=input_ids.device)
        keys = torch.arange(past + new, device=input_ids.device)
        where = cache_position[:, None] - keys[None, :]
        seen = (where >= 0)[None, None]
        READ
        x = self.embed(input_ids) * self.config.custom_gain
        for block in self.blocks:
            x = block(x, seen, where, cache)
        return CausalLMOutputWithPast(logits=self.head(self.norm(x)), past_key_values=cache)
"""
WITH_MASK = (
    "attention_mask=None, ",
    "if attention_mask is not None:\n            seen = seen & attention_mask[:, None, None].bool()",
)

LLAMA_SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 264, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
OWN_SIZES = {"width": 32, "depth": 3, "parts": 4, "vocab_size": 264, "max_position_embeddings": 256, "custom_gain": 1.5}


def files_of(kind: str) -> dict[str, str]:
    """`config.json` and the Python files of a kind: "twisted", "own", or "unmasked", which takes no attention mask."""
    if kind == "twisted":
        name, sizes = "Twisted", LLAMA_SIZES
        code = {"configuration": LLAMA_CONFIGURATION, "modeling": LLAMA_MODELING, "helper": LLAMA_HELPER}
    else:
        name, sizes = "Own", OWN_SIZES
        argument, lines = WITH_MASK if kind == "own" else ("", "")
        code = {
            "configuration": OWN_CONFIGURATION,
            "modeling": OWN_MODELING.replace("MASK", argument).replace("READ", lines),
        }
    module = name.lower()
    config = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": {"Twisted": "twisted", "Own": "wholly-own"}[name],
        "auto_map": {
            "AutoConfig": f"configuration_{module}.{name}Config",
            "AutoModelForCausalLM": f"modeling_{module}.{name}ForCausalLM",
        },
        **sizes,
    }
    return {"config.json": json.dumps(config)} | {f"{part}_{module}.py": text for part, text in code.items()}


def write_code(kind: str, folder: Path, marker: Path) -> None:
    """The folder's configuration and code, each module of which adds a line to `marker` when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files_of(kind).items():
        mark = MARK.format(path=str(marker)) if name.endswith(".py") else ""
        (folder / name).write_text(mark + text, encoding="utf-8")


def build(kind: str, folder: Path, marker: Path, *, seed: int = 0) -> Path:
    """The whole checkpoint. Runs its code to make the weights; `marker` is not there afterwards. Returns `folder`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    import tiny

    write_code(kind, folder, marker)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        tiny.rescale(model)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    tiny.write_tokenizer(folder)
    marker.unlink()
    return folder
