"""How far a language model's next-token distributions are from those of the same model in full precision.

KL divergence, agreement of the most probable token and perplexity are measured as llama.cpp's tools do: over every
position of a fixed text, of which the model has read all before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.resources import files

import torch
from torch import Tensor

from kamado.checkpoint.types import Checkpoint
from kamado.errors import UnsupportedCheckpoint
from kamado.quant import Quant
from kamado.weights.quantized.tiled import tile_weights

from .loading import read_model
from .tokenizer import load_tokenizer

MAX_TOKENS = 512
_LEAST_TOKENS = 16
_PIECE_TOKENS = 64
"""Positions whose distributions over the whole vocabulary are in memory at once, beside the logits themselves."""


def text_figures(reference: Checkpoint, candidate: Checkpoint, *, dtype: str, device: str) -> Mapping[str, float]:
    """The figures of `kamado.quality.Quality` for two checkpoints of one model. They are in memory one at a time.

    Raises UnsupportedCheckpoint for a model that no text can be asked of, DoesNotFit never: plan before."""
    tokens = tokens_of_text(reference)
    wanted = logits_of(reference, tokens, dtype=dtype, device=device)
    return figures(wanted, logits_of(candidate, tokens, dtype=dtype, device=device), tokens)


def tokens_of_text(checkpoint: Checkpoint) -> Tensor:
    """The text, as the model reads it: int64 (tokens), at most MAX_TOKENS. Raises UnsupportedCheckpoint."""
    tokenizer = load_tokenizer(checkpoint)
    try:
        text = files(__package__).joinpath("quality_text.txt").read_text(encoding="utf-8")
        tokens = tokenizer.encode(text, add_special=True)[:MAX_TOKENS]
    finally:
        tokenizer.close()
    if len(tokens) < _LEAST_TOKENS:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: its tokenizer makes {len(tokens)} tokens of the text")
    return torch.tensor(tokens)


def figures(reference: Tensor, candidate: Tensor, tokens: Tensor) -> dict[str, float]:
    """Of logits (tokens, vocabulary) and the tokens they were computed over."""
    divergence = agreeing = 0.0
    losses = {"reference": 0.0, "candidate": 0.0}
    count = len(tokens)
    for piece in _pieces(count):
        p, q = reference[piece].float().log_softmax(-1), candidate[piece].float().log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        agreeing += float((p.argmax(-1) == q.argmax(-1)).sum())
        following = tokens[piece.start + 1 : piece.stop + 1].unsqueeze(-1)
        for name, scores in (("reference", p), ("candidate", q)):
            losses[name] -= float(scores[: len(following)].gather(-1, following).sum())
    perplexity = {name: math.exp(min(loss / (count - 1), 700.0)) for name, loss in losses.items()}
    return {
        "kl_divergence": divergence / count,
        "agreement": agreeing / count,
        "perplexity": perplexity["candidate"],
        "perplexity_ratio": perplexity["candidate"] / perplexity["reference"],
    }


def logits_of(checkpoint: Checkpoint, tokens: Tensor, *, dtype: str, device: str, quant: Quant | None = None) -> Tensor:
    """(tokens, vocabulary), on the CPU: what the model expects behind each of the tokens, with the products that it is
    run with."""
    model, _ = read_model(checkpoint, dtype=dtype, device=device, quant=quant)
    if device == "cpu":
        tile_weights(model)
    ids = tokens.unsqueeze(0).to(device)
    with torch.inference_mode():
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits: Tensor = model(input_ids=ids, use_cache=False, **more).logits
        return logits[0].cpu()


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _PIECE_TOKENS, count)) for start in range(0, count, _PIECE_TOKENS))
