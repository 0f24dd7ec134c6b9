"""Causal language models whose tokens are events of music: what they write becomes notes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from kamado.checkpoint.types import Checkpoint
from kamado.errors import ContextOverflow, InvalidRequest, UnsupportedCheckpoint
from kamado.options import Options, anything, number, text, whole
from kamado.outputs import Output, Score

from ..library.assembly import Through, doubled
from ..library.audio_kind import AudioKind
from ..library.configuring import generation_config_of, number_in
from ..library.drawing import StepCounter, drawing
from ..library.kinds import About, Bench, Generator, Part, architecture_of
from .events import USUAL_TEMPOS, Grid, event_of, ids_of, is_music, score_of
from .writing import Writer, Written

if TYPE_CHECKING:
    from ..library.loading import Loader

_USUAL_TOKENS = 512
_MAX_FILE_BYTES = 8 << 20
"""Of the file of a vocabulary of music: those of words are larger, and are not read."""
_FILES = ("tokenizer.json", "vocab.json")
_HINTS = (b"Pitch_60", b"NoteOn_60", b"NOTE_ON_60", b"NOTE_ON=60", b"Note-On_60", b"note_on_60", b"Note_60")
_ENDINGS = ("ForCausalLM", "LMHeadModel")
_BEGINNINGS = ("BOS_None", "PIECE_START", "<s>", "<bos>", "[BOS]", "<start>", "Bar_None", "Bar")
"""Tokens that a piece begins with, in the order in which they are looked for."""


class SymbolicKind(AudioKind):
    """See Kind."""

    name = "symbolic"
    about = About(
        architectures=("causal language models with events of MIDI as tokens",),
        tasks=("symbolic-music-generation",),
        oracle="transformers' generate, tiny random checkpoints",
        batching="requests take turns, a token at a time",
    )

    def claims(self, checkpoint: Checkpoint) -> bool:
        """See Kind."""
        if checkpoint.layout != "transformers" or not architecture_of(checkpoint).endswith(_ENDINGS):
            return False
        return is_music(vocabulary_of(checkpoint))

    def makes(self, checkpoint: Checkpoint) -> Sequence[str]:
        """See Kind."""
        return ("score",)

    def options(self, checkpoint: Checkpoint) -> Options:
        """See Kind. `prompt`: tokens to go on from, with spaces between; `notes`: notes to go on from."""
        checks = {
            "prompt": text(empty=True),
            "notes": anything,
            "max_tokens": whole(1, 1 << 20),
            "temperature": number(0.0, 10.0),
            "top_k": whole(1, 1 << 20),
            "top_p": number(0.0, 1.0, above=True),
        }
        return Options(
            what="a model that writes notes",
            checks=checks,
            inputs={"notes": "notes"},
            needs=(),
            takes_n=True,
            aliases={"max_new_tokens": "max_tokens", "text": "prompt"},
        )

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See AudioKind."""
        return {"tokens": len(vocabulary_of(checkpoint)), "context": _context(checkpoint)}

    def parts(self, checkpoint: Checkpoint) -> Mapping[str, Part]:
        """See Kind."""
        config = checkpoint.config
        hidden = number_in(config, "hidden_size", number_in(config, "n_embd", 768))
        layers = number_in(config, "num_hidden_layers", number_in(config, "n_layer", 12))
        positions = min(_context(checkpoint), 4096)
        cache = positions * layers * hidden * 2
        return {
            "model": Part(
                tensors=checkpoint.tensors, activation_bytes=lambda size: size * (cache + positions * hidden * 8)
            )
        }

    def sample_request(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """See Kind. No vocabulary knows a sentence's words."""
        return {"prompt": ""}

    def check(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """See Kind."""
        vocabulary = vocabulary_of(checkpoint)
        if "notes" in asked:
            if asked.get("prompt", "").strip():
                raise InvalidRequest("give a prompt of tokens or notes, not both")
            if not Writer(vocabulary, Grid.of(vocabulary)).can_write:
                raise InvalidRequest(f"the tokens of {checkpoint.reference} do not tell when notes are; give a prompt")
        for token in asked.get("prompt", "").split():
            if token not in vocabulary:
                some = ", ".join(list(vocabulary)[:6])
                raise InvalidRequest(f"{token!r:.60} is no token of {checkpoint.reference}; it has {some}, ...")
        given = max(len(asked.get("prompt", "").split()), 1)
        if given >= _context(checkpoint):
            raise _overflow(f"the prompt has {given} tokens", given, checkpoint)

    def build(self, checkpoint: Checkpoint, loader: Loader) -> Generator:
        """See Kind."""
        import transformers

        model_class = getattr(transformers, architecture_of(checkpoint), None)
        if model_class is None:
            raise UnsupportedCheckpoint(
                f"{checkpoint.reference}: transformers has no {architecture_of(checkpoint)}, which its config names"
            )
        config = loader.folder_call(transformers.AutoConfig.from_pretrained, what="configuration")
        model = loader.pretrained("model", model_class, config, checkpoint.tensors)
        generation_config_of(checkpoint, model)
        return Composer(checkpoint, model)


class Composer:
    """See Generator."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.modules: Mapping[str, Any] = {"model": model}
        self._checkpoint = checkpoint
        self._vocabulary = vocabulary_of(checkpoint)
        self._tokens = ids_of(self._vocabulary)
        self._grid = Grid.of(self._vocabulary)
        self._writer = Writer(self._vocabulary, self._grid)
        self._context = _context(checkpoint)

    def prepare(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """See Generator."""
        if "notes" in asked:
            asked = {**asked, **self._told(asked["notes"])}
        else:
            given = [self._vocabulary[token] for token in asked.get("prompt", "").split()] or [self._beginning() or 0]
            asked = {**asked, "given": given}
        room = self._context - len(asked["given"])
        return {**asked, "new": min(asked.get("max_tokens", _USUAL_TOKENS), room)}

    def _told(self, notes: Score) -> dict[str, Any]:
        """Notes as tokens, behind the one that a piece begins with, if that is no music itself."""
        written = self._writer.written(notes)
        total, told = len(notes.notes), len(notes.notes) - written.left_out
        if not told:
            raise InvalidRequest(f"{self._checkpoint.reference} has tokens for none of the {total} notes")
        begin = self._beginning()
        head = [] if begin is None or event_of(self._tokens[begin]) is not None else [begin]
        tokens = islice(written.tokens, self._context) if told < self._context else ()
        given = head + [self._vocabulary[token] for token in tokens]
        if told >= self._context or len(given) >= self._context:
            raise _overflow(f"the {total} notes take {self._context} tokens or more", self._context, self._checkpoint)
        return {"given": given, "tempos": written.tempos, "said": tuple(_said(written, total))}

    def generate(self, bench: Bench, asked: Mapping[str, Any]) -> Output:
        """See Generator."""
        import torch

        model = doubled(self.modules["model"], bench, {"": Through(lane="model")})
        given = torch.tensor([asked["given"]], device=bench.device)
        written = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=asked["new"],
            max_length=None,  # `generate` warns of two limits
            stopping_criteria=[StepCounter(bench, asked["new"])],
            **({"do_sample": True} | drawing(asked)),
        )[0].tolist()
        if asked.get("max_tokens", 0) > asked["new"]:
            bench.note(f"it ended after {asked['new']} tokens: the model can hold {self._context}")
        for said in asked.get("said", ()):
            bench.note(said)
        tempos = asked.get("tempos", USUAL_TEMPOS)
        # A prompt is music that the model goes on writing, with its tempos; notes are to stay as they are.
        num_fixed = len(asked["given"]) if "tempos" in asked else 0
        return score_of((self._tokens.get(number, "") for number in written), self._grid, tempos, num_fixed)

    def _beginning(self) -> int | None:
        own = self.modules["model"].config.bos_token_id
        if isinstance(own, int) and own in self._tokens:
            return own
        return next((self._vocabulary[token] for token in _BEGINNINGS if token in self._vocabulary), None)


def _said(written: Written, total: int) -> Iterator[str]:
    """What the caller should know of notes that were given."""
    if written.left_out:
        yield f"{written.left_out} of {total} notes are left out: the model has no tokens for them"
    if written.played_by_others:
        yield f"{written.played_by_others} of {total} notes are played by another instrument: the model has not theirs"


def _overflow(given: str, tokens: int, checkpoint: Checkpoint) -> ContextOverflow:
    held = _context(checkpoint)
    reason = f"{given}, and {checkpoint.reference} can hold {held}; give less of it"
    return ContextOverflow(reason, prompt_tokens=tokens, context_tokens=held)


def vocabulary_of(checkpoint: Checkpoint) -> Mapping[str, int]:
    """The tokens of a model whose vocabulary may be one of music, with their numbers; empty where it is surely none.
    Those that MidiTok has joined to longer ones (byte pairs) are not known here."""
    for name in _FILES:
        file = checkpoint.files.get(name)
        try:
            if file is None or file.stat().st_size > _MAX_FILE_BYTES:
                continue
            data = file.read_bytes()
            if not any(hint in data for hint in _HINTS):
                continue
            values = json.loads(data)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict) and (found := _vocabulary_in(values)):
            return found
    return {}


def _vocabulary_in(values: Mapping[str, Any]) -> dict[str, int]:
    """Of a file of tokenizers, of MidiTok without joined tokens, or of plain tokens."""
    model, own = values.get("model"), values.get("_vocab_base")
    if isinstance(model, dict):
        vocabulary = model.get("vocab")
    elif isinstance(own, dict):
        vocabulary = None if values.get("_model") else own
    else:
        vocabulary = values
    if not isinstance(vocabulary, dict):
        return {}
    found = {token: number for token, number in vocabulary.items() if isinstance(number, int)}
    added = values.get("added_tokens")
    for each in added if isinstance(added, list) else ():
        if isinstance(each, dict) and isinstance(each.get("content"), str) and isinstance(each.get("id"), int):
            found.setdefault(each["content"], each["id"])
    return found


def _context(checkpoint: Checkpoint) -> int:
    config = checkpoint.config
    return number_in(config, "max_position_embeddings", number_in(config, "n_positions", 1024))
