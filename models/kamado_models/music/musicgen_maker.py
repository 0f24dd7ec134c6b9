"""MusicGen, loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from kamado.checkpoint.types import Checkpoint
from kamado.errors import ContextOverflow, InvalidRequest
from kamado.media.sounds import open_sound
from kamado.media.synth import end_s, sound_of
from kamado.outputs import Audio, Output, Score

from ..library.assembly import Through, doubled
from ..library.audio_kind import json_beside
from ..library.drawing import StepCounter, drawing
from ..library.kinds import Bench
from ..library.sound import as_samples
from .chroma import Chroma


class MusicgenMaker:
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any, *, usual_s: float) -> None:
        self.modules: Mapping[str, Any] = {
            "decoder": model,
            "text_encoder": model.text_encoder,
            "codec": model.audio_encoder,
        }
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._usual_s = usual_s
        codec, decoder = model.config.audio_encoder, model.config.decoder
        self._rate, self._frame_rate = codec.sampling_rate, codec.frame_rate
        self._channels = decoder.audio_channels
        self._positions = decoder.max_position_embeddings
        self._delay = decoder.num_codebooks // decoder.audio_channels
        self._guidance = getattr(model.generation_config, "guidance_scale", None) or 1.0
        self._is_melody = model.config.model_type == "musicgen_melody"
        self._chroma = Chroma.of(json_beside(checkpoint, "preprocessor_config.json"))

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        prompt, inputs = asked.get("prompt", ""), {}
        if prompt.strip():
            inputs = dict(self._tokenizer(prompt, return_tensors="pt"))
            inputs.pop("token_type_ids", None)
        seconds, given = asked.get("seconds", self._usual_s), 0
        if "notes" in asked:
            asked = {**asked, **self._played(asked["notes"], seconds)}
        if "audio" in asked:
            samples = self._opened(asked["audio"], "audio", self._channels)
            inputs["input_values"] = torch.from_numpy(samples)[None]
            given = samples.shape[1]
        if "melody" in asked:
            heard = self._opened(asked["melody"], "melody", 1, self._chroma.rate)
            inputs["input_features"] = self._chroma.features(torch.from_numpy(heard))
        self._check_room(seconds, given / self._rate)
        new = math.ceil(seconds * self._frame_rate) + self._delay - 1
        return {**asked, "inputs": inputs, "new": new, "wanted": given + round(seconds * self._rate)}

    def _played(self, notes: Score, seconds: float) -> dict[str, Audio]:
        """Notes as the sound that the model takes."""
        if self._is_melody:
            heard = sound_of(notes, self._chroma.rate, longest_s=self._chroma.seconds, drums=False)
            return {"melody": heard}
        self._check_room(seconds, end_s(notes))
        return {"audio": sound_of(notes, self._rate, longest_s=self._positions / self._frame_rate)}

    def _check_room(self, seconds: float, given_s: float) -> None:
        """That so many seconds after so many are not too many."""
        known = math.ceil(given_s * self._frame_rate)
        if math.ceil(seconds * self._frame_rate) + known > self._positions:
            raise ContextOverflow(
                f"{seconds:.4g} s after {given_s:.4g} s of audio are more than the "
                f"{self._positions / self._frame_rate:.4g} s that {self._checkpoint.reference} can hold; "
                "give less of it",
                prompt_tokens=known,
                context_tokens=self._positions,
            )

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        parts = {
            "text_encoder": Through(lane="text_encoder"),
            "decoder": Through(lane="decoder"),
            "audio_encoder": Through(lane="codec", methods=("encode", "decode")),
        }
        model = doubled(self.modules["decoder"], bench, parts)
        inputs = {name: self._placed(value, bench) for name, value in asked["inputs"].items()}
        guidance = asked.get("guidance", self._guidance)
        if "input_ids" not in inputs:
            guidance = 1.0
            inputs |= self._unconditional(bench)
        sound = model.generate(
            **inputs,
            max_new_tokens=asked["new"],
            guidance_scale=guidance,
            stopping_criteria=[StepCounter(bench, asked["new"])],
            **drawing(asked),
        )
        return Audio(samples=as_samples(sound)[:, : asked["wanted"]], sample_rate=self._rate)

    def _unconditional(self, bench: Bench) -> dict[str, Any]:
        """As `get_unconditional_inputs` makes it."""
        width = self.modules["text_encoder"].config.hidden_size
        nothing = torch.zeros((1, 1, width), device=bench.device, dtype=bench.dtype)
        mask = torch.zeros((1, 1), device=bench.device, dtype=torch.long)
        return {"encoder_outputs": (nothing,), "attention_mask": mask}

    def _opened(self, sound: Audio, name: str, channels: int, rate: int | None = None) -> Any:
        found = open_sound(sound, rate=rate or self._rate, channels=channels)
        if not found.samples.shape[1]:
            raise InvalidRequest(f"{name} has no samples in it")
        return np.ascontiguousarray(found.samples, np.float32)

    def _placed(self, value: Any, bench: Bench) -> Any:
        return value.to(bench.device, bench.dtype) if value.is_floating_point() else value.to(bench.device)
