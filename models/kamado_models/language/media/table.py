"""Models that see or hear, known by their model type before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

ENCODER = "encoder"
"""Name of the lane of what sees and hears."""
SEES = ("image",)
SEES_VIDEO = ("image", "video")
HEARS = ("audio",)

SENSES: Mapping[str, tuple[str, ...]] = {
    "aria": SEES,
    "audioflamingo3": HEARS,
    "aya_vision": SEES,
    "cohere2_vision": SEES,
    "deepseek_vl": SEES,
    "deepseek_vl_hybrid": SEES,
    "exaone4_5": SEES,
    "gemma3": SEES,
    "gemma4": SEES,
    "glm46v": SEES,
    "glm4v": SEES,
    "glm4v_moe": SEES,
    "glm_ocr": SEES,
    "glmasr": HEARS,
    "granite_docling": SEES,
    "idefics2": SEES,
    "idefics3": SEES,
    "internvl": SEES_VIDEO,
    "janus": SEES,
    "lighton_ocr": SEES,
    "llama4": SEES,
    "llava": SEES,
    "llava_next": SEES,
    "llava_next_video": SEES_VIDEO,
    "llava_onevision": SEES_VIDEO,
    "mistral3": SEES,
    "ovis2": SEES,
    "paddleocr_vl": SEES,
    "paligemma": SEES,
    "qwen2_5_omni_thinker": (*SEES_VIDEO, *HEARS),
    "qwen2_5_vl": SEES_VIDEO,
    "qwen2_audio": HEARS,
    "qwen2_vl": SEES_VIDEO,
    "qwen3_asr": HEARS,
    "qwen3_omni_moe_thinker": (*SEES_VIDEO, *HEARS),
    "qwen3_vl": SEES_VIDEO,
    "qwen3_vl_moe": SEES_VIDEO,
    "smolvlm": SEES,
    "video_llava": SEES_VIDEO,
    "vipllava": SEES,
}
"""What prompts of a model type may hold beside text. The tests compare every one of these with transformers'
`generate`."""

WANT_TORCHVISION = frozenset({"cohere2_vision", "llama4"})
"""Those of them whose pictures transformers prepares with torchvision alone. Their tests are skipped without it."""

OUTSIDE: Mapping[str, str] = {
    **dict.fromkeys(("voxtral", "voxtral_realtime"), "mistral-common"),
    **dict.fromkeys(("fun_asr_nano", "granite_speech", "granite_speech_plus"), "torchaudio"),
}
"""Model types that are known and not run, by the package that makes their prompts and has no place here yet."""

THINKERS = {
    "qwen2_5_omni": ("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": ("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}
"""Model types of several models: the type and the class of that which makes text."""
THINKER = "thinker."
"""What the names of that one's tensors begin with."""
TEXT_PARTS = {
    "lfm2_vl": ("lfm2", "Lfm2ForCausalLM"),
    "qwen3_5": ("qwen3_5_text", "Qwen3_5ForCausalLM"),
    "qwen3_5_moe": ("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"),
}
"""Model types that see, and of which only the language model is run, with text alone, since its layers keep recurrent
state: its type and its class."""


def text_part_of(config: Mapping[str, Any], names: Container[str]) -> dict[str, Any] | None:
    """The configuration of the language model of a model that is run with text alone; None for others. `names`: of the
    tensors."""
    inner, found = config.get("text_config"), TEXT_PARTS.get(str(config.get("model_type")))
    if found is None or not isinstance(inner, Mapping) or inner.get("model_type", found[0]) != found[0]:
        return None
    tied = config.get("tie_word_embeddings")
    tied = tied if isinstance(tied, bool) else "lm_head.weight" not in names
    quantized = {name: config[name] for name in ("quantization_config",) if name in config}
    own = {"model_type": found[0], "architectures": [found[1]], "tie_word_embeddings": tied}
    return {**inner, **quantized, **own}


def text_part_name(name: str) -> str | None:
    """What a tensor of such a model is called in its language model; None for one of what sees."""
    if name.startswith("lm_head."):
        return name
    return f"model.{inside}" if (inside := name.removeprefix("model.language_model.")) != name else None


def thinker_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of the model that makes text, of a model that also speaks; None for others."""
    inner, found = config.get("thinker_config"), THINKERS.get(str(config.get("model_type")))
    if found is None or not isinstance(inner, Mapping):
        return None
    return {**inner, "model_type": found[0], "architectures": [found[1]]}


def senses_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the model that a `config.json` describes; empty for one of text alone, or of a type that is not known."""
    return SENSES.get(str(config.get("model_type")), ())


def tasks_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what it can be asked for, as model hubs call them."""
    senses = senses_of(config)
    named = {"image": "image-text-to-text", "video": "video-text-to-text", "audio": "audio-text-to-text"}
    found = tuple(named[sense] for sense in senses)
    return (*found, "any-to-any") if "audio" in senses and "image" in senses else found
