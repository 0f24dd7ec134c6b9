"""Long and weighted prompts for models that read prompts by CLIP: the embeddings that the pipeline would make itself.

As AUTOMATIC1111's web UI documents it ("Features": attention/emphasis, infinite prompt length): a prompt is cut in
chunks of as many tokens as the encoder reads, less its start and end; each chunk is encoded by itself, and the results
are joined in a row. Of two prompts the shorter one is filled up with empty chunks. A weight multiplies the hidden
states at its tokens, after which the chunk's mean is brought back to what it was. What a model has of a prompt as a
whole (SDXL's pooled embedding) is that of the first chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kamado.errors import InvalidRequest
from kamado.weights.outside.tensors import device_of

from .prompt_syntax import parse_weights
from .related import call_parameters
from .table import runs_alone

_SECOND = ("prompt_2", "negative_prompt_2")
"""What SDXL's second encoder reads, where that is something else."""
_READERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
_GAINS = (0.25, 4.0)
"""Bringing back the mean is left out where that would take a factor beyond: means near 0 say nothing."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the encoder reads at once, start and end included."""

    ids: list[int]
    weights: list[float]
    """Of each token; 1 where nothing was said."""
    read: int
    """Tokens that are not padding."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """A tokenizer with its encoder, and what it is given to read."""

    tokenizer: Any
    encoder: Any
    prompt: str
    negative: str
    is_xl: bool


def check_weighting(arguments: Mapping[str, Any], kind: Any, components: Mapping[str, Any], reference: str) -> None:
    """Raise InvalidRequest where a pipeline of class `kind` cannot be given weighted prompts, or has none."""
    if not can_weight(kind, components) or runs_alone(kind.__name__):
        raise InvalidRequest(
            f"{reference}: weighting is for models that read prompts by CLIP alone (Stable Diffusion 1, 2 and XL)"
        )
    prompts = [arguments[name] for name in ("prompt", "negative_prompt", *_SECOND) if arguments.get(name) is not None]
    if "prompt" not in arguments or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("weighting needs the prompt as a text")
    for prompt in prompts:
        parse_weights(prompt)


def can_weight(kind: Any, components: Mapping[str, Any]) -> bool:
    """Whether a pipeline of class `kind` takes embeddings in place of prompts, all of them by CLIP."""
    encoders = [part for name, part in components.items() if name.startswith("text_encoder") and part is not None]
    names = [type(encoder).__name__ for encoder in encoders]
    takes = call_parameters(kind)
    return (
        bool(names)
        and set(names) <= set(_READERS)
        and "unet" in components
        and "prompt_embeds" in takes
        and ("pooled_prompt_embeds" in takes) == ("CLIPTextModelWithProjection" in names)
    )


def with_embeddings(pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the pipeline's call with embeddings in place of prompts. Calls its text encoders."""
    kind: Any = type(pipeline)  # mypy doubts that classes hash
    takes = call_parameters(kind)
    rest = {name: value for name, value in arguments.items() if name not in ("prompt", "negative_prompt", *_SECOND)}
    readers = list(_readers(pipeline, arguments))
    prompts = [_chunks(pipeline, reader.tokenizer, reader.prompt) for reader in readers]
    negatives = [_chunks(pipeline, reader.tokenizer, reader.negative) for reader in readers]
    count = max(len(chunks) for chunks in (*prompts, *negatives))
    skip = rest.get("clip_skip")
    made = _joined([_encoded(r, chunks, count, skip) for r, chunks in zip(readers, prompts, strict=True)])
    if "negative_prompt_embeds" in takes:
        if arguments.get("negative_prompt") is None and pipeline.config.get("force_zeros_for_empty_prompt"):
            made |= {f"negative_{name}": torch.zeros_like(value) for name, value in made.items()}
        else:
            # As diffusers has it, clip_skip is for the prompt alone.
            others = [_encoded(r, chunks, count, None) for r, chunks in zip(readers, negatives, strict=True)]
            made |= {f"negative_{name}": value for name, value in _joined(others).items()}
    return {**rest, **made}


def _joined(encoded: Sequence[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """What the encoders made of one prompt, under the names that pipelines have for it."""
    made = {"prompt_embeds": torch.cat([states for states, _ in encoded], dim=-1)}
    if (pooled := encoded[-1][1]) is not None:
        made["pooled_prompt_embeds"] = pooled
    return made


def _readers(pipeline: Any, arguments: Mapping[str, Any]) -> Iterator[_Reader]:
    prompt, negative = arguments["prompt"], arguments.get("negative_prompt") or ""
    second, negative_second = (
        arguments.get(name) or plain for name, plain in zip(_SECOND, (prompt, negative), strict=True)
    )
    for suffix, texts in (("", (prompt, negative)), ("_2", (second, negative_second))):
        tokenizer, encoder = (getattr(pipeline, name + suffix, None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is not None and encoder is not None:
            yield _Reader(tokenizer, encoder, *texts, is_xl=hasattr(pipeline, "text_encoder_2"))


def _chunks(pipeline: Any, tokenizer: Any, prompt: str) -> list[Chunk]:
    """At least one."""
    room = tokenizer.model_max_length - 2
    chunks = []
    for part in parse_weights(prompt):
        tokens: list[tuple[int, float]] = []
        for span in part:
            text = span.text
            if hasattr(pipeline, "maybe_convert_prompt"):
                text = pipeline.maybe_convert_prompt(text, tokenizer)  # embeddings of several vectors
            tokens += [
                (token, span.weight) for token in tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            ]
        for start in range(0, max(len(tokens), 1), room):
            chunks.append(_framed(tokenizer, tokens[start : start + room]))
    return chunks


def _framed(tokenizer: Any, tokens: list[tuple[int, float]]) -> Chunk:
    """With start, end and padding, as the tokenizer itself puts them."""
    padding = tokenizer.model_max_length - 2 - len(tokens)
    ids = [tokenizer.bos_token_id, *(token for token, _ in tokens), tokenizer.eos_token_id]
    weights = [1.0, *(weight for _, weight in tokens), 1.0]
    return Chunk(ids + [tokenizer.pad_token_id] * padding, weights + [1.0] * padding, len(ids))


def _encoded(reader: _Reader, chunks: list[Chunk], count: int, skip: int | None) -> tuple[Tensor, Tensor | None]:
    """((1, count x length, width), the pooled embedding (1, width) or None), as the pipeline takes them from its
    encoder: Stable Diffusion XL the last layer but one, others the last one."""
    chunks = chunks + [_framed(reader.tokenizer, [])] * (count - len(chunks))
    device = device_of(reader.encoder)
    given: dict[str, Any] = {"output_hidden_states": True} if reader.is_xl or skip is not None else {}
    if not reader.is_xl:
        masked = getattr(reader.encoder.config, "use_attention_mask", False)
        given["attention_mask"] = _mask(chunks).to(device) if masked else None
    output = reader.encoder(torch.tensor([chunk.ids for chunk in chunks], device=device), **given)
    if reader.is_xl:
        states = output.hidden_states[-(skip or 0) - 2]
    elif skip is not None:
        text_model = getattr(reader.encoder, "text_model", reader.encoder)
        states = text_model.final_layer_norm(output.hidden_states[-skip - 1])
    else:
        states = output[0]
    weights = torch.tensor([chunk.weights for chunk in chunks], dtype=torch.float32, device=device)
    states = weighted(states, weights)
    return states.reshape(1, -1, states.shape[-1]), output[0][:1] if output[0].ndim == 2 else None


def weighted(states: Tensor, weights: Tensor) -> Tensor:
    """States (chunks, length, width) times weights (chunks, length), each chunk's mean kept. Unchanged where all
    weights are 1."""
    changed = (weights != 1).any(dim=1).tolist()
    if not any(changed):
        return states
    rows = []
    for state, weight, applies in zip(states, weights, changed, strict=True):
        if not applies:
            rows.append(state)
            continue
        scaled = state.float() * weight[:, None]
        gain = float(state.float().mean() / scaled.mean())
        if _GAINS[0] <= gain <= _GAINS[1]:
            scaled = scaled * gain
        rows.append(scaled.to(state.dtype))
    return torch.stack(rows)


def _mask(chunks: list[Chunk]) -> Tensor:
    return torch.tensor([[1] * chunk.read + [0] * (len(chunk.ids) - chunk.read) for chunk in chunks])
