"""Pocket TTS, and Phonon made of it: sound as latents of a codec, one by one, each drawn by a flow of a few steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.options import Check, Options, number, whole

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind, json_beside
from ..library.configuring import class_of, config_of, divided, generation_config_of, number_in, section_of
from ..library.drawing import drawing
from ..library.kinds import About, Bench, Generator, Part, architecture_of
from ..library.second import second_checkpoint
from .cloning import heard, one_recording
from .options import speech_options
from .speaking import Speaker, known_rate
from .templates import Writer, check_marks
from .voice_latents import SUFFIXES, chosen_file, preset_option, presets, read_latents

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

_CODEC = "audio_tokenizer"
"""As transformers calls it."""
_POCKET, _PHONON = "PocketTTSForConditionalGeneration", "GradiumPhononTTSForConditionalGeneration"
_DRAWS: Mapping[str, Check] = {"temperature": number(0.0, 10.0), "max_tokens": whole(1, 1 << 20)}
_POSITIONS = 1000
"""Of a usual call: a voice, and 30 s behind it."""
_LONGEST_VOICE_S = 60.0
_BUFFERS = ("latent_mean", "latent_std", "latent_stats_num_updates", "freqs")
_SETTINGS: Mapping[str, Check] = {
    **dict.fromkeys(("short_text_max_words", "frames_after_eos_short_text", "frames_after_eos"), whole(0, 1000)),
    "fade_in_duration": number(0.0, 1.0),
}
"""Of processor_config.json: words, frames, seconds."""


class PocketKind(AudioKind):
    """See Kind."""

    name = "pocket_tts"
    about = About(
        architectures=(_POCKET, _PHONON),
        tasks=("text-to-speech",),
        oracle="transformers' generate and processor, tiny random checkpoints",
        batching="requests take turns at backbone, flow and codec, a frame at a time",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `steps`: of the flow, for each frame; `max_tokens`: frames of one piece. `voice`: a recording;
        `preset`: the name of a voice beside the model, or a file of latents."""
        steps = {"steps": whole(1, 1000)} if _flow(checkpoint).get("flow_type", "lsd") == "lsd" else {}
        hears: Mapping[str, Check] = {"voice": one_recording} if _hears(checkpoint) else {}
        return speech_options(
            "a Pocket TTS speech model",
            _DRAWS,
            steps,
            hears,
            {"preset": preset_option},
            inputs={"voice": "audio"} if hears else {},
            files={"preset": SUFFIXES},
        )

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        voices = sorted(presets(checkpoint))
        return {"voices": voices} if voices else {}

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it takes from other checkpoints."""
        return (_CODEC,)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config, flow = checkpoint.config, _flow(checkpoint)
        hidden, inner = number_in(config, "hidden_size", 1024), number_in(config, "intermediate_size", 4096)
        cached = 2 * hidden * number_in(config, "num_hidden_layers", 6)
        wide = number_in(flow, "hidden_size", 512)
        codec = _codec(checkpoint)
        filters = number_in(codec.config, "num_filters", 64)
        own = divided(
            checkpoint,
            "backbone",
            {"flow": ("flow_head.",)},
            {
                "backbone": lambda size: size * _POSITIONS * (hidden * 6 + inner * 2 + cached),
                "flow": lambda size: size * wide * 64,
            },
            stays=lambda name: name.rpartition(".")[2] in _BUFFERS,
        )
        sound = Part(
            tensors=codec.tensors,
            activation_bytes=lambda size: size * 24_000 * int(_LONGEST_VOICE_S) * filters * 3,
            keeps_dtype=True,  # recordings and latents come to it as they are
        )
        return {**own, "codec": sound}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if "voice" in asked and "preset" in asked:
            raise InvalidRequest("voice and preset both say who shall speak: leave out one of them")
        voice = asked.get("voice")
        if isinstance(voice, str) and voice in presets(checkpoint):
            raise InvalidRequest(f"voice is a recording; {voice} is a voice beside the model: preset={voice}")
        chosen_file(checkpoint, asked.get("preset"))

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        second, name = _codec(checkpoint), architecture_of(checkpoint)
        model_class = class_of(checkpoint, name)
        from transformers import PocketTTSAudioTokenizerConfig, PocketTTSAudioTokenizerModel

        settings = _settings(checkpoint)
        config = config_of(checkpoint, class_of(checkpoint, name.replace("ForConditionalGeneration", "Config")))
        model = loader.pretrained("backbone", model_class, config, checkpoint.tensors)
        generation_config_of(checkpoint, model)
        own = config_of(second, PocketTTSAudioTokenizerConfig)
        codec = loader.pretrained("codec", PocketTTSAudioTokenizerModel, own, second.tensors)
        if own.latent_dim != config.latent_dim or not codec.decoder:
            raise InvalidRequest(
                f"the codec {second.reference} is none for {checkpoint.reference}: it must have a decoder of latents "
                f"of {config.latent_dim} numbers"
            )
        processor = loader.folder_call(_processor, settings, what="processor")
        known_rate(own.sampling_rate, second.reference)
        return PocketSpeaker(checkpoint, model, codec, processor)


class PocketSpeaker(Speaker):
    """See Generator."""

    longest = 200  # it was made for 50 tokens at once
    packs = True

    def __init__(self, checkpoint: Checkpoint, model: Any, codec: Any, processor: Any) -> None:
        self.modules = {"backbone": model, "flow": model.flow_head, "codec": codec}
        self.sample_rate = codec.config.sampling_rate
        self._checkpoint = checkpoint
        self._processor = processor
        self._writer = Writer(checkpoint, processor.tokenizer, processor.audio_token)
        self._hears = _hears(checkpoint) and codec.encoder is not None

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        check_marks(asked, ("prompt",), self._processor.placeholder_tokens)
        if "voice" in asked:
            if not self._hears:
                raise InvalidRequest("voice cannot be heard: the codec has no encoder; choose a preset")
            return super().prepare(
                {**asked, "heard": heard(asked["voice"], self.sample_rate, _LONGEST_VOICE_S, "cut it")}
            )
        file = chosen_file(self._checkpoint, asked.get("preset"))
        if file is None:
            return super().prepare(asked)
        return super().prepare({**asked, "latents": read_latents(file, self._voice_size)})

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """The prompt, without and with a voice, as far as it can come to that."""
        turns, is_known = [("user", text)], "latents" in asked or "heard" in asked
        plain = "" if is_known else self._writer.written(turns)
        return plain, self._writer.written(turns, ["user"]) if is_known or self._hears else ""

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        import torch

        parts = {"": Through(lane="backbone"), "flow_head": Through(lane="flow")}
        model = doubled(self.modules["backbone"], bench, parts)
        processor = copy.copy(self._processor)
        through = {"": Through(lane="codec", methods=("encode", "decode"))}
        processor.audio_tokenizer = doubled(self.modules["codec"], bench, through)
        voice: dict[str, Any] = {}
        if "latents" in asked:
            voice = {"audio_prompt_latents": [torch.from_numpy(asked["latents"])]}
        elif "heard" in asked or (said and self._hears):
            samples = asked["heard"] if "heard" in asked else said[0][0]
            voice = {"audio": [samples], "sampling_rate": self.sample_rate}
        elif len(asked["pieces"]) > 1 and not self._hears:
            bench.note("the text is spoken in pieces, each in a voice of its own: choose one (preset)")
        inputs = processor(text=[piece[bool(voice)]], **voice, add_special_tokens=False, return_tensors="pt")
        options = {"num_flow_steps": "steps", "max_new_tokens": "max_tokens"}
        found = model.generate(
            **{name: value.to(bench.device) for name, value in inputs.items()},
            **{name: asked[option] for name, option in options.items() if option in asked},
            return_dict_in_generate=True,
            **drawing(asked),
        )
        return processor.decode(found.audio_latents, found.audio_latents_mask)[0]

    @property
    def _voice_size(self) -> int:
        config = self.modules["backbone"].config
        return int(getattr(config, "audio_prompt_dim", config.latent_dim))


def _processor(folder: str, settings: Mapping[str, Any], *, local_files_only: bool) -> Any:
    from transformers import AutoFeatureExtractor, AutoTokenizer, PocketTTSProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local_files_only)
    extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=local_files_only)
    return PocketTTSProcessor(extractor, tokenizer, None, **settings)


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Of the processor, as far as they are told. Raises UnsupportedCheckpoint."""
    told = json_beside(checkpoint, "processor_config.json")
    try:
        return {name: check(name, told[name]) for name, check in _SETTINGS.items() if told.get(name) is not None}
    except InvalidRequest as error:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: processor_config.json cannot be used: {error}") from error


def _flow(checkpoint: Checkpoint) -> Mapping[str, Any]:
    return section_of(checkpoint.config, "flow_head_config")


def _hears(checkpoint: Checkpoint) -> bool:
    """Whether recordings can be voices: Phonon's voices are latents of a codec that was not published."""
    return architecture_of(checkpoint) == _POCKET


def _codec(checkpoint: Checkpoint) -> Checkpoint:
    return second_checkpoint(
        checkpoint,
        _CODEC,
        classes=("PocketTTSAudioTokenizerModel", "pocket_tts_audio_tokenizer"),
        usual="eustlb/pocket-tts-audio-tokenizer",
    )
