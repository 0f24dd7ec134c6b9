"""FastSpeech2 Conformer with a HiFi-GAN: phonemes to sound in one go."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.options import Options, text

from ..library.assembly import doubled
from ..library.audio_kind import AudioKind, json_beside
from ..library.configuring import config_of, number_in, section_of
from ..library.kinds import About, Bench, Generator, Part
from ..library.second import second_checkpoint
from .options import SPEED, speech_options
from .speaking import Speaker, check_durations, known_rate
from .vocoding import check_bins, check_upsampling, hifigan_activation

if TYPE_CHECKING:
    from ..library.loading import Loader
    from ..library.sound import Samples

_WITH_VOCODER = "FastSpeech2ConformerWithHifiGan"
_END = "<sos/eos>"
_SILENT = ("<blank>", "<unk>", " ", _END)
_FRAMES = 1000
"""Of a usual sentence."""
_PLACES = 5000
"""The most phonemes, and frames, of one piece: so many places the library encodes, with attention between all."""


class FastSpeech2Kind(AudioKind):
    """See Kind."""

    name = "fastspeech2"
    about = About(
        architectures=("FastSpeech2ConformerModel", _WITH_VOCODER),
        tasks=("text-to-speech",),
        oracle="transformers' forward with its vocoder, tiny random checkpoints",
        batching="requests take turns at acoustic model and vocoder",
    )

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `phonemes`: in place of a prompt, ARPAbet with spaces between."""
        return speech_options(
            "a FastSpeech2 speech model",
            SPEED,
            {"phonemes": text(longest=100_000)},
            needs=("prompt", "phonemes"),
        )

    def components(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What it takes from other checkpoints."""
        return () if _has_vocoder(checkpoint) else ("vocoder",)

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        tensors, vocoder = checkpoint.tensors, checkpoint.tensors
        config, vocoding = checkpoint.config, checkpoint.config
        if _has_vocoder(checkpoint):
            tensors = {name: entry for name, entry in tensors.items() if not name.startswith("vocoder.")}
            vocoder = {name: entry for name, entry in vocoder.items() if name.startswith("vocoder.")}
            config, vocoding = section_of(config, "model_config"), section_of(config, "vocoder_config")
        else:
            second = _vocoder(checkpoint)
            vocoder, vocoding = second.tensors, second.config
        hidden = number_in(config, "hidden_size", 384)
        return {
            # Its length regulator computes in float32 whatever the rest does.
            "acoustic": Part(
                tensors=tensors,
                activation_bytes=lambda size: size * _FRAMES * (hidden * 16 + _FRAMES * 4),
                keeps_dtype=True,
            ),
            "vocoder": Part(
                tensors=vocoder,
                activation_bytes=lambda size: hifigan_activation(vocoding, _FRAMES, size),
                keeps_dtype=True,
            ),
        }

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        if "prompt" in asked and "phonemes" in asked:
            raise InvalidRequest("give a prompt or phonemes, not both")
        if "prompt" in asked and not _reads_words():
            raise InvalidRequest(
                f"{checkpoint.reference} reads phonemes, for which it needs the package g2p-en and NLTK's data "
                "averaged_perceptron_tagger and cmudict (python -m nltk.downloader, once): install them, or give "
                'phonemes="HH AH0 L OW1"'
            )

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        import transformers

        vocabulary = _vocabulary(checkpoint)
        if _has_vocoder(checkpoint):
            check_upsampling(section_of(checkpoint.config, "vocoder_config"), checkpoint.reference)
            config = config_of(checkpoint, transformers.FastSpeech2ConformerWithHifiGanConfig)
            whole = loader.pretrained(
                "acoustic", transformers.FastSpeech2ConformerWithHifiGan, config, checkpoint.tensors
            )
            check_bins(checkpoint.reference, whole.vocoder, checkpoint.reference, whole.model.config)
            return FastSpeech2Speaker(checkpoint, whole.model, whole.vocoder, vocabulary, {"acoustic": whole}, loader)
        second = _vocoder(checkpoint)
        check_upsampling(second.config, second.reference)
        model = loader.pretrained(
            "acoustic",
            transformers.FastSpeech2ConformerModel,
            config_of(checkpoint, transformers.FastSpeech2ConformerConfig),
            checkpoint.tensors,
        )
        vocoder = loader.pretrained(
            "vocoder",
            transformers.FastSpeech2ConformerHifiGan,
            config_of(second, transformers.FastSpeech2ConformerHifiGanConfig),
            second.tensors,
        )
        check_bins(second.reference, vocoder, checkpoint.reference, model.config)
        return FastSpeech2Speaker(checkpoint, model, vocoder, vocabulary, {"acoustic": model}, loader)


class FastSpeech2Speaker(Speaker):
    """See Generator."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        vocoder: Any,
        vocabulary: Mapping[str, int],
        modules: Mapping[str, Any],
        loader: Loader,
    ) -> None:
        self.modules = {**modules, "vocoder": vocoder}
        self.sample_rate = known_rate(vocoder.config.sampling_rate, checkpoint.reference)
        self._model = model
        self._reference = checkpoint.reference
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        if _reads_words():
            from transformers import FastSpeech2ConformerTokenizer

            self._tokenizer = loader.folder_call(FastSpeech2ConformerTokenizer.from_pretrained, what="tokenizer")

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        if "phonemes" not in asked:
            return super().prepare(asked)
        import torch

        names = [*asked["phonemes"].split(), _END]
        if unknown := next((name for name in names[:-1] if name not in self._vocabulary), None):
            raise self._unknown(unknown)
        tokens = torch.tensor([[self._vocabulary[name] for name in names if name in self._vocabulary]])
        return {**asked, "pieces": [self._speakable(tokens, asked["phonemes"])]}

    def read(self, text: str, asked: Mapping[str, Any]) -> Any:
        """Token numbers (1, tokens)."""
        import torch

        names = self._tokenizer.tokenize(text)
        numbers = self._tokenizer.convert_tokens_to_ids(names)
        if None in numbers:  # of a vocabulary without a number for what is not in it
            raise self._unknown(names[numbers.index(None)])
        return self._speakable(torch.tensor([numbers]), text)

    def _unknown(self, name: str) -> InvalidRequest:
        return InvalidRequest(f"{self._reference} knows no phoneme {name!r:.40}; they are like HH, AH0, OW1")

    def _speakable(self, tokens: Any, text: str) -> Any:
        """The tokens of `text`. Raises InvalidRequest where nothing of them sounds, or they are too many."""
        silent = {self._vocabulary.get(name) for name in _SILENT}
        if all(token in silent for token in tokens[0].tolist()):
            raise InvalidRequest(f"{self._reference} knows no phoneme of {text!r:.80}; is it another language?")
        if tokens.shape[1] > _PLACES:
            raise InvalidRequest(
                f"{tokens.shape[1]} phonemes, with the one that ends them, are too many at once; give {_PLACES - 1} at "
                "most"
            )
        return tokens

    def speak(self, bench: Bench, piece: Any, asked: Mapping[str, Any], said: list[Samples]) -> Any:
        """See Speaker."""
        model = doubled(self._model, bench, {})
        model.config = type(model.config).from_dict(model.config.to_dict())
        stretch = model.config.speaking_speed = model.config.speaking_speed / asked.get("speed", 1.0)
        predicted = model.duration_predictor

        def durations(hidden: Any) -> Any:
            found = predicted(hidden)
            check_durations(found.float() * stretch, _PLACES)
            return found

        model.__dict__["duration_predictor"] = durations  # of the double alone
        spectrogram = bench.run("acoustic", lambda: model(piece.to(bench.device)).spectrogram, piece.shape[1])
        vocoder = self.modules["vocoder"]
        return bench.run("vocoder", lambda: vocoder(spectrogram), spectrogram.shape[1])


def _vocabulary(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Numbers of phonemes. Raises UnsupportedCheckpoint for a file that has others than the model knows."""
    found = json_beside(checkpoint, "vocab.json")
    if not found:
        raise UnsupportedCheckpoint(f"{checkpoint.reference} has no phonemes in a file vocab.json: fetch it again")
    config = section_of(checkpoint.config, "model_config") if _has_vocoder(checkpoint) else checkpoint.config
    size = number_in(config, "vocab_size", 78)
    for name, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < size:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: vocab.json gives {name!r:.40} the number {number!r:.40}; the model has whole "
                f"numbers from 0 to {size - 1}"
            )
    return found


def _has_vocoder(checkpoint: Checkpoint) -> bool:
    return _WITH_VOCODER in (checkpoint.config.get("architectures") or ())


def _vocoder(checkpoint: Checkpoint) -> Checkpoint:
    return second_checkpoint(
        checkpoint,
        "vocoder",
        classes=("FastSpeech2ConformerHifiGan", "hifigan"),
        usual="espnet/fastspeech2_conformer_hifigan",
    )


def _reads_words() -> bool:
    """Whether words can be made into phonemes. g2p-en downloads what it lacks when it is imported, which nothing here
    may do unasked: without that data it is not imported."""
    if not importlib.util.find_spec("g2p_en") or not importlib.util.find_spec("nltk"):
        return False
    data = importlib.import_module("nltk.data")
    try:
        return all(data.find(name) for name in ("taggers/averaged_perceptron_tagger.zip", "corpora/cmudict.zip"))
    except LookupError:
        return False
