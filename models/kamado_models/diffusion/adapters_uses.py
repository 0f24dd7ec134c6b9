"""What requests have of adapters: which, with what weights, and what that means for each component."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kamado.errors import InvalidRequest
from kamado.picture_requests import AdapterUse
from kamado.tasks.library.stacking import digest

from .adapters_image import Divert, ImagePrompt
from .adapters_text import Embedding, Vocabulary
from .table import runs_alone


class Content(Protocol):
    """What an adapter holds: tensors, on the CPU until they are moved."""

    components: frozenset[str]
    """What it changes."""
    nbytes: int

    def move(self, device: str) -> None: ...


@dataclass(slots=True, eq=False, weakref_slot=True)
class Adapter:
    """One adapter of one model. There is one object for it while anybody uses it."""

    sha256: str
    read: Callable[[], Content]
    """Its content, from the file. Raises InvalidRequest, UnsupportedCheckpoint."""
    content: Content | None
    """None: its memory was taken back, and whoever needs it reads it again."""
    placed: bool = False
    """Whether its content is on the device, and in the ledger."""
    users: int = 0
    """Running requests that need it."""
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def have(self) -> Content:
        """Its content, read again if need be. Any thread may ask. All get the same object, as long as its memory is not
        taken back: what is on the device must be what counts."""
        content = self.content
        if content is None:
            with self._reading:
                content = self.content
                if content is None:
                    content = self.content = self.read()
        return content


@dataclass(frozen=True, slots=True)
class Setting:
    """Which adapters change one component in a call. Equal where they are the same."""

    loras: tuple[tuple[Adapter, float], ...] = ()
    words: Vocabulary | None = None
    image: tuple[Adapter, float] | None = None

    def lasting(self, component: str) -> Hashable | None:
        """Equal for settings that change the component alike, whichever objects they are of; None: not known."""
        if self.image is not None:
            return None
        words = None if self.words is None else (self.words.starts[component], digest(self.words.rows(component)))
        return tuple((adapter.sha256, weight) for adapter, weight in self.loras), words


PLAIN = Setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The adapters of one request."""

    adapters: tuple[Adapter, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    """By component, of those that are changed at all."""
    recipe: tuple[Mapping[str, Any], ...] = ()
    """As recipes list them."""

    def equip(self, pipeline: Any, divert: Divert | None = None) -> None:
        """Give the request's pipeline its own tokenizers, and what else its adapters need. Calls of models that are
        part of an adapter go to `divert`, which a pipeline over the shared models themselves has not."""
        for setting in self.settings.values():
            if setting.words is not None:
                for name, tokenizer in setting.words.tokenizers.items():
                    setattr(pipeline, name, tokenizer)
            if setting.image is not None:
                content = setting.image[0].have()
                assert isinstance(content, ImagePrompt) and divert is not None
                content.equip(pipeline, divert)


NOTHING = Chosen()


def check_use(content: Content, use: AdapterUse, kind: Any) -> None:
    """Whether a pipeline of class `kind` can use it like that. Raises InvalidRequest."""
    what = f"adapter {use.reference}"
    if isinstance(content, Embedding):
        if use.weight != 1.0:
            raise InvalidRequest(f"{what} is an embedding, which has no weight; it counts where its word stands")
        if not hasattr(kind, "maybe_convert_prompt"):
            raise InvalidRequest(f"{what} is an embedding, and {kind.__name__} takes none")
    takes_pictures = hasattr(kind, "prepare_ip_adapter_image_embeds") and not runs_alone(kind.__name__)
    if isinstance(content, ImagePrompt) and not takes_pictures:
        raise InvalidRequest(f"{what} is an IP-Adapter, and {kind.__name__} takes none")


def check_picture(arguments: Mapping[str, Any], num_image_prompts: int) -> None:
    """Whether there is a picture for the IP-Adapter, and one of these for the picture. Raises InvalidRequest."""
    if num_image_prompts > 1:
        raise InvalidRequest("adapters: this version uses one IP-Adapter at a time")
    given = any(arguments.get(name) is not None for name in ("ip_adapter_image", "ip_adapter_image_embeds"))
    if num_image_prompts and not given:
        raise InvalidRequest("an IP-Adapter needs a picture to show: give ip_adapter_image too (--adapter-image)")
    if given and not num_image_prompts:
        raise InvalidRequest("ip_adapter_image needs an IP-Adapter: name one under adapters (--adapter)")


def check_scales(arguments: Mapping[str, Any]) -> None:
    """Refuse diffusers' other way to weight adapters, which would say nothing here. Raises InvalidRequest."""
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        value = arguments.get(name)
        if isinstance(value, Mapping) and "scale" in value:
            raise InvalidRequest(f"{name}: scale cannot be used; give each adapter its weight (adapters)")
