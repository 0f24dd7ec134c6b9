"""Dia: dialogue as codes of a Descript audio codec, which is a checkpoint of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest
from kamado.options import Options, number

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind
from ..library.configuring import config_of, divided, generation_config_of, number_in, section_of
from ..library.drawing import StepCounter, drawing
from ..library.kinds import About, Bench, Generator, Part
from ..library.second import second_checkpoint
from .cloning import CLONING, CloningSpeaker, Said, check_cloning
from .options import DRAWS, speech_options
from .speaking import known_rate

if TYPE_CHECKING:
    from ..library.loading import Loader

_CODEC = "audio_tokenizer"
"""As transformers calls it."""
_FRAMES = 3072
"""Of the longest piece."""


class DiaKind(AudioKind):
    """See Kind."""

    name = "dia"
    about = About(
        architectures=("DiaForConditionalGeneration",),
        tasks=("text-to-speech",),
        oracle="transformers' generate and processor, tiny random checkpoints",
        batching="requests take turns at encoder, decoder steps and codec",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `guidance`: how closely it keeps to the text."""
        guidance = {"guidance": number(1.0, 100.0)}
        return speech_options("a Dia speech model", DRAWS, CLONING, guidance, inputs={"voice": "audio"})

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it takes from other checkpoints."""
        return (_CODEC,)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = section_of(checkpoint.config, "decoder_config")
        hidden, layers = number_in(config, "hidden_size", 2048), number_in(config, "num_hidden_layers", 18)
        logits = number_in(config, "vocab_size", 1028) * number_in(config, "num_channels", 9)
        codec = _codec(checkpoint)
        wide = number_in(codec.config, "decoder_hidden_size", 1536)
        own = divided(
            checkpoint,
            "decoder",
            {"encoder": ("model.encoder.",)},
            {
                "encoder": lambda size: size * 1024 * hidden * 8,
                "decoder": lambda size: size * 2 * (_FRAMES * layers * hidden // 2 + hidden * 8 + logits),
            },
        )
        heard = Part(
            tensors=codec.tensors,
            # Of its last stages: a sixteenth of the channels, all samples.
            activation_bytes=lambda size: size * 44_100 * 10 * max(wide // 16, 1) * 3,
            keeps_dtype=True,  # recordings come to it as they are
        )
        return {**own, "codec": heard}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        check_cloning(asked)
        if 0 < asked.get("temperature", 1.0) < 1.0:
            raise InvalidRequest("temperature must be 0, or 1 at least, for Dia, which knows nothing between")

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from transformers import (
            DacConfig,
            DacModel,
            DiaConfig,
            DiaFeatureExtractor,
            DiaForConditionalGeneration,
            DiaTokenizer,
        )

        second = _codec(checkpoint)
        config = config_of(checkpoint, DiaConfig)
        model = loader.pretrained("decoder", DiaForConditionalGeneration, config, checkpoint.tensors)
        generation_config_of(checkpoint, model)
        codec = loader.pretrained("codec", DacModel, config_of(second, DacConfig), second.tensors)
        tokenizer = loader.folder_call(DiaTokenizer.from_pretrained, what="tokenizer")
        extractor = loader.folder_call(DiaFeatureExtractor.from_pretrained, what="feature extractor")
        return DiaSpeaker(checkpoint.reference, model, codec, tokenizer, extractor)


class DiaSpeaker(CloningSpeaker):
    """See Generator."""

    def __init__(self, reference: str, model: Any, codec: Any, tokenizer: Any, extractor: Any) -> None:
        self.modules = {"encoder": model.model.encoder, "decoder": model, "codec": codec}
        self.sample_rate = known_rate(extractor.sampling_rate, reference)
        positions = model.config.decoder_config.max_position_embeddings
        self.longest_voice_s = positions * extractor.hop_length / extractor.sampling_rate / 2
        self._tokenizer = tokenizer
        self._extractor = extractor

    def go_on(self, bench: Bench, text: str, before: Said | None, asked: Mapping[str, Any]) -> Any:
        """See CloningSpeaker."""
        parts = {"model.encoder": Through(lane="encoder"), "model.decoder": Through(lane="decoder")}
        model = doubled(self.modules["decoder"], bench, parts)
        processor = self._processor(bench, model.config)
        whole = _marked(text) if before is None else f"{_marked(before.text)} {_marked(text)}"
        given = {} if before is None else {"audio": before.samples}
        inputs = processor(text=[whole], **given, sampling_rate=self.sample_rate, **_codes(model.config))
        self.check_length(inputs["input_ids"].shape[1], model.config.encoder_config.max_position_embeddings)
        length = processor.get_audio_prompt_len(inputs["decoder_attention_mask"], **_codes(model.config))
        most = asked.get("max_tokens")
        guidance = {"guidance_scale": asked["guidance"]} if "guidance" in asked else {}
        codes = model.generate(
            **{name: value.to(bench.device) for name, value in inputs.items()},
            **({"max_new_tokens": most} if most else {}),
            stopping_criteria=[StepCounter(bench, most or model.generation_config.max_length or _FRAMES)],
            **guidance,
            **drawing(asked),
        )
        prompt = {} if before is None else {"audio_prompt_len": length}
        return processor.batch_decode(codes, **prompt, **_codes(model.config))[0].reshape(-1)

    def _processor(self, bench: Bench, config: Any) -> Any:
        from transformers import DiaProcessor

        codec = doubled(self.modules["codec"], bench, {"": Through(lane="codec", methods=("encode", "decode"))})
        return DiaProcessor(self._extractor, self._tokenizer, codec)


def _codes(config: Any) -> dict[str, Any]:
    """What the processor is told of the codes: its own settings are those of the one published model."""
    decoder = config.decoder_config
    return {
        "eos_token_id": decoder.eos_token_id,
        "pad_token_id": decoder.pad_token_id,
        "bos_token_id": decoder.bos_token_id,
        "delay_pattern": config.delay_pattern,
    }


def _marked(text: str) -> str:
    """Dia's texts begin with who speaks."""
    return text if text.startswith("[S") else f"[S1] {text}"


def _codec(checkpoint: Checkpoint) -> Checkpoint:
    return second_checkpoint(checkpoint, _CODEC, classes=("DacModel", "dac"), usual="descript/dac_44khz")
