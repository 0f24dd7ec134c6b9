"""A checkpoint's own processor: what makes tokens and numbers of a prompt with pictures, sounds and videos.

The classes are transformers' own; the files are data. A copy of the configurations is made for them, without what could
name code, other files or a place on a hub.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from kamado.checkpoint.strict_json import read_json_object
from kamado.checkpoint.types import Checkpoint
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.turns import Item

from ..config import cleaned
from .items import OpenedItem, opened
from .table import WANT_TORCHVISION, senses_of

_CONFIGS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_DATA = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tekken.json")
_DROPPED = re.compile(r"audio_tokenizer|chat_template|.*_name_or_path")
_MAX_CONFIG_BYTES = 64 << 20
_SOUND_RATE = 16000
"""Of processors that do not say."""
_NOT_FOR_MODELS = frozenset(
    {"input_ids", "offset_mapping", "text_replacement_offsets", "labels", "special_tokens_mask", "video_metadata"}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MediaPrompt:
    """A prompt that shows something beside text, as its model takes it."""

    tokens: list[int]
    inputs: Mapping[str, Any] = field(repr=False)
    """Tensors on the CPU, by the names of the model's arguments."""
    contents: tuple[tuple[int, int, bytes], ...]
    """See TokenSequence."""
    digests: Mapping[str, tuple[str, ...]]
    """Of what was shown, by kind: for the recipe."""


class Senses:
    """What a model sees and hears with, up to its encoders. Thread safe."""

    def __init__(self, reference: str, processor: Any, kinds: Sequence[str]) -> None:
        self._reference = reference
        self._processor = processor
        self._lock = threading.Lock()  # tokenizers keep settings of a call
        self.kinds = tuple(kinds)
        feature_extractor = getattr(processor, "feature_extractor", None)
        self._sound_rate = int(getattr(feature_extractor, "sampling_rate", _SOUND_RATE))

    def open(self, items: Sequence[Item]) -> list[OpenedItem]:
        """Open what a request shows. Raises InvalidRequest."""
        for item in items:
            if item.kind not in self.kinds:
                raise InvalidRequest(f"{self._reference} takes {', '.join(self.kinds)} beside text, and no {item.kind}")
        return [opened(item, sound_rate=self._sound_rate) for item in items]

    def marked(self, prompt: str, items: Sequence[OpenedItem]) -> str:
        """A plain prompt behind the marks of what is shown with it, unless it has marks itself."""
        marks = [self.mark(item.kind) for item in items]
        return prompt if any(mark in prompt for mark in marks if mark) else "".join(marks) + prompt

    def prompt(self, text: str, items: Sequence[OpenedItem]) -> MediaPrompt:
        """Tokens and numbers of `text`, in which the processor's marks stand for `items`. Raises InvalidRequest."""
        named = {"image": "images", "video": "videos", "audio": "audio"}
        values = {kind: [item.value for item in items if item.kind == kind] for kind in named}
        # As transformers' own chats pass them: pictures and videos by conversation, sounds as they come.
        given: dict[str, Any] = {"return_tensors": "pt"} | {
            named[kind]: found if kind == "audio" else [found] for kind, found in values.items() if found
        }
        if values["audio"]:
            given["sampling_rate"] = self._sound_rate
        bos = getattr(self._processor.tokenizer, "bos_token", None)
        if bos and text.startswith(bos):
            given["add_special_tokens"] = False
        rates = [item.rate for item in items if item.kind == "video"]
        made = self._processed(text, given, rates)
        tokens = _first_row(made["input_ids"])
        inputs = {name: value for name, value in made.items() if name not in _NOT_FOR_MODELS}
        return MediaPrompt(
            tokens=tokens,
            inputs=_as_tensors(inputs),
            contents=_contents(made, tokens, items),
            digests={kind: tuple(i.digest for i in items if i.kind == kind) for kind in named if values[kind]},
        )

    def mark(self, kind: str) -> str:
        """What stands for one thing of the kind in a prompt's text; empty where the processor has no such mark."""
        mark = getattr(self._processor, f"{kind}_token", "")
        return str(mark or "")

    def _processed(self, text: str, given: dict[str, Any], rates: Sequence[float]) -> Any:
        offsets = {"return_text_replacement_offsets": True, "return_offsets_mapping": True}
        with self._lock:
            if rates:
                self._processor.video_processor.rates = rates
            try:
                return self._processor(text=text, **given, **offsets)
            except (TypeError, NotImplementedError):  # one that knows no offsets
                made = self._call(text, given)
            except Exception as error:
                raise self._refused(error) from error
        return made

    def _call(self, text: str, given: dict[str, Any]) -> Any:
        try:
            return self._processor(text=text, **given)
        except Exception as error:  # whatever a processor makes of odd pictures and texts
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> InvalidRequest:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return InvalidRequest(f"{self._reference} cannot take this prompt: {line[:200]}")


def load_senses(checkpoint: Checkpoint) -> Senses | None:
    """Of a checkpoint whose model sees or hears; None for one of text alone. Raises UnsupportedCheckpoint."""
    kinds = senses_of(checkpoint.config)
    if not kinds:
        return None
    folder = Path(tempfile.mkdtemp(prefix="kamado-"))
    try:
        _copy(checkpoint, folder)
        processor = _built(checkpoint, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Senses(checkpoint.reference, processor, kinds)


def _built(checkpoint: Checkpoint, folder: Path) -> Any:
    from ..materialize import library_call
    from .classes import built, processor_class

    name = _class_name(checkpoint)
    kind = checkpoint.config.get("model_type")
    if kind in WANT_TORCHVISION and importlib.util.find_spec("torchvision") is None:
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: pictures of a {kind!r} model are prepared with torchvision, which is not "
            "installed; pip install torchvision"
        )
    try:
        with library_call():
            return built(processor_class(name), folder, _json(checkpoint, "video_preprocessor_config.json"))
    except Exception as error:  # whatever it makes of damaged files
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedCheckpoint(
            f"{checkpoint.reference}: its processor ({name}) cannot be made: {line[:200]}"
        ) from error


def _class_name(checkpoint: Checkpoint) -> str:
    """Of transformers' class: the one that the files name, if it is one of them, else that of the model type."""
    from transformers.models.auto import processing_auto

    mapping: Mapping[str, str] = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
    known = set(mapping.values())
    stated = (_json(checkpoint, name).get("processor_class") for name in _CONFIGS)
    name = next((name for name in stated if name in known), None)
    name = name or mapping.get(str(checkpoint.config.get("model_type")))
    if name is None:
        raise UnsupportedCheckpoint(f"{checkpoint.reference}: the installed transformers has no processor for it")
    return str(name)


def _copy(checkpoint: Checkpoint, folder: Path) -> None:
    """The files that processors read."""
    for name in _CONFIGS:
        if name in checkpoint.files:
            (folder / name).write_text(json.dumps(_plain(_json(checkpoint, name))), encoding="utf-8")
    for name in _DATA:
        if name in checkpoint.files:
            os.symlink(checkpoint.files[name].absolute(), folder / name)
    (folder / "config.json").write_text(json.dumps(cleaned(checkpoint.config)), encoding="utf-8")


def _json(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    path = checkpoint.files.get(name)
    return read_json_object(path, max_bytes=_MAX_CONFIG_BYTES) if path is not None else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if key != "auto_map" and not _DROPPED.fullmatch(key)}
        return {key: _plain(item) for key, item in kept.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _first_row(ids: Any) -> list[int]:
    row = ids[0] if not isinstance(ids[0], int) else ids
    return [int(token) for token in row]


def _as_tensors(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor gives as arrays or lists, which it does where it is not asked for tensors."""
    import numpy as np
    import torch

    def tensor(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            same = all(item.shape == value[0].shape for item in value)
            return torch.stack(list(value)) if same else list(value)
        return torch.from_numpy(np.asarray(value))

    return {name: tensor(value) for name, value in inputs.items() if value is not None}


def _contents(made: Mapping[str, Any], tokens: Sequence[int], items: Sequence[OpenedItem]) -> tuple[Any, ...]:
    """Where each of `items` stands in the prompt. Where that is not known, all the prompt depends on all of them."""
    replaced, offsets = made.get("text_replacement_offsets"), made.get("offset_mapping")
    spans = replaced[0] if replaced else ()
    if offsets is None or len(spans) != len(items):
        whole = sha256("".join(item.digest for item in items).encode()).digest()
        return ((0, len(tokens), whole),)
    places = [(int(first), int(end)) for first, end in offsets[0]]
    left = {kind: [item for item in items if item.kind == kind] for kind in ("image", "video", "audio")}
    found = []
    for span in spans:
        first, end = span["new_span"]
        inside = [number for number, (start, stop) in enumerate(places) if start < end and first < stop]
        item = left[span["type"]].pop(0)
        if inside:
            found.append((inside[0], inside[-1] + 1, bytes.fromhex(item.digest)))
    return tuple(found)
