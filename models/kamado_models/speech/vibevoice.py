"""VibeVoice: dialogues as latents of a codec that lies in the model, drawn by a diffusion head, one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.memory.shortage import is_shortage
from kamado.options import Options, number, whole

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind
from ..library.configuring import class_of, config_of, divided, generation_config_of, number_in, section_of
from ..library.drawing import StepCounter
from ..library.kinds import About, Bench, Generator, Part
from .cloning import heard
from .options import speech_options
from .sentences import sentences
from .speaking import Speaker, known_rate
from .templates import Writer, check_marks

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

    Turns = list[tuple[str, str]]

_MOST_SPEAKERS = 4
_POSITIONS = 2000
"""Of a usual call: voices, text, and a minute behind them."""
_LONGEST_VOICE_S = 60.0
_LONGEST = 1000
"""Characters of a piece: about a minute."""
_FRAMES = _POSITIONS
"""Of a piece, where settings say nothing else: one of a thousand characters takes some 450."""
_MOST_TIMESTEPS = 100_000
"""That a noise scheduler was trained with: each is in its tables."""
_PREFIXES = {
    "head": ("model.diffusion_head.",),
    "codec": ("model.audio_tower.",),
    "semantic": ("model.semantic_tokenizer_encoder.",),
}
_PARTS = {
    "": Through(lane="backbone"),
    "model.language_model.embed_tokens": Through(lane="backbone"),
    "model.multi_modal_projector": Through(lane="backbone"),
    "model.semantic_connector": Through(lane="backbone"),
    "model.diffusion_head": Through(lane="head"),
    "model.audio_tower": Through(lane="codec", methods=("decode",)),
    "model.semantic_tokenizer_encoder": Through(lane="semantic"),
}
_TURN = re.compile(r"^[ \t]*Speaker[ \t]+(\d{1,3})[ \t]*:[ \t]*", re.MULTILINE)


class VibeVoiceKind(AudioKind):
    """See Kind."""

    name = "vibevoice"
    about = About(
        architectures=("VibeVoiceForConditionalGeneration",),
        tasks=("text-to-speech",),
        oracle="transformers' generate and processor, tiny random checkpoints",
        batching="requests take turns at backbone, head, codec and semantic encoder, a frame at a time",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `voice`: a recording of each speaker, in their order. `steps`: of the head, for each frame;
        `guidance`: how closely it keeps to the text; `max_tokens`: frames of one piece."""
        own = {
            "voice": _recordings,
            "steps": whole(1, 1000),
            "guidance": number(1.0, 100.0),
            "max_tokens": whole(1, 1 << 20),
        }
        return speech_options("a VibeVoice speech model", own, inputs={"voice": "audio"})

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        if not any(name.startswith(_PREFIXES["codec"]) for name in checkpoint.tensors):
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference} is in the layout of VibeVoice's own program; take one that was made for "
                "transformers, like vibevoice/VibeVoice-1.5B-hf"
            )
        text, sound = (section_of(checkpoint.config, name) for name in ("text_config", "audio_config"))
        hidden, inner = number_in(text, "hidden_size", 1536), number_in(text, "intermediate_size", 8960)
        words, filters = number_in(text, "vocab_size", 151_936), number_in(sound, "num_filters", 32)
        voices = 2 * int(_LONGEST_VOICE_S) * 24_000 * filters * 12  # two speak, usually; measured: 12.5 each
        return divided(
            checkpoint,
            "backbone",
            _PREFIXES,
            {
                "backbone": lambda size: size * max(_POSITIONS * (hidden * 40 + inner * 2) + 2 * words, voices),
                "head": lambda size: size * hidden * 32,
                "codec": lambda size: size * 24_000 * 10 * filters * 6,
                "semantic": lambda size: size * 24_000 * filters * 6,
            },
            stays=lambda name: name.endswith(("latent_scaling_factor", "latent_bias_factor")),
        )

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        speakers = sorted({role for role, _ in _turns(asked["prompt"])}, key=int)
        if not speakers:
            raise InvalidRequest('the prompt has no words: a turn is what is said behind "Speaker 1: "')
        if len(speakers) > _MOST_SPEAKERS:
            raise InvalidRequest(f"the prompt has {len(speakers)} speakers; {_MOST_SPEAKERS} are the most")
        voices = len(asked["voice"]) if _are_several(asked.get("voice")) else 1
        if "voice" in asked and voices != len(speakers):
            raise InvalidRequest(
                f"voice has {voices} recordings, and the prompt {len(speakers)} speakers ({', '.join(speakers)}"
                '): give one of each, in that order. Turns begin as "Speaker 1: "'
            )

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        model_class = class_of(checkpoint, "VibeVoiceForConditionalGeneration")
        config = config_of(checkpoint, class_of(checkpoint, "VibeVoiceConfig"))
        model = loader.pretrained("backbone", model_class, config, checkpoint.tensors)
        generation_config_of(checkpoint, model)
        _scheduler(model.generation_config, checkpoint.reference)  # what is wrong with it, is told now
        return VibeVoiceSpeaker(checkpoint, model, loader.folder_call(_processor, what="processor"))


class VibeVoiceSpeaker(Speaker):
    """See Generator. Pieces are turns."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any) -> None:
        self.modules = {
            "backbone": model,
            "head": model.model.diffusion_head,
            "codec": model.model.audio_tower,
            "semantic": model.model.semantic_tokenizer_encoder,
        }
        self.sample_rate = known_rate(processor.feature_extractor.sampling_rate, checkpoint.reference)
        self._reference = checkpoint.reference
        self._processor = processor
        self._writer = Writer(checkpoint, processor.tokenizer, processor.audio_token)

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        check_marks(asked, ("prompt",), (self._processor.audio_token,))
        pieces = _pieces(_turns(asked["prompt"]))
        speakers = sorted({role for turns in pieces for role, _ in turns}, key=int)
        self._check_silence(len(pieces) - 1, asked)
        voices: dict[str, Any] = {}
        if "voice" in asked:
            found = asked["voice"] if isinstance(asked["voice"], tuple) else (asked["voice"],)
            for role, voice in zip(speakers, found, strict=True):
                voices[role] = heard(voice, self.sample_rate, _LONGEST_VOICE_S, "cut it")
        # Without voices, what one speaker said first is the voice of all the rest.
        given = list(voices) if voices or len(speakers) > 1 else speakers
        written = [
            self._writer.written(turns, [role for role in given if role in dict(turns)] if voices or number else ())
            for number, turns in enumerate(pieces)
        ]
        return {**asked, "voices": voices, "speakers": speakers, "pieces": list(zip(pieces, written, strict=True))}

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """See Speaker: `prepare` does it."""
        raise AssertionError

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        (turns, written), voices = piece, asked["voices"]
        if not voices and said and len(asked["speakers"]) == 1:
            voices = {asked["speakers"][0]: said[0][0]}
        elif not voices and len(asked["pieces"]) > 1 and len(asked["speakers"]) > 1:
            bench.note("the text is spoken in pieces, each in voices of its own: give a recording of each (voice)")
        order = dict.fromkeys(role for role, _ in turns if role in voices)
        given = {"audio": [voices[role] for role in order], "sampling_rate": self.sample_rate} if order else {}
        inputs = self._processor(text=[written], **given, add_special_tokens=False, return_tensors="pt")
        model = doubled(self.modules["backbone"], bench, _PARTS)
        settings = model.generation_config
        most = asked.get("max_tokens") or settings.max_new_tokens or _FRAMES
        options = {"guidance_scale": "guidance", "num_diffusion_steps": "steps"}
        found = model.generate(
            **{name: _placed(value, bench) for name, value in inputs.items()},
            **{name: asked[option] for name, option in options.items() if option in asked},
            noise_scheduler=_scheduler(settings, self._reference),
            do_sample=False,  # it chooses the likeliest whatever is asked
            max_new_tokens=most,
            streamer=StepCounter(bench, most),
            return_dict_in_generate=False,
        )
        if found[0] is None:
            raise GenerationFailed("the model made no sound; take another seed, or other text")
        return found[0]


def _processor(folder: str, *, local_files_only: bool) -> Any:
    from transformers import AutoFeatureExtractor, AutoTokenizer, VibeVoiceProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local_files_only)
    return VibeVoiceProcessor(
        AutoFeatureExtractor.from_pretrained(folder, local_files_only=local_files_only), tokenizer
    )


def _scheduler(settings: Any, reference: str) -> Any:
    """A new one of the kind that the settings name. Raises UnsupportedCheckpoint."""
    import diffusers

    name = getattr(settings, "noise_scheduler_class", "DPMSolverMultistepScheduler")
    own = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    chosen = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if not isinstance(chosen, type) or not issubclass(chosen, diffusers.SchedulerMixin):
        raise UnsupportedCheckpoint(f"{reference}: its noise scheduler is {name!r:.80}, which diffusers does not have")
    config = getattr(settings, "noise_scheduler_config", own)
    steps = config.get("num_train_timesteps", 1000) if isinstance(config, Mapping) else None
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_TIMESTEPS:
        raise UnsupportedCheckpoint(
            f"{reference}: its noise scheduler cannot be made: noise_scheduler_config must be an object whose "
            f"num_train_timesteps is from 1 to {_MOST_TIMESTEPS}, not {config!r:.80}"
        )
    try:
        return chosen(**config)
    except Exception as error:  # whatever a class makes of absurd values
        if is_shortage(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UnsupportedCheckpoint(f"{reference}: its noise scheduler cannot be made: {first}") from error


def _placed(value: Any, bench: Bench) -> Any:
    return value.to(bench.device, bench.dtype) if value.is_floating_point() else value.to(bench.device)


def _turns(prompt: str) -> Turns:
    """Who says what: turns begin as `Speaker 1: `; what has no such beginning is said by speaker 0."""
    found, start, role = [], 0, "0"
    for match in _TURN.finditer(prompt):
        found.append((role, prompt[start : match.start()].strip()))
        role, start = str(int(match.group(1))), match.end()
    found.append((role, prompt[start:].strip()))
    return [turn for turn in found if turn[1]]


def _pieces(turns: Turns) -> list[Turns]:
    """Turns, cut by sentences where they are long, that are spoken together."""
    found: list[Turns] = [[]]
    length = 0
    for role, said in turns:
        for sentence in sentences(said, _LONGEST):
            if length + len(sentence) > _LONGEST:
                found.append([])
                length = 0
            length += len(sentence)
            if found[-1] and found[-1][-1][0] == role and len(found[-1][-1][1]) > 0:
                found[-1][-1] = (role, f"{found[-1][-1][1].rstrip()} {sentence.strip()}")
            else:
                found[-1].append((role, sentence.strip()))
    return [each for each in found if each]


def _are_several(value: Any) -> bool:
    """Of recordings: (samples, rate) is one."""
    has_rate = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float))
    return isinstance(value, (list, tuple)) and not has_rate


def _recordings(name: str, value: Any) -> Any:
    """See kamado.options.Check. One recording or several."""
    if _are_several(value) and not 0 < len(value) <= _MOST_SPEAKERS:
        raise InvalidRequest(f"{name} must be 1 to {_MOST_SPEAKERS} recordings, not {len(value)}")
    return value
