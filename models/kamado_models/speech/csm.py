"""CSM: a conversation as codes of Mimi, a backbone for the first code of a frame and a depth decoder for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import GenerationFailed
from kamado.options import Options, whole

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind, json_beside
from ..library.configuring import config_of, divided, generation_config_of, is_codebook, number_in
from ..library.drawing import StepCounter, drawing
from ..library.kinds import About, Bench, Generator, Part
from .cloning import CLONING, CloningSpeaker, Said, check_cloning
from .options import DRAWS, speech_options
from .speaking import known_rate

if TYPE_CHECKING:
    from ..library.loading import Loader

_PREFIX = "depth_decoder_"


class CsmKind(AudioKind):
    """See Kind."""

    name = "csm"
    about = About(
        architectures=("CsmForConditionalGeneration",),
        tasks=("text-to-speech",),
        oracle="transformers' generate, tiny random checkpoints",
        batching="requests take turns at backbone, depth decoder and codec, a step at a time",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `speaker`: who of the conversation speaks, from 0."""
        speaker = {"speaker": whole(0, 99)}
        return speech_options("a CSM speech model", DRAWS, CLONING, speaker, inputs={"voice": "audio"})

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        hidden, layers = number_in(config, "hidden_size", 2048), number_in(config, "num_hidden_layers", 16)
        positions = number_in(config, "max_position_embeddings", 2048)
        books, words = number_in(config, "num_codebooks", 32), number_in(config, "vocab_size", 2051)
        return divided(
            checkpoint,
            "backbone",
            {"depth": ("depth_decoder.",), "codec": ("codec_model.",)},
            {
                "backbone": lambda size: size * positions * hidden * (layers + 8),
                "depth": lambda size: size * books * (hidden * 16 + words),
                "codec": lambda size: size * 24_000 * 20 * 64 * 3,
            },
            stays=is_codebook,
        )

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        check_cloning(asked)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from transformers import (
            AutoFeatureExtractor,
            AutoTokenizer,
            CsmConfig,
            CsmForConditionalGeneration,
            CsmProcessor,
        )

        config = config_of(checkpoint, CsmConfig)
        model = loader.pretrained("backbone", CsmForConditionalGeneration, config, checkpoint.tensors)
        generation_config_of(checkpoint, model)
        _share_settings(checkpoint, model)
        extractor = loader.folder_call(AutoFeatureExtractor.from_pretrained, what="feature extractor")
        tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer")
        # Of its parts: `from_pretrained` would also load a model that the processor's configuration may name.
        return CsmSpeaker(checkpoint.reference, model, CsmProcessor(extractor, tokenizer))


class CsmSpeaker(CloningSpeaker):
    """See Generator."""

    def __init__(self, reference: str, model: Any, processor: Any) -> None:
        self.modules = {"backbone": model, "depth": model.depth_decoder, "codec": model.codec_model}
        self.sample_rate = known_rate(processor.feature_extractor.sampling_rate, reference)
        self.longest_voice_s = model.config.max_position_embeddings / model.codec_model.config.frame_rate / 2
        self._processor = processor

    def go_on(self, bench: Bench, text: str, before: Said | None, asked: Mapping[str, Any]) -> Any:
        """See CloningSpeaker."""
        parts = {
            "backbone_model": Through(lane="backbone"),
            "depth_decoder": Through(lane="depth"),
            "codec_model": Through(lane="codec", methods=("encode", "decode")),
        }
        model = doubled(self.modules["backbone"], bench, parts)
        inputs = self._inputs(text, before, asked.get("speaker", 0))
        self.check_length(inputs["input_ids"].shape[1], model.config.max_position_embeddings)
        most = asked.get("max_tokens")
        chosen = drawing(asked)
        sound = model.generate(
            **{name: self._placed(value, bench) for name, value in inputs.items()},
            output_audio=True,
            streamer=StepCounter(bench, most or model.generation_config.max_new_tokens or 0),
            **({"max_new_tokens": most} if most else {}),
            **chosen,
            **{_PREFIX + name: value for name, value in chosen.items()},
        )
        if not sound[0].numel():
            raise GenerationFailed("the model made no sound; take another seed, or other text")
        return sound[0]

    def _inputs(self, text: str, before: Said | None, speaker: int) -> Mapping[str, Any]:
        """What the processor makes of the text, behind what was said before."""
        processor = self._processor
        begin, end = processor.tokenizer.bos_token or "", processor.tokenizer.eos_token or ""
        # As the published chat template has it.
        whole, given = f"{begin}[{speaker}]{text}{end}", {}
        if before is not None:
            heard = f"{processor.audio_token}{processor.audio_eos_token}"
            whole, given = f"{begin}[{speaker}]{before.text}{end}{heard}{whole}", {"audio": [before.samples]}
        return processor(text=whole, **given, add_special_tokens=False, return_tensors="pt")  # type: ignore[no-any-return]

    def _placed(self, value: Any, bench: Bench) -> Any:
        return value.to(bench.device, bench.dtype) if value.is_floating_point() else value.to(bench.device)


def _share_settings(checkpoint: Checkpoint, model: Any) -> None:
    """The depth decoder's settings lie with the model's, under names that transformers' class for them drops (5.23)."""
    values = json_beside(checkpoint, "generation_config.json")
    own = {name[len(_PREFIX) :]: value for name, value in values.items() if name.startswith(_PREFIX)}
    model.depth_decoder.generation_config.update(
        **{name: value for name, value in own.items() if not name.startswith("_") and value is not None}
    )
