"""HiggsAudio v2: a language model that goes on in codes of a codec, which is a checkpoint of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.options import Options, text

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind
from ..library.configuring import class_of, config_of, generation_config_of, is_codebook, number_in, section_of
from ..library.drawing import StepCounter, drawing
from ..library.kinds import About, Bench, Generator, Part, with_prefix
from ..library.second import second_checkpoint
from .cloning import CLONING, CloningSpeaker, Said, check_cloning
from .options import DRAWS, speech_options
from .speaking import known_rate
from .templates import check_marks

if TYPE_CHECKING:
    from ..library.loading import Loader

_CODEC = "audio_tokenizer"
"""As transformers calls it."""
_FRAMES = 1000
"""Of the longest piece, 40 s, unless told otherwise."""
_POSITIONS = 3 * _FRAMES
"""Of a usual call: a recording and what is said after it."""
_LONGEST_VOICE_S = 60.0
_SYSTEM = "Generate audio following instruction."
"""What the model was trained with."""
_MOST_WEIGHTS = 1 << 22
"""Of the filter between two sample rates."""
_USED = ("model.", "audio_lm_head.")
"""Published files have heads for text beside these, and the same head under a second name."""


class HiggsKind(AudioKind):
    """See Kind."""

    name = "higgs_audio_v2"
    about = About(
        architectures=("HiggsAudioV2ForConditionalGeneration",),
        tasks=("text-to-speech",),
        oracle="transformers' generate and processor, tiny random checkpoints",
        batching="requests take turns at backbone and codec, a step at a time",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `scene`: where it is spoken, and by whom, in words."""
        scene = {"scene": text(longest=5000)}
        return speech_options("a HiggsAudio speech model", DRAWS, CLONING, scene, inputs={"voice": "audio"})

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        return {"codebooks": number_in(checkpoint.config, "num_codebooks", 8)}

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it takes from other checkpoints."""
        return (_CODEC,)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        hidden, inner = number_in(config, "hidden_size", 3072), number_in(config, "intermediate_size", 8192)
        cached = number_in(config, "num_key_value_heads", 8) * number_in(config, "head_dim", 128)
        cached *= 2 * number_in(config, "num_hidden_layers", 28)
        positions = min(number_in(config, "max_position_embeddings", 2048), _POSITIONS)
        codec = _codec(checkpoint)
        acoustic = section_of(codec.config, "acoustic_model_config")
        wide = number_in(acoustic, "decoder_hidden_size", 1024)
        # Of its last stages: a sixteenth of the channels, all samples. Of the encoder's first: all that it has.
        made = _FRAMES * 960 * max(wide // 16, 1) * 3
        given = int(_LONGEST_VOICE_S) * 24_000 * number_in(acoustic, "encoder_hidden_size", 64) * 5  # measured
        return {
            "backbone": Part(
                tensors=with_prefix(checkpoint, *_USED),
                activation_bytes=lambda size: size * positions * (hidden * 6 + inner * 2 + cached),
            ),
            "codec": Part(
                tensors=codec.tensors,
                activation_bytes=lambda size: size * max(made, given),
                keeps_dtype=True,  # recordings come to it as they are
                stays=is_codebook,
            ),
        }

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        check_cloning(asked)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        model_class = class_of(checkpoint, "HiggsAudioV2ForConditionalGeneration")
        from transformers import (
            AutoTokenizer,
            DacFeatureExtractor,
            HiggsAudioV2Config,
            HiggsAudioV2Processor,
            HiggsAudioV2TokenizerConfig,
        )

        from .higgs_codec import HiggsCodec

        second = _codec(checkpoint)
        config, own = config_of(checkpoint, HiggsAudioV2Config), config_of(second, HiggsAudioV2TokenizerConfig)
        model = loader.pretrained("backbone", model_class, config, with_prefix(checkpoint, *_USED))
        generation_config_of(checkpoint, model)
        rate = known_rate(own.sample_rate, second.reference)
        _check_resampling(rate, known_rate(own.semantic_sample_rate, second.reference), second.reference)
        codec = loader.pretrained("codec", HiggsCodec, own, second.tensors)
        if own.num_quantizers != config.num_codebooks:
            raise InvalidRequest(
                f"the codec {second.reference} has {own.num_quantizers} codebooks, and {checkpoint.reference} speaks "
                f"in {config.num_codebooks}"
            )
        tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer")
        extractor = DacFeatureExtractor(sampling_rate=rate, hop_length=1)
        processor = HiggsAudioV2Processor(
            extractor,
            tokenizer,
            None,  # each answer has a double of it
            audio_stream_bos_id=config.audio_stream_bos_id,
            audio_stream_eos_id=config.audio_stream_eos_id,
        )
        return HiggsSpeaker(model, codec, processor, rate)


class HiggsSpeaker(CloningSpeaker):
    """See Generator."""

    def __init__(self, model: Any, codec: Any, processor: Any, rate: int) -> None:
        self.modules = {"backbone": model, "codec": codec}
        self.sample_rate = rate
        room = model.config.max_position_embeddings / codec.config.frame_rate / 2
        self.longest_voice_s = min(room, _LONGEST_VOICE_S)
        self._processor = processor

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        check_marks(asked, ("prompt", "voice_text", "scene"), (self._processor.audio_token,))
        return super().prepare(asked)

    def go_on(self, bench: Bench, text: str, before: Said | None, asked: Mapping[str, Any]) -> Any:
        """See CloningSpeaker."""
        model = doubled(self.modules["backbone"], bench, {"": Through(lane="backbone")})
        processor = copy.copy(self._processor)
        parts = {"": Through(lane="codec", methods=("encode", "decode"))}
        processor.audio_tokenizer = doubled(self.modules["codec"], bench, parts)
        given = {} if before is None else {"audio": [before.samples], "sampling_rate": self.sample_rate}
        whole = self._written(text, before, asked.get("scene"))
        inputs = processor(text=whole, **given, add_special_tokens=False, return_tensors="pt")
        self.check_length(inputs["input_ids"].shape[1], model.config.max_position_embeddings)
        most = asked.get("max_tokens") or model.generation_config.max_new_tokens or _FRAMES
        codes = model.generate(
            **{name: value.to(bench.device) for name, value in inputs.items()},
            max_new_tokens=most,
            streamer=StepCounter(bench, most),
            **drawing(asked),
        )
        self._check_frames(codes, inputs)
        return processor.batch_decode(codes)[0].reshape(-1)

    def _check_frames(self, codes: Any, inputs: Mapping[str, Any]) -> None:
        """Raise GenerationFailed where no frame is whole: the books of one are told one step after the other."""
        config = self.modules["backbone"].config
        given = inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0
        is_end = (codes[0, given:] == config.audio_stream_eos_id).all(-1).tolist()
        steps = is_end.index(True) if True in is_end else len(is_end)
        if steps <= config.num_codebooks:  # the first step tells nothing
            raise GenerationFailed("the model made no sound; take another seed, other text or more max_tokens")

    def _written(self, text: str, before: Said | None, scene: str | None) -> str:
        """As the published chat template has it."""
        processor = self._processor
        system = _SYSTEM if scene is None else f"{_SYSTEM}\n\n<|scene_desc_start|>\n{scene.strip()}\n<|scene_desc_end|>"
        heard = ""
        if before is not None:
            sound = f"{processor.audio_bos_token}{processor.audio_token}{processor.audio_eos_token}"
            heard = _turn("user", before.text) + _turn("assistant", sound)
        begin = processor.tokenizer.bos_token or ""
        turns = f"{begin}{_turn('system', system)}{heard}{_turn('user', text)}"
        return f"{turns}{_header('assistant')}{processor.audio_bos_token}"


def _check_resampling(rate: int, new_rate: int, reference: str) -> None:
    """Raise UnsupportedCheckpoint where a filter from one rate (Hz) to the other would be large."""
    common = math.gcd(rate, new_rate)
    if (rate // common) * (new_rate // common) > _MOST_WEIGHTS:
        raise UnsupportedCheckpoint(
            f"{reference}: its sample rates {rate} and {new_rate} Hz have no usable ratio; take the codec that the "
            "model was trained with"
        )


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _turn(role: str, text: str) -> str:
    return f"{_header(role)}{text}<|eot_id|>"


def _codec(checkpoint: Checkpoint) -> Checkpoint:
    return second_checkpoint(
        checkpoint,
        _CODEC,
        classes=("HiggsAudioV2TokenizerModel", "higgs_audio_v2_tokenizer"),
        usual="bosonai/higgs-audio-v2-tokenizer",
    )
