"""An answer to a prompt that shows something beside text: that is seen first, then the answer is text as any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch

from kamado.contracts import Accepted, Task, Work
from kamado.errors import GenerationFailed
from kamado.memory.ledger import Ledger
from kamado.requests import TextOptions
from kamado.sequence import TokenSequence
from kamado.tasks.text import TextModel, TextTask

from .decoder import Seen
from .processor import MediaPrompt


class Held:
    """What was seen for a request, as long as one of its answers may have to be computed again."""

    def __init__(self, seen: Seen, ledger: Ledger, device: str, owner: str) -> None:
        self.seen = seen
        self.holders = 0
        self._leave: Callable[[], None] = lambda: ledger.leave(device, owner, "media", seen.nbytes)
        ledger.enter(device, owner, "media", seen.nbytes)

    def let_go(self) -> None:
        """One holder less; the last one gives the memory back."""
        self.holders -= 1
        if self.holders == 0:
            self._leave()


@dataclass(frozen=True, slots=True)
class _Asked:
    """Payload of a work."""

    prompt: MediaPrompt


class EncoderLane:
    """See kamado.contracts.Lane. Runs what sees and hears, a request's pictures and sounds at once."""

    interactive = False
    max_rows = 1
    step_budget = 1 << 30

    def __init__(
        self,
        name: str,
        see: Callable[[Sequence[int], Mapping[str, Any]], Seen],
        *,
        ledger: Ledger,
        device: str,
        owner: str,
    ) -> None:
        """`see`: see MediaForward."""
        self.name = name
        self._see = see
        self._ledger = ledger
        self._device = device
        self._owner = owner

    def work(self, prompt: MediaPrompt) -> Work:
        """To see what a prompt shows."""
        return Work(self.name, "see", len(prompt.tokens), _Asked(prompt))

    def run(self, works: Sequence[Work]) -> list[Held]:
        """See Lane."""
        found = []
        with torch.inference_mode():
            for work in works:
                prompt: MediaPrompt = work.payload.prompt
                seen = self._see(prompt.tokens, prompt.inputs)
                if not seen.embeddings.isfinite().all():
                    raise GenerationFailed("the model's encoder produced NaN or infinity from what the prompt shows")
                found.append(seen)
        return [Held(seen, self._ledger, self._device, self._owner) for seen in found]

    def ease(self, work: Work) -> Work | None:
        """See Lane. There is no other way."""
        return None


class MediaTask(TextTask):
    """See TextTask."""

    def __init__(
        self,
        request_id: str,
        model: TextModel,
        options: TextOptions,
        prompt: MediaPrompt,
        encoder: EncoderLane,
        *,
        deadline: float | None = None,
        index: int = 0,
        held: Held | None = None,
    ) -> None:
        # A draft knows nothing of pictures.
        super().__init__(request_id, replace(model, draft=None), options, prompt.tokens, deadline=deadline, index=index)
        self.prompt = prompt
        self._encoder = encoder
        self._held: Held | None = None
        if held is not None:
            self._take(held)

    @property
    def lane(self) -> str:
        """See Task: first the encoder's."""
        return self._encoder.name if self._sees() else super().lane

    def work(self, budget: int) -> Work | None:
        """See Task."""
        return self._encoder.work(self.prompt) if self._sees() else super().work(budget)

    def acquire(self, work: Work) -> Work | None:
        """See Task. What is seen needs no state memory."""
        return work if self._sees() else super().acquire(work)

    def victims_needed(self, work: Work, others: Sequence[Task]) -> int | None:
        """See Task."""
        return 0 if self._sees() else super().victims_needed(work, others)

    def accept(self, result: Any) -> Accepted:
        """See Task."""
        if isinstance(result, Held):
            self._take(result)
            return Accepted(())
        return super().accept(result)

    def release(self) -> None:
        """See Task. What was seen is kept until it has finished: its state may have to be computed again."""
        super().release()
        if self._finished and self._held is not None:
            self._held.let_go()
            self._held = self.sequence.seen = None

    def _sees(self) -> bool:
        """Whether it waits for the encoder."""
        return self._held is None and not self._finished

    def _take(self, held: Held) -> None:
        held.holders += 1
        self._held = held
        sequence, seen = self.sequence, held.seen
        sequence.seen, sequence.blocks = seen, seen.blocks
        sequence.contents = (*self.prompt.contents, *_block_contents(sequence, self.prompt))

    def _sibling(self, index: int) -> TextTask:
        assert self._held is not None, "its prompt was computed"
        options = replace(self.options, n=1)
        return MediaTask(
            self.id,
            self._model,
            options,
            self.prompt,
            self._encoder,
            deadline=self.deadline,
            index=index,
            held=self._held,
        )


def _block_contents(sequence: TokenSequence, prompt: MediaPrompt) -> list[tuple[int, int, bytes]]:
    """Names of stretches whose tokens see each other ahead: each token's state depends on all of them."""
    found = []
    for first, end in sequence.blocks:
        name = sha256(repr(sequence.tokens[first:end]).encode())
        for start, stop, content in prompt.contents:
            if start < end and first < stop:
                name.update(repr((start - first, stop - first)).encode() + content)
        found.append((first, end, name.digest()))
    return found
