"""Tiny random checkpoints of models that see or hear, requests to them, and transformers' own answers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import deepseek, glm, hearing, later, more, ocr, omni, pictures, qwen, resampled
from .parts import Kind

KINDS: Mapping[str, Kind] = {
    **pictures.KINDS,
    **more.KINDS,
    **qwen.KINDS,
    **hearing.KINDS,
    **omni.KINDS,
    **glm.KINDS,
    **ocr.KINDS,
    **deepseek.KINDS,
    **resampled.KINDS,
    **later.KINDS,
}

__all__ = ["KINDS", "Kind", "MediaOracle", "chat", "picture", "request", "sound", "video"]


_WANT_TORCHVISION = (
    *(
        "Exaone4_5_Processor",
        "Gemma4Processor",
        "Glm46VProcessor",
        "Glm4vProcessor",
        "InternVLProcessor",
        "LlavaNextVideoProcessor",
        "LlavaOnevisionProcessor",
        "PixtralProcessor",
        "Qwen2VLProcessor",
        "VideoLlavaProcessor",
    ),
    *("Qwen2_5OmniProcessor", "Qwen2_5_VLProcessor", "Qwen3OmniMoeProcessor", "Qwen3VLProcessor", "SmolVLMProcessor"),
)


class MediaOracle:
    """transformers' own `generate` on what the checkpoint's own processor makes of a request, in float32."""

    def __init__(self, folder: Path) -> None:
        import transformers
        from transformers import AutoConfig, AutoProcessor

        config = AutoConfig.from_pretrained(folder)
        own = getattr(transformers, config.architectures[0])
        self.model: Any = own.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        told = folder / "processor_config.json"
        name = json.loads(told.read_text()).get("processor_class", "") if told.exists() else ""
        if name in _WANT_TORCHVISION and importlib.util.find_spec("torchvision") is None:
            from kamado_models.language.media.classes import built, processor_class

            self.processor: Any = built(processor_class(name), folder, {})
        else:
            self.processor = AutoProcessor.from_pretrained(folder)

    def greedy(self, options: Mapping[str, Any], num_new: int) -> list[int]:
        """The tokens of an answer to `options` of a request: `messages` with pictures, frames and samples in them, or
        `prompt` with `image`."""
        made = self._inputs(options)
        with torch.inference_mode():
            out = self.model.generate(
                **{name: _in_float32(value) for name, value in made.items() if name != "labels"},
                do_sample=False,
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                eos_token_id=None,
            )
        return list(out[0, -num_new:].tolist())

    def num_tokens(self, options: Mapping[str, Any]) -> int:
        """Of the prompt."""
        return int(self._inputs(options)["input_ids"].shape[1])

    def _inputs(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if "messages" not in options:
            return dict(self.processor(text=options["prompt"], images=[options["image"]], return_tensors="pt"))
        turns = options["messages"]
        parts = [part for turn in turns if isinstance(turn["content"], list) for part in turn["content"]]
        rates = [0.0 for part in parts if part["type"] == "video"]
        if rates:
            self.processor.video_processor.rates = rates
        how = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        plain = [_without_rates(turn) for turn in turns]
        return dict(self.processor.apply_chat_template(plain, **how))


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _without_rates(turn: Mapping[str, Any]) -> dict[str, Any]:
    """transformers takes sounds as samples alone."""
    if isinstance(turn["content"], str):
        return {**turn, "content": [{"type": "text", "text": turn["content"]}]}
    return {
        **turn,
        "content": [
            {**part, "audio": part["audio"][0]} if part["type"] == "audio" else dict(part) for part in turn["content"]
        ],
    }


def picture(seed: int, width: int = 50, height: int = 40) -> Any:
    """A PIL picture of noise."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def sound(seed: int, length: int = 4000) -> tuple[Any, int]:
    """(samples, rate) of noise."""
    return np.random.default_rng(seed).normal(size=length).astype(np.float32) * 0.1, 16000


def video(seed: int, frames: int = 4) -> Any:
    """uint8 (frames, height, width, 3) of noise."""
    return np.random.default_rng(seed).integers(0, 255, (frames, 40, 50, 3), dtype=np.uint8)


THINGS: Mapping[str, Callable[[int], Any]] = {
    "image": lambda seed: picture(seed, 50 + 20 * (seed % 3), 40 + 15 * (seed % 2)),
    "audio": lambda seed: sound(seed, 4000 + 500 * (seed % 3)),
    "video": video,
}
"""By kind, from a seed: of several sizes and lengths."""


def chat(kind: Kind) -> dict[str, Any]:
    """Options of a chat of several turns, with all that a model takes."""
    parts = [{"type": what, what: THINGS[what](seed)} for seed in (1, 2)[: kind.most] for what in reversed(kind.kinds)]
    asked = [part for thing in parts for part in (thing, {"type": "text", "text": "and"})]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "ok"}]
    more = [{"type": kind.kinds[0], kind.kinds[0]: THINGS[kind.kinds[0]](4)}] if kind.most > 1 else []
    return {"messages": [*turns, {"role": "user", "content": [*more, {"type": "text", "text": "so?"}]}]}


def request(kind: Kind, what: str, seeds: Sequence[int], *, text: str = "what") -> dict[str, Any]:
    """Options of a request that shows something of the kind `what` for each seed."""
    things = [THINGS[what](seed) for seed in seeds]
    if not kind.chat:
        return {"prompt": text, what: things[0] if len(things) == 1 else things}
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Look"}]
    for thing in things:
        parts += [{"type": what, what: thing}, {"type": "text", "text": "and"}]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]}
