"""Adapters of single requests over one shared model: LoRAs, embeddings, IP-Adapters.

Files are found, read and judged in the caller's thread. What changes a model happens on the loop's thread: adapters are
put in place before a request's pipeline is made, and counted while it runs; which of them work is set by the lane just
before each forward (`around`), from the forward's own key. So requests with the same adapters share forwards, and a
request without any runs exactly what a model runs that never saw one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from kamado.checkpoint.digest import file_digest
from kamado.checkpoint.reference import published_reference
from kamado.errors import DoesNotFit, InvalidRequest
from kamado.memory.ledger import Ledger
from kamado.picture_requests import AdapterUse

from .adapters_files import AdapterFile, find_file, open_file
from .adapters_image import ImagePrompt, attentions_of, read_image_prompt
from .adapters_lora import Lora, Slot, layers_of, read_lora
from .adapters_text import Embedding, TableSlot, Vocabulary, read_embedding, tables_of, vocabulary
from .adapters_uses import NOTHING, PLAIN, Adapter, Chosen, Content, Setting, check_picture, check_scales, check_use

LEDGER_KIND = "adapters"
_VOCABULARIES_KEPT = 4
"""Making tokenizers takes a while, and requests with the same words follow each other."""


def is_plain(setting: Setting | None) -> bool:
    """Whether no adapter counts."""
    return (setting or PLAIN) == PLAIN


class Adapters:
    """All adapters of one loaded model."""

    def __init__(
        self,
        reference: str,
        base: Any,
        models: Mapping[str, nn.Module],
        fresh_tokenizer: Callable[[str], Any],
        *,
        device: str,
        ledger: Ledger,
        owner: str,
        offline: bool,
        spare: Callable[[], int] = lambda: 0,
    ) -> None:
        """`base`: the checkpoint's pipeline class. `fresh_tokenizer(name)`: one more of the tokenizer of that name.
        `owner`: of the entries in the ledger. `spare`: lets go of what else of the model is idle, in bytes."""
        self._reference = reference
        self._base = base
        self._models = models
        self._fresh_tokenizer = fresh_tokenizer
        self._device = device
        self._ledger = ledger
        self._owner = owner
        self._offline = offline
        self._spare = spare
        # Taken now: adapters change how a model looks, and this is read in other threads.
        self._layers = layers_of(models)
        self._tables = tables_of(models)
        self._attentions = attentions_of(models)
        self._reading = threading.Lock()
        self._known: WeakValueDictionary[tuple[Any, ...], Adapter] = WeakValueDictionary()
        """By identity and, for quick answers, by the file's place, size and time."""
        self._vocabularies: WeakValueDictionary[tuple[Adapter, ...], Vocabulary] = WeakValueDictionary()
        self._recent: deque[Vocabulary] = deque(maxlen=_VOCABULARIES_KEPT)
        self._placed: dict[Adapter, None] = {}
        """Least recently used first. Like all below, of the loop's thread alone."""
        self._slots: dict[str, dict[str, Slot]] = {}
        self._table_slots: dict[str, TableSlot] = {}
        self._active: dict[str, Setting] = {}

    def prepare(self, asked: Sequence[AdapterUse], kind: Any, arguments: Mapping[str, Any]) -> Chosen:
        """What the request for a pipeline of class `kind`, called with `arguments`, gets. Files are read here.

        Raises InvalidRequest, ModelNotFound, UnsupportedCheckpoint, UnsafeCheckpoint."""
        check_scales(arguments)
        if not asked:
            check_picture(arguments, 0)
            return NOTHING
        paths = [find_file(use.reference, offline=self._offline) for use in asked]  # may take long: it may be pulled
        found: dict[Adapter, AdapterUse] = {}
        with self._reading:
            for use, path in zip(asked, paths, strict=True):
                adapter = self._adapter(use.reference, path)
                if adapter in found:
                    raise InvalidRequest(f"adapter {use.reference} is given twice")
                check_use(adapter.have(), use, kind)
                found[adapter] = use
            settings = self._settings({adapter: use.weight for adapter, use in found.items()})
            check_picture(arguments, sum(isinstance(adapter.have(), ImagePrompt) for adapter in found))
        return Chosen(
            adapters=tuple(found),
            settings=settings,
            recipe=tuple(
                {"reference": published_reference(use.reference), "weight": use.weight, "sha256": adapter.sha256}
                for adapter, use in found.items()
            ),
        )

    @contextmanager
    def held(self, chosen: Chosen) -> Iterator[None]:
        """While inside, the adapters are in place. On the loop's thread. Raises DoesNotFit."""
        counted: list[Adapter] = []
        try:
            for adapter in chosen.adapters:
                adapter.users += 1  # before the next one looks for room
                counted.append(adapter)
                self._place(adapter)
            yield
        finally:
            for adapter in counted:
                adapter.users -= 1

    def around(self, component: str) -> Callable[[Any], AbstractContextManager[None]]:
        """For the component's lane: `with around(setting): ...` is the component with those adapters, on the loop's
        thread. None is a setting too: no adapters."""

        @contextmanager
        def switched(setting: Setting | None) -> Iterator[None]:
            setting = setting or PLAIN
            if self._active.get(component, PLAIN) != setting:
                self._switch(component, setting)
            if setting.image is None:
                yield
                return
            adapter, weight = setting.image
            content = adapter.have()
            assert isinstance(content, ImagePrompt)
            with content.working(self._attentions, weight):
                yield

        return switched

    def lasting(self, component: str) -> Callable[[Setting | None], Hashable | None]:
        """For the component's lane: see Setting."""
        return lambda setting: (setting or PLAIN).lasting(component)

    def during(self, chosen: Chosen, run: Callable[[], Any]) -> Callable[[], Any]:
        """For library code that runs the models themselves: `run` with the adapters in all of them."""

        def within() -> Any:
            with ExitStack() as stack:
                for component in self._active.keys() | chosen.settings.keys():
                    stack.enter_context(self.around(component)(chosen.settings.get(component)))
                return run()

        return within

    def rest(self) -> None:
        """No adapter counts, until the next forward."""
        for component in list(self._active):
            self._switch(component, PLAIN)

    def usage(self) -> dict[str, Any]:
        """Figures for `Runtime.stats`."""
        return {"in_place": len(self._placed), "in_use": sum(adapter.users > 0 for adapter in list(self._placed))}

    def idle_bytes(self) -> int:
        """What adapters in place hold that no running request uses."""
        idle = [adapter.content for adapter in list(self._placed) if not adapter.users]
        return sum(content.nbytes for content in idle if content is not None)

    def trim(self) -> int:
        """Take that memory back; who asks for them again has them read again. Returns the bytes."""
        size = self.idle_bytes()
        while self._drop_oldest():
            pass
        return size

    def close(self) -> None:
        """The model is as it was before. Only when nothing runs any more."""
        for slots in self._slots.values():
            for slot in slots.values():
                slot.remove()
        for table_slot in self._table_slots.values():
            table_slot.remove()
        self._slots.clear()
        self._table_slots.clear()
        self._active.clear()
        self._placed.clear()
        self._known.clear()
        self._vocabularies.clear()
        self._recent.clear()

    def _adapter(self, reference: str, path: Path) -> Adapter:
        place = _place_of(path)
        adapter = self._known.get(place) if place is not None else None
        if adapter is None:
            file = open_file(reference, path)
            sha256 = file_digest(path)
            # Of the others, the name or the place of the file counts too.
            identity = (sha256,) if file.kind == "lora" else (sha256, os.path.realpath(path))
            adapter, read = self._known.get(identity), self._reader(file)
            if adapter is None:
                adapter = self._known[identity] = Adapter(sha256, read, read())
            adapter.read = read  # the file may have moved
            if place is not None and place == _place_of(path):
                self._known[place] = adapter
        return adapter

    def _reader(self, file: AdapterFile) -> Callable[[], Content]:
        before = _place_of(file.path)

        def read() -> Content:
            content: Content
            if file.kind == "lora":
                content = read_lora(file, self._base, self._models, self._layers, self._reference)
            elif file.kind == "embedding":
                content = read_embedding(file, self._tables, self._reference)
            else:
                content = read_image_prompt(file, self._models, self._attentions, self._reference)
            if before is None or before != _place_of(file.path):
                raise InvalidRequest(f"{file.what}: {file.path} was changed while it was in use; ask again")
            return content

        return read

    def _settings(self, weights: Mapping[Adapter, float]) -> dict[str, Setting]:
        """What each component gets. In one order, whatever the request's: the same adapters share forwards."""
        contents = {adapter: adapter.have() for adapter in sorted(weights, key=lambda each: each.sha256)}
        worded = tuple(adapter for adapter, content in contents.items() if isinstance(content, Embedding))
        words = self._words(worded) if worded else None
        found: dict[str, Setting] = {}
        for component in sorted({name for content in contents.values() for name in content.components}):
            here = [adapter for adapter, content in contents.items() if component in content.components]
            image = next((each for each in here if isinstance(contents[each], ImagePrompt)), None)
            setting = Setting(
                loras=tuple(
                    (each, weights[each]) for each in here if isinstance(contents[each], Lora) and weights[each]
                ),
                words=words if words is not None and component in words.components else None,
                image=(image, weights[image]) if image is not None else None,
            )
            if setting != PLAIN:
                found[component] = setting
        return found

    def _words(self, adapters: tuple[Adapter, ...]) -> Vocabulary:
        known = self._vocabularies.get(adapters)
        if known is None:
            contents = [content for adapter in adapters if isinstance(content := adapter.have(), Embedding)]
            known = self._vocabularies[adapters] = vocabulary(contents, self._fresh_tokenizer, self._reference)
        if known not in self._recent:
            self._recent.append(known)
        return known

    def _place(self, adapter: Adapter) -> None:
        if adapter.placed:
            self._placed[adapter] = self._placed.pop(adapter)  # the last one now
            return
        content = adapter.have()
        while True:
            try:
                self._ledger.enter(self._device, self._owner, LEDGER_KIND, content.nbytes)
                break
            except DoesNotFit:
                if not self._spare() and not self._drop_oldest():
                    raise
        try:
            content.move(self._device)
        except BaseException:
            self._ledger.leave(self._device, self._owner, LEDGER_KIND, content.nbytes)
            raise
        adapter.placed = True
        self._placed[adapter] = None
        if isinstance(content, Lora):
            for component, deltas in content.deltas.items():
                slots, layers = self._slots.setdefault(component, {}), self._layers[component]
                for path in deltas:
                    if path not in slots:
                        slots[path] = Slot(layers[path])
        if isinstance(content, Embedding):
            for component in content.components - self._table_slots.keys():
                self._table_slots[component] = TableSlot(self._tables[component])

    def _drop_oldest(self) -> bool:
        """Take the memory of the adapter back that was not used for longest. False: all are in use."""
        oldest = next((adapter for adapter in self._placed if not adapter.users), None)
        if oldest is None:
            return False
        self.rest()
        content = oldest.have()
        del self._placed[oldest]
        oldest.placed = False
        if not isinstance(content, Embedding):  # those are small, and vocabularies have them
            oldest.content = None
        self._ledger.leave(self._device, self._owner, LEDGER_KIND, content.nbytes)
        return True

    def _switch(self, component: str, setting: Setting) -> None:
        """Set what counts in the component's next forwards. All of it, or nothing where memory runs out."""
        slots = self._slots.get(component, {})
        counting: dict[str, list[Any]] = {}
        for adapter, weight in setting.loras:
            content = adapter.have()
            assert isinstance(content, Lora)
            for path, delta in content.deltas[component].items():
                counting.setdefault(path, []).append((delta, weight))
        table, words = self._table_slots.get(component), setting.words
        further = None if words is None else (words.starts[component], words.rows(component))
        for path, slot in slots.items():
            slot.active = tuple(counting.get(path, ()))
        if table is not None:
            table.active = further
        self._active[component] = setting


def _place_of(path: Path) -> tuple[Any, ...] | None:
    """Equal as long as the file is the same, without reading it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino
