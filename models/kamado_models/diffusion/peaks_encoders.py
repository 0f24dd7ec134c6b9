"""How much memory the temporary tensors of text and picture encoders take, estimated from configurations. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kamado.checkpoint.types import Checkpoint

_CLIP_TOKENS = 77
_SHORT = ("clip", "bert")
"""Beginnings of the model types that read no more."""
_USUAL_TOKENS = 512
_TOKENS = {
    "AuraFlowPipeline": 256,
    "HunyuanDiTPipeline": 256,
    "KolorsPipeline": 256,
    "Lumina2Pipeline": 256,
    "PixArtAlphaPipeline": 120,
    "PixArtSigmaPipeline": 300,
    "QwenImagePipeline": 256,
    "SanaPipeline": 540,
    "StableDiffusion3Pipeline": 256,
}
"""Of the prompt, with what the pipeline adds to it. Those of Qwen-Image and Sana follow the prompt: a long one."""
_STREAM, _WIDE = 7, 3
"""Copies of a layer's states (with projections), and of those of its wide layer, that live at once."""
_SCORE_BYTES = 12
"""Of each pair of tokens and each head where attention writes scores out: before and after, in between in float32."""
_BIASES = 3
"""Copies of T5's position biases, one for each pair and head, that live at once."""
_MAX = 1 << 20
_MAX_LAYERS = 1000


def text_tokens(checkpoint: Checkpoint) -> int:
    """Tokens of a text as the pipeline passes it on, CLIP's left out."""
    return _TOKENS.get(str(checkpoint.config.get("_class_name")), _USUAL_TOKENS)


def text_peak(config: Mapping[str, Any], tokens: int, dtype_bytes: int) -> int:
    """Bytes of temporary tensors while a text encoder reads one text of `tokens` tokens, or of fewer where it reads no
    more. What pipelines take from it are the states of all layers, but for T5's."""
    names, config = config.get("architectures"), _inner(config, "text_config")
    model_type = str(config.get("model_type"))
    if model_type.startswith(_SHORT):
        tokens = min(tokens, _number(config, "max_position_embeddings") or _CLIP_TOKENS, _CLIP_TOKENS)
    width, wide = _number(config, "hidden_size", "d_model"), _number(config, "intermediate_size", "d_ff")
    is_t5 = "t5" in model_type
    kept = 0 if is_t5 else width * (1 + min(_number(config, "num_hidden_layers"), _MAX_LAYERS))
    has_head = isinstance(names, (list, tuple)) and str(names[:1]).rstrip("')],").endswith("ForConditionalGeneration")
    most = max(_STREAM * width + _WIDE * wide, _number(config, "vocab_size") if has_head and not is_t5 else 0)
    heads = _number(config, "num_attention_heads", "num_heads")
    scores = _BIASES * dtype_bytes if is_t5 else _SCORE_BYTES if config.get("attn_logit_softcapping") else 0
    pairs = max(heads * scores, 1)  # at least a mask
    return tokens * (kept + most) * dtype_bytes + tokens * tokens * pairs


def vision_peak(config: Mapping[str, Any], dtype_bytes: int) -> int:
    """Bytes of temporary tensors while a picture encoder looks at one picture; 0 for what is none."""
    config = _inner(config, "vision_config")
    side, patch = _number(config, "image_size"), _number(config, "patch_size")
    width = _number(config, "hidden_size")
    if not side or not patch or not width:
        return 0
    wide = _number(config, "intermediate_size") or 4 * width
    return ((side // patch) ** 2 + 1) * (_STREAM * width + _WIDE * wide) * dtype_bytes


def _inner(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a configuration that is about one side of a model with several."""
    part = config.get(name)
    return part if isinstance(part, Mapping) else config


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of these values that is a whole number; 0 if none is. The library judges what is absurd."""
    values = (config.get(name) for name in names)
    return next((min(value, _MAX) for value in values if type(value) is int and value > 0), 0)
