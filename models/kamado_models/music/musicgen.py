"""MusicGen and MusicGen Melody: text, and sound that is given, into codes of a codec."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.options import Options, anything, number, text, whole

from ..library.audio_kind import AudioKind
from ..library.configuring import config_of, divided, generation_config_of, is_codebook, number_in, section_of
from ..library.kinds import About, Generator, Part

if TYPE_CHECKING:
    from ..library.loading import Loader

_MELODY = "MusicgenMelodyForConditionalGeneration"
_USUAL_S = 10.0
"""How long a piece is unless told otherwise."""
_TEXT = 64
"""Tokens of a usual description."""
_WIDEST = 1e6
"""Thousands of bits a second, of any codec."""


class MusicgenKind(AudioKind):
    """See Kind."""

    name = "musicgen"
    about = About(
        architectures=("MusicgenForConditionalGeneration", _MELODY),
        tasks=("text-to-audio",),
        oracle="transformers' generate, tiny random checkpoints",
        batching="requests take turns at text encoder, decoder steps and codec",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `seconds`: how long what is made is; `guidance`: how closely it keeps to the prompt, 1: not more
        than it was trained to; `audio`: what it goes on from; `melody`: whose notes it takes; `notes`: either,
        as notes, which become sound first."""
        checks = {
            "prompt": text(empty=True, longest=20_000),
            "seconds": number(0.0, 3600.0, above=True),
            "guidance": number(1.0, 100.0),
            "temperature": number(0.0, 10.0),
            "top_k": whole(1, 1 << 20),
            "top_p": number(0.0, 1.0, above=True),
            "audio": _given,
            "notes": anything,
        }
        inputs = {"audio": "audio", "notes": "notes"}
        if _is_melody(checkpoint):
            checks["melody"], inputs["melody"] = _given, "audio"
            del checks["audio"], inputs["audio"]
        return Options(
            what="a MusicGen model",
            checks=checks,
            inputs=inputs,  # type: ignore[arg-type]  # they are media
            needs=(),
            takes_n=True,
            aliases={"guidance_scale": "guidance", "duration": "seconds", "text": "prompt"},
        )

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        return {
            "sample_rate": number_in(section_of(checkpoint.config, "audio_encoder"), "sampling_rate", 32_000),
            "channels": number_in(section_of(checkpoint.config, "decoder"), "audio_channels", 1),
            "longest_s": round(longest_s(checkpoint.config), 2),
        }

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        decoder, encoder = section_of(checkpoint.config, "decoder"), section_of(checkpoint.config, "text_encoder")
        codec = section_of(checkpoint.config, "audio_encoder")
        hidden, inner = number_in(decoder, "hidden_size", 1024), number_in(decoder, "ffn_dim", 4096)
        layers, books = number_in(decoder, "num_hidden_layers", 24), number_in(decoder, "num_codebooks", 4)
        wanted, there, _ = _codebooks(checkpoint)
        if there < wanted:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: its decoder writes {wanted} codebooks, and its codec has {there}, so nothing "
                "can be heard; take the codec that it was trained with"
            )
        frames = int(_USUAL_S * frame_rate(codec))
        logits = books * number_in(decoder, "vocab_size", 2048)
        wide = max(number_in(encoder, "d_ff", 3072), number_in(encoder, "d_model", 768)) * 4
        samples = int(_USUAL_S * number_in(codec, "sampling_rate", 32_000))
        return divided(
            checkpoint,
            "decoder",
            {"text_encoder": ("text_encoder.",), "codec": ("audio_encoder.",)},
            {
                # Two rows, with guidance: keys and values of all steps, and what one step computes.
                "decoder": lambda size: size * 2 * (layers * 2 * hidden * (frames + _TEXT) + inner + logits),
                "text_encoder": lambda size: size * _TEXT * wide,
                "codec": lambda size: size * samples * number_in(codec, "num_filters", 64) * 4,
            },
            stays=is_codebook,
        )

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        longest = longest_s(checkpoint.config)
        if asked.get("seconds", 0.0) > longest:
            raise InvalidRequest(
                f"{checkpoint.reference} makes at most {longest:.4g} seconds at once, not {asked['seconds']:.6g}; "
                "go on from what it made (audio)"
            )
        wanted, _, heard = _codebooks(checkpoint)
        if "audio" in asked and heard != wanted:
            raise InvalidRequest(
                f"audio cannot be used: the codec of {checkpoint.reference} hears it as {heard} codebooks, and its "
                f"decoder reads {wanted}"
            )
        if sounds := [name for name in ("audio", "melody") if name in asked and "notes" in asked]:
            raise InvalidRequest(f"give notes or {sounds[0]}, not both: notes become {sounds[0]}")
        if _is_melody(checkpoint) and not asked.get("prompt", "").strip():
            raise InvalidRequest("a melody is set to music as a prompt says; give one")
        if not asked.get("prompt", "").strip() and asked.get("guidance", 1.0) != 1.0:
            raise InvalidRequest("guidance is towards a prompt; give one, or leave guidance out")

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        import transformers
        from transformers import AutoTokenizer

        from .musicgen_maker import MusicgenMaker

        melody = _is_melody(checkpoint)
        model_class = getattr(transformers, _MELODY if melody else "MusicgenForConditionalGeneration")
        config_class = transformers.MusicgenMelodyConfig if melody else transformers.MusicgenConfig
        model = loader.pretrained("decoder", model_class, config_of(checkpoint, config_class), checkpoint.tensors)
        generation_config_of(checkpoint, model)
        tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer")
        return MusicgenMaker(checkpoint, model, tokenizer, usual_s=min(_USUAL_S, longest_s(checkpoint.config)))


def frame_rate(codec: Mapping[str, Any]) -> int:
    """Frames a second of a codec of this configuration (EnCodec)."""
    ratios = codec.get("upsampling_ratios")
    hop = math.prod(each for each in ratios if isinstance(each, int)) if isinstance(ratios, list) else 640
    return math.ceil(number_in(codec, "sampling_rate", 32_000) / max(hop, 1))


def _codebooks(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Of each channel: how many codebooks the decoder knows, how many the codec (EnCodec) has, and how many it makes of
    a sound, as transformers counts them. Of other codecs the same. Raises UnsupportedCheckpoint."""
    config = checkpoint.config
    decoder, codec = section_of(config, "decoder"), section_of(config, "audio_encoder")
    wanted = number_in(decoder, "num_codebooks", 4) // number_in(decoder, "audio_channels", 1)
    widths = codec.get("target_bandwidths")
    if codec.get("model_type") != "encodec" or not isinstance(widths, list) or not widths:
        return wanted, wanted, wanted
    first, most = widths[0], widths[-1]
    for each in (first, most):
        if not isinstance(each, (int, float)) or not 0 < each <= _WIDEST:  # so that it is no NaN, either
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: its codec has a target_bandwidths of {each!r:.40}; they are numbers above 0, "
                f"{_WIDEST:g} at most"
            )
    rate, size = frame_rate(codec), max(number_in(codec, "codebook_size", 1024), 2)
    there = int(most * 1000 // (rate * math.ceil(math.log2(size))))
    return wanted, there, min(max(int(first * 1000 / (math.log2(size) * rate)), 1), there)


def longest_s(config: Mapping[str, Any]) -> float:
    """How many seconds a model makes at once: as many as it has positions for."""
    positions = number_in(section_of(config, "decoder"), "max_position_embeddings", 2048)
    return positions / frame_rate(section_of(config, "audio_encoder"))


def _is_melody(checkpoint: Checkpoint) -> bool:
    return _MELODY in (checkpoint.config.get("architectures") or ())


def _given(name: str, value: Any) -> Any:
    """See kamado.options.Check: one sound."""
    if isinstance(value, list):
        raise InvalidRequest(f"{name} must be one sound, not {len(value)}")
    return value
