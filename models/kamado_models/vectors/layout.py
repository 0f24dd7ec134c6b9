"""What a checkpoint's files say about vectors and scores. No torch.

modules.json                       the steps from token states to a vector (sentence-transformers)
sentence_bert_config.json          how many tokens are read
config_sentence_transformers.json  texts that go before inputs, by name
1_Pooling/config.json, ...         one file for each step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kamado.checkpoint.folder import refuse_pickles
from kamado.checkpoint.paths import below
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.checkpoint.strict_json import parse_json_object, read_bounded, read_json_object
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado.errors import UnsupportedCheckpoint

from ..library.kinds import architecture_of

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
_LENGTHS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
            "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
            "sentence_xlnet_config.json")  # fmt: skip
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
"""As sentence-transformers calls them, in the order in which it joins the vectors of several."""
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OTHER_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt_len", "last": "lasttoken", "last_token": "lasttoken"}
_WORDS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight", "shared.weight",
          "word_embedding.weight", "embeddings.weight", "embed_in.weight")  # fmt: skip
"""How tables of words' vectors end."""
_UNUSED = (".pooler.", ".seq_relationship.")
"""Layers that neither vectors nor masked words go through."""
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""The halves that make vectors, of models that have two."""
_SENSES = ("vision_config", "audio_config", "text_config", "speech_config", "sampling_rate", "image_size",
           "image_token_id", "codec_config", "audio_token_id")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done to a vector."""

    kind: str
    """`Dense`, `LayerNorm` or `Normalize`."""
    name: str = ""
    """Of its folder."""
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentences:
    """How a sentence model makes vectors."""

    poolings: tuple[str, ...]
    """Of POOLINGS."""
    is_told: bool
    """Whether the checkpoint says how token states become a vector."""
    counts_prompt: bool = True
    """Whether the tokens of a text before the input count among those that are pooled."""
    steps: tuple[Step, ...] = ()
    prompts: Mapping[str, str]
    default_prompt: str | None = None
    max_tokens: int | None = None
    lower: bool = False
    """Whether inputs are made lower case first."""
    dimensions: int | None = None
    """To how many a vector is cut."""


def is_text_model(checkpoint: Checkpoint) -> bool:
    """Whether it is one network of transformers that reads words and nothing else."""
    config = checkpoint.config
    return (
        checkpoint.layout == "transformers"
        and isinstance(config.get("model_type"), str)
        and isinstance(config.get("vocab_size"), int)
        and not any(sense in config for sense in _SENSES)
        and any(name.endswith(_WORDS) for name in checkpoint.tensors)
    )


def module_kinds(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The last names of the classes in modules.json, in order; empty where there is none, or one that is damaged."""
    try:
        return tuple(kind for kind, _ in _modules(checkpoint))
    except UnsupportedCheckpoint:
        return ()


def makes_vectors(checkpoint: Checkpoint) -> bool:
    """Whether it is a sentence model, or a bare network whose token states can be pooled."""
    if "Pooling" in module_kinds(checkpoint):
        return checkpoint.layout == "transformers"
    name = architecture_of(checkpoint)
    bare = name.endswith("Model") and not name.endswith("LMHeadModel")
    joined = checkpoint.config.get("is_encoder_decoder") is True and not name.endswith("EncoderModel")
    return bare and not joined and is_text_model(checkpoint)


def sentences(checkpoint: Checkpoint) -> Sentences:
    """See Sentences. Raises UnsupportedCheckpoint for steps that are not known."""
    settings = _json(checkpoint, SETTINGS)
    lengths = next((_json(checkpoint, name) for name in _LENGTHS if name in checkpoint.files), {})
    known, usual = prompts_of(checkpoint)
    longest, cut = lengths.get("max_seq_length"), settings.get("truncate_dim")
    common: dict[str, Any] = {
        "prompts": known,
        "default_prompt": usual,
        "max_tokens": longest if isinstance(longest, int) and longest > 0 else None,
        "lower": lengths.get("do_lower_case") is True,
        "dimensions": cut if isinstance(cut, int) and cut > 0 else None,
    }
    poolings: tuple[str, ...] = ()
    counts_prompt = True
    steps: list[Step] = []
    for kind, folder in _modules(checkpoint):
        if kind == "Pooling" and not poolings:
            told = _json(checkpoint, f"{folder}/config.json")
            poolings, counts_prompt = _poolings(told, checkpoint), told.get("include_prompt", True) is not False
        elif kind in ("Dense", "LayerNorm", "Normalize") and poolings:
            held = _json(checkpoint, f"{folder}/config.json") if kind != "Normalize" else {}
            steps.append(Step(kind=kind, name=folder, settings=held))
        elif kind not in ("Transformer", "Dropout") or (kind == "Transformer" and folder):
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: its {MODULES} has a step {kind}, which is not known")
    return Sentences(
        poolings=poolings or ("mean",),
        is_told=bool(poolings),
        counts_prompt=counts_prompt,
        steps=tuple(steps),
        **common,
    )


def prompts_of(checkpoint: Checkpoint) -> tuple[dict[str, str], str | None]:
    """The texts that go before inputs, by name, and the name of the one that goes there where none is asked for."""
    settings = _json(checkpoint, SETTINGS)
    prompts, usual = settings.get("prompts"), settings.get("default_prompt_name")
    known = {str(k): v for k, v in prompts.items() if isinstance(v, str)} if isinstance(prompts, dict) else {}
    return known, usual if usual in known else None


def network_tensors(checkpoint: Checkpoint, *, bare: bool = False) -> dict[str, TensorEntry]:
    """The tensors of the network, by the names that its class has for them. `bare`: without the layers behind token
    states, whichever class it was saved from."""
    tensors = checkpoint.tensors
    if architecture_of(checkpoint).endswith("ForSequenceClassification") and not bare:
        return dict(tensors)
    kept = {name: e for name, e in tensors.items() if not any(part in f".{name}" for part in _UNUSED)}
    if not bare:
        return kept
    if checkpoint.config.get("model_type") in ENCODERS:
        return {name: e for name, e in kept.items() if not name.startswith(("decoder.", "lm_head."))}
    start = next((name.partition(".")[0] + "." for name in kept if name.endswith(_WORDS) and "." in name), "")
    inside = {name[len(start) :]: entry for name, entry in kept.items() if name.startswith(start)}
    # A bare network has its table of words beside its layers, a part of another one has both inside.
    return inside if 2 * len(inside) > len(kept) else kept


def step_tensors(checkpoint: Checkpoint, steps: tuple[Step, ...]) -> dict[str, TensorEntry]:
    """The weights of Dense and LayerNorm steps, as `number.name`; they lie in folders of their own. Raises
    UnsupportedCheckpoint, UnsafeCheckpoint."""
    found: dict[str, TensorEntry] = {}
    for number, step in enumerate(steps):
        if step.kind == "Normalize":
            continue
        where = str(checkpoint.root)
        path = below(checkpoint.root, f"{step.name}/model.safetensors", where=where)
        if not path.is_file():
            pickle = f"{step.name}/pytorch_model.bin"
            if below(checkpoint.root, pickle, where=where).is_file():
                refuse_pickles(checkpoint.root, [pickle])
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: weights are missing: {step.name}/model.safetensors")
        for name, entry in read_safetensors_header(path).tensors.items():
            found[f"{number}.{name}"] = entry
    return found


def logit_score(checkpoint: Checkpoint) -> tuple[int, int | None] | None:
    """(token of "yes", token of "no" or None) of a language model that judges by them; None for others. Raises
    UnsupportedCheckpoint."""
    for kind, folder in _modules(checkpoint):
        if kind == "LogitScore":
            told = _json(checkpoint, f"{folder}/config.json")
            yes, no = told.get("true_token_id"), told.get("false_token_id")
            if isinstance(yes, int) and (no is None or isinstance(no, int)):
                return yes, no
            raise UnsupportedCheckpoint(f"{checkpoint.reference}: {folder}/config.json names no true_token_id")
    return None


def positions(checkpoint: Checkpoint) -> int | None:
    """Tokens that the network has places for; None where it says no number."""
    config = checkpoint.config
    found = config.get("max_position_embeddings") or config.get("n_positions") or config.get("max_sequence_length")
    if not isinstance(found, int) or found <= 0:
        return None
    table = next(
        (e.shape for name, e in checkpoint.tensors.items() if name.endswith("position_embeddings.weight")), None
    )
    # RoBERTa and its kin count places from behind the number of the padding token.
    offset = config.get("pad_token_id") if config.get("model_type") in _OFFSET_TYPES else None
    return found - (offset + 1 if isinstance(offset, int) and table is not None else 0)


_OFFSET_TYPES = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text",
                 "roberta-prelayernorm", "xmod", "ibert", "luke", "esm")  # fmt: skip


_HIDDEN = ("hidden_size", "d_model", "dim", "n_embd", "embedding_size")


def activation_bytes(checkpoint: Checkpoint, size: int, *, heads: int = 0) -> int:
    """About what the largest usual call takes: 4,096 tokens, in texts of up to 512. `heads`: numbers that come out for
    a token besides its state."""
    hidden = _first(checkpoint, *_HIDDEN)
    inner = _first(checkpoint, "intermediate_size", "d_ff", "hidden_dim", "n_inner") or 4 * hidden
    attention = _first(checkpoint, "num_attention_heads", "num_heads", "n_heads", "n_head") * 512
    return 4096 * size * (8 * hidden + 2 * inner + attention + heads)


def vector_size(checkpoint: Checkpoint, how: Sentences, poolings: int | None = None) -> int:
    """Numbers of a vector before it is cut; 0 where the configuration does not say. `poolings`: how many, if others are
    asked for."""
    dense = [step.settings.get("out_features") for step in how.steps if step.kind == "Dense"]
    if dense and isinstance(dense[-1], int):
        return dense[-1]
    return _first(checkpoint, *_HIDDEN) * (poolings or len(how.poolings))


def _first(checkpoint: Checkpoint, *names: str) -> int:
    """The first of these fields of the configuration that is a number, or 0."""
    config = checkpoint.config
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(last name of the class, folder) of each entry of modules.json, in order. Raises UnsupportedCheckpoint."""
    path = checkpoint.files.get(MODULES)
    if path is None:
        return []
    listed = parse_json_object(b'{"modules": ' + read_bounded(path) + b"}", what=str(path))["modules"]
    if not isinstance(listed, list):
        raise UnsupportedCheckpoint(f"{path} holds no list")
    found = []
    for entry in listed:
        kind = entry.get("type") if isinstance(entry, dict) else None
        folder = entry.get("path", "") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or not isinstance(folder, str):
            raise UnsupportedCheckpoint(f"{path} is damaged: {entry!r:.80} names no step")
        found.append((kind.rpartition(".")[2], folder.strip("/")))
    return found


def _poolings(told: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[str, ...]:
    named = told.get("pooling_mode")
    if named is not None:
        names = {_OTHER_NAMES.get(each, each) for each in (named if isinstance(named, list) else [named])}
    else:
        names = {name for key, name in _POOLING_KEYS.items() if told.get(key) is True}
    if not names or not names <= set(POOLINGS):
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: its pooling is not known: {dict(told)!r:.200}")
    return tuple(name for name in POOLINGS if name in names)


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    path = checkpoint.files.get(name)
    return {} if path is None else read_json_object(path)
