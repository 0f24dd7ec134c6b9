"""Bark: text into semantic tokens, those into coarse and fine ones, and a codec that makes them heard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.paths import below
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado.options import Options, text

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind, json_beside
from ..library.configuring import config_of, divided, is_codebook, number_in, section_of
from ..library.drawing import drawing
from ..library.kinds import About, Bench, Generator, Part
from .arrays import read_npy, read_npz
from .options import DRAWS, speech_options
from .speaking import Speaker, known_rate, known_voice

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

_PROMPTS = {"semantic_prompt": 1, "coarse_prompt": 2, "fine_prompt": 2}
"""The arrays of a voice, with their dimensions."""
_VOICES = "speaker_embeddings"
_LIST = "speaker_embeddings_path.json"
_FILES = (".npz",)
_MAX_TEXT = 256
"""Tokens that the model reads of a text."""
_FRAMES = 14 * 75
"""Of the codec, in the longest piece that Bark makes."""


class BarkKind(AudioKind):
    """See Kind."""

    name = "bark"
    about = About(
        architectures=("BarkModel",),
        tasks=("text-to-speech",),
        oracle="transformers' generate, tiny random checkpoints",
        batching="requests take turns at text, coarse, fine and codec, a step at a time",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `voice`: the name of one beside the model, or an .npz file; `language` chooses the first one of a
        language."""
        language = {"language": text(longest=20)} if _voices(checkpoint) else {}
        return speech_options("a Bark speech model", DRAWS, {"voice": _voice_option}, language, files={"voice": _FILES})

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        return {"voices": len(_voices(checkpoint))}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""

        config = checkpoint.config

        def transformer(name: str) -> Any:
            own = section_of(config, f"{name}_config")
            hidden, block = number_in(own, "hidden_size", 768), number_in(own, "block_size", 1024)
            logits = number_in(own, "output_vocab_size", 10_048)
            return lambda size: size * block * (hidden * 10 + logits)

        hop, filters = 320, number_in(section_of(config, "codec_config"), "num_filters", 32)
        return divided(
            checkpoint,
            "text",
            {"coarse": ("coarse_acoustics.",), "fine": ("fine_acoustics.",), "codec": ("codec_model.",)},
            {
                "text": transformer("semantic"),
                "coarse": transformer("coarse_acoustics"),
                "fine": transformer("fine_acoustics"),
                "codec": lambda size: size * _FRAMES * hop * filters * 4,
            },
            stays=lambda name: is_codebook(name) or name.endswith(".attn.bias"),
        )

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        _chosen(checkpoint, asked)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        from transformers import AutoTokenizer, BarkConfig, BarkModel

        model = loader.pretrained("text", BarkModel, config_of(checkpoint, BarkConfig), checkpoint.tensors)
        model.generation_config = _generation_settings(checkpoint)
        tokenizer = loader.folder_call(AutoTokenizer.from_pretrained, what="tokenizer")
        return BarkSpeaker(checkpoint, model, tokenizer)


class BarkSpeaker(Speaker):
    """See Generator."""

    longest = 200  # about as much as fits into the 14 seconds that it makes at once
    packs = True

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any) -> None:
        self.modules = {
            "text": model,
            "coarse": model.coarse_acoustics,
            "fine": model.fine_acoustics,
            "codec": model.codec_model,
        }
        self.sample_rate = known_rate(model.generation_config.sample_rate, checkpoint.reference)
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        voice = _chosen(self._checkpoint, asked)
        return super().prepare({**asked, "history": None if voice is None else _arrays(self._checkpoint, voice)})

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """Token numbers and their mask, as BarkProcessor makes them."""
        found = self._tokenizer(
            text,
            return_tensors="pt",
            padding="max_length",
            max_length=_MAX_TEXT,
            return_attention_mask=True,
            return_token_type_ids=False,
            add_special_tokens=False,
        )
        if found["input_ids"].shape[1] > _MAX_TEXT:
            raise InvalidRequest(
                f"a sentence has {found['input_ids'].shape[1]} tokens, and Bark reads {_MAX_TEXT}: shorten it"
            )
        return dict(found)

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        import torch

        parts = {
            "semantic": Through(lane="text"),
            "coarse_acoustics": Through(lane="coarse"),
            "fine_acoustics": Through(lane="fine"),
            "codec_model.quantizer": Through(lane="codec", methods=("decode",)),
            "codec_model.decoder": Through(lane="codec"),
        }
        model = doubled(self.modules["text"], bench, parts)
        history = asked["history"]
        if history is None and len(asked["pieces"]) > 1:
            bench.note("the text is spoken in pieces, each in a voice of its own: choose one (voice)")
        given = {name: torch.from_numpy(array).to(bench.device) for name, array in (history or {}).items()}
        return model.generate(
            **{name: value.to(bench.device) for name, value in piece.items()},
            **({"history_prompt": given} if given else {}),
            **_settings(asked),
        )


def _settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{stage}_{name}": value for stage in ("semantic", "coarse") for name, value in drawing(asked).items()}
    if asked.get("temperature") == 0:
        found["fine_temperature"] = None  # the likeliest ones there, too
    if "max_tokens" in asked:
        found["semantic_max_new_tokens"] = asked["max_tokens"]
    return found


def _generation_settings(checkpoint: Checkpoint) -> SimpleNamespace:
    """What Bark asks of its generation configuration. transformers' class for it cannot be read from a file (5.23)."""
    values = json_beside(checkpoint, "generation_config.json")
    found = {}
    for stage in ("semantic_config", "coarse_acoustics_config", "fine_acoustics_config"):
        own = values.get(stage)
        found[stage] = {key: value for key, value in own.items() if value is not None} if isinstance(own, dict) else {}
    return SimpleNamespace(
        **found,
        sample_rate=number_in(values, "sample_rate", 24_000),
        codebook_size=number_in(values, "codebook_size", 1024),
    )


def _voice_option(name: str, value: Any) -> str | Path:
    """See kamado.options.Check."""
    if isinstance(value, Path) or (isinstance(value, str) and value.lower().endswith(_FILES)):
        path = Path(value)
        if path.suffix.lower() not in _FILES or not path.is_file():
            raise InvalidRequest(f"{name}: there is no .npz file {path}")
        return path
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise InvalidRequest(f"{name} must be the name of a voice or an .npz file, not {value!r:.80}")
    return value


def _voices(checkpoint: Checkpoint) -> Mapping[str, Mapping[str, str] | str]:
    """The voices beside a model: files by array, or one file of all three; relative to the model."""
    found: dict[str, Mapping[str, str] | str] = {}
    for name, files in json_beside(checkpoint, _LIST).items():
        if isinstance(files, dict) and all(isinstance(files.get(each), str) for each in _PROMPTS):
            found[name] = {each: files[each] for each in _PROMPTS}
    for file in checkpoint.files:
        if file.startswith(f"{_VOICES}/") and file.endswith(".npz"):
            found.setdefault(file[len(_VOICES) + 1 : -len(".npz")], file)
    return found


def _chosen(checkpoint: Checkpoint, asked: Mapping[str, Any]) -> str | Path | None:
    voice, language = asked.get("voice"), asked.get("language")
    names = sorted(_voices(checkpoint))
    if isinstance(voice, str):
        if not names:
            raise InvalidRequest(f"no voices lie beside {checkpoint.reference}: give an .npz file")
        known_voice(voice, names, checkpoint.reference)
    if language is None:
        return voice
    speakers = [name for name in names if name.rpartition("/")[2].startswith(f"{language}_")]
    if not speakers:
        spoken = sorted({name.rpartition("/")[2].partition("_")[0] for name in names})
        raise InvalidRequest(
            f"{checkpoint.reference} has no voice that speaks {language!r}; it has {', '.join(spoken)}"
        )
    if voice is not None and voice not in speakers:
        raise InvalidRequest(f"the voice {voice} does not speak {language!r}: leave out one of both")
    return voice or speakers[0]


def _arrays(checkpoint: Checkpoint, voice: str | Path) -> dict[str, Any]:
    """The arrays of a voice. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    try:
        files = voice if isinstance(voice, Path) else _voices(checkpoint)[voice]
        if isinstance(files, (str, Path)):
            path = files if isinstance(files, Path) else below(checkpoint.root, files)
            found = read_npz(path, _PROMPTS)
        else:
            found = {name: read_npy(below(checkpoint.root, file)) for name, file in files.items()}
    except (OSError, ValueError, KeyError, EOFError, KamadoError) as error:
        if isinstance(error, (UnsafeCheckpoint, UnsupportedCheckpoint)):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InvalidRequest(f"the voice {voice} cannot be read: {reason}") from error
    for name, dimensions in _PROMPTS.items():
        array = found[name]
        if array.ndim != dimensions or array.dtype.kind not in "iu" or not array.size:
            raise InvalidRequest(f"the voice {voice} is none: {name} is {list(array.shape)} of {array.dtype}")
        found[name] = array.astype("int64")
    return found
