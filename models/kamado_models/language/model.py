"""A loaded language model: requests into tasks, events into results."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

import kamado
from kamado.checkpoint.digest import checkpoint_digests
from kamado.checkpoint.reference import published_reference
from kamado.checkpoint.types import Checkpoint
from kamado.contracts import Lane, LoadedModel, Task
from kamado.errors import ContextOverflow
from kamado.events import Event, Finished, Token
from kamado.memory.plan import Plan
from kamado.memory.shortage import release_cached
from kamado.requests import TextOptions
from kamado.results import Choice, Result, Timings, TokenChoice, Usage, failure_notes, failures_in
from kamado.speculation.costs import LaneSpeculation
from kamado.speculation.draft import DraftModel
from kamado.tasks.text import TextModel, TextTask
from kamado.weights.outside.parked import ParkedModules, parked

from .ahead import Ahead
from .captured import CapturedSteps
from .drafts import as_draft
from .intake import TextFacts, TextIntake
from .media.processor import Senses
from .media.task import EncoderLane, MediaTask
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How the model is run."""

    lane: Lane
    memory: Any
    """A SequenceMemory with `usage()` and `check_integrity()`."""
    batching: str
    close: Callable[[], None]
    notes: tuple[str, ...] = ()
    speculation: LaneSpeculation | None = None
    """What its requests share about guessing tokens; None: guesses cannot be checked."""
    guesses: bool = False
    """Whether its requests guess."""
    captured: CapturedSteps | None = None
    """Its recorded forwards; None: it has none."""
    ahead: Ahead | None = None
    """What launches these before they are asked for."""
    encoder: EncoderLane | None = None
    """What sees and hears; None: the model takes text alone."""
    step: str = "modules"
    """What computes the tokens of answers: `modules` of the library, `native`, one call of Kamado's own, or `recorded`,
    forwards of the modules played back."""


class LanguageModel:
    """See kamado.contracts.LoadedModel."""

    capabilities: Sequence[str] = ("text",)

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        model: Any,
        tokenizer: Tokenizer,
        execution: Execution,
        facts: TextFacts,
        *,
        draft: Callable[[], LoadedModel | None] | None = None,
        senses: Senses | None = None,
    ) -> None:
        """`draft`: see LoadEnvironment. `senses`: of a model that takes more than text."""
        self.checkpoint = checkpoint
        self.plan = plan
        self.tokenizer = tokenizer
        self.execution = execution
        self.facts = facts
        self.module: Any = model
        """transformers' model, for those who want to look inside; it is the loop's to run."""
        self.lanes: Sequence[Lane] = (execution.lane, *([execution.encoder] if execution.encoder is not None else []))
        context_tokens = min(facts.context_tokens, execution.memory.capacity_tokens())
        self.as_draft = as_draft(execution, facts.vocab_size, context_tokens)
        """What others know of it for which it guesses; None: it cannot."""
        self._draft = draft
        self._text_model = TextModel(
            lane=execution.lane.name,
            memory=execution.memory,
            decode=tokenizer.decode,
            eos_ids=tokenizer.eos_ids,
            context_tokens=context_tokens,
            stepwise=facts.stepwise,
            speculation=execution.speculation if execution.guesses else None,
            vocab_size=facts.vocab_size,
            draft=self._find_draft if draft is not None else None,
            guests=self.as_draft.guests if self.as_draft is not None else None,
        )
        blind = senses is not None and execution.encoder is None
        self._intake = TextIntake(
            checkpoint.reference,
            tokenizer,
            facts,
            None if blind else senses,
            why_text=" here, since it cannot run over pages" if blind else "",
        )
        self._hashes: dict[str, str] | None = None

    def prepare(self, request_id: str, options: Mapping[str, Any], now: float) -> Sequence[Task]:
        """See LoadedModel."""
        order = self._intake.order(options)
        resolved, tokens = order.options, order.tokens
        start = self.facts.decoder_start
        self._check_memory(len(tokens), bool(start))
        deadline = now + resolved.deadline_s if resolved.deadline_s is not None else None
        if order.media is not None:
            encoder = self.execution.encoder
            assert encoder is not None, "a model with senses has an encoder"
            return (MediaTask(request_id, self._text_model, resolved, order.media, encoder, deadline=deadline),)
        task = TextTask(
            request_id,
            self._text_model,
            resolved,
            start or tokens,
            source=tokens if start else (),
            deadline=deadline,
            ends=self._intake.ends(resolved),
        )
        return (task,)

    def collect(self, request_id: str, tasks: Sequence[Task], events: Sequence[Event], timings: Timings) -> Result:
        """See LoadedModel."""
        ends = {event.index: event for event in events if isinstance(event, Finished)}
        made = [end for _, end in sorted(ends.items()) if end.error is None]
        tokens: dict[int, list[Token]] = {index: [] for index in ends}
        for event in events:
            if isinstance(event, Token):
                tokens[event.index].append(event)
        first = ends[0]
        task = tasks[0]
        assert isinstance(task, TextTask)
        failures = failures_in(events, lambda index: None)
        return Result(
            request_id=request_id,
            choices=tuple(_choice(end, tokens[end.index]) for end in made),
            usage=Usage(
                prompt_tokens=first.prompt_tokens,
                completion_tokens=sum(end.completion_tokens for end in ends.values()),
                cached_tokens=first.cached_tokens,
                proposed_tokens=sum(end.proposed_tokens for end in ends.values()),
                accepted_tokens=sum(end.accepted_tokens for end in ends.values()),
            ),
            failures=failures,
            timings=timings,
            notes=failure_notes(failures, len(ends), "answer"),
            recipe=self._recipe(task.options) | _inputs(task),
        )

    def usage(self) -> Mapping[str, Any]:
        """See LoadedModel."""
        kv = {"kv_dtype": self.plan.kv_dtype} if self.plan.kv_tokens else {}
        shared = self.execution.speculation if self.execution.guesses else None
        guessed = {"speculation": shared.figures(drafts=self._draft is not None)} if shared is not None else {}
        captured, ahead = self.execution.captured, self.execution.ahead
        recorded = {"compile_s": round(captured.seconds, 3), "graphs": captured.figures()} if captured else {}
        overlapped = {"ahead": ahead.figures()} if ahead is not None else {}
        how = {"batching": self.execution.batching, "step": self.execution.step}
        return {**how, **kv, **self.execution.memory.usage(), **guessed, **recorded, **overlapped}

    def idle_bytes(self) -> int:
        """See LoadedModel. Its state memory has its size for good."""
        captured = self.execution.captured
        return captured.bytes if captured is not None else 0

    def trim(self) -> int:
        """See LoadedModel. Recorded forwards are recorded again."""
        captured = self.execution.captured
        return captured.clear() if captured is not None else 0

    def close(self) -> None:
        """See LoadedModel."""
        self.execution.close()
        self.tokenizer.close()
        del self.module, self.execution, self.lanes, self._text_model, self.as_draft, self._draft
        release_cached(self.plan.device)

    def park(self) -> ParkedModules | None:
        """See LoadedModel."""
        modules = {"": self.module} if not self.plan.tier else {}
        self.close()
        return parked(modules, self.plan.device)

    def _find_draft(self) -> DraftModel | None:
        """See TextModel."""
        loaded = self._draft() if self._draft is not None else None
        return loaded.as_draft if isinstance(loaded, LanguageModel) else None

    def _check_memory(self, num_tokens: int, is_source: bool) -> None:
        held = self._text_model.context_tokens
        memory = self.execution.memory
        fits = memory.fits(len(self.facts.decoder_start) + 1, num_tokens) if is_source else num_tokens < held
        if not fits:
            raise ContextOverflow(
                f"the prompt has {num_tokens} tokens, but memory for only {held} was set aside; "
                "load the model with more KV tokens (--kv-tokens) or more memory (--memory)",
                prompt_tokens=num_tokens,
                context_tokens=held,
            )

    def _recipe(self, options: TextOptions) -> dict[str, Any]:
        if self._hashes is None:
            self._hashes = checkpoint_digests(self.checkpoint)
        return {
            "kamado": kamado.__version__,
            "model": {
                "reference": published_reference(self.checkpoint.reference),
                "revision": self.checkpoint.revision,
                "files": self._hashes,
                **(
                    {"allow_code": published_reference(allowed)}
                    if (allowed := self.plan.allow_code) is not None
                    else {}
                ),
            },
            "options": _plain(asdict(options)),
            "device": self.plan.device,
            "dtype": self.plan.dtype,
            "quant": self.plan.quant_json,
            "kv_dtype": self.plan.kv_dtype,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": version("transformers"),
            },
        }


def _inputs(task: TextTask) -> dict[str, Any]:
    """Which pictures, sounds and videos a request showed, in order: the `inputs` of its recipe."""
    if not isinstance(task, MediaTask):
        return {}
    return {"inputs": {kind: [{"sha256": each} for each in found] for kind, found in task.prompt.digests.items()}}


def _choice(end: Finished, tokens: Sequence[Token]) -> Choice:
    chosen = [
        TokenChoice(chosen=token.logprob, top=token.top_logprobs) for token in tokens if token.logprob is not None
    ]
    return Choice(
        index=end.index,
        text="".join(token.text for token in tokens) + end.text,
        tokens=tuple(token.token_id for token in tokens),
        finish_reason=end.reason,
        stop=end.stop,
        logprobs=tuple(chosen) if chosen else None,
    )


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Without what was not asked for, as JSON has it, and such that it can be asked again."""
    sampling = options.pop("sampling")
    sampling["logit_bias"] = {str(token): bias for token, bias in sampling["logit_bias"].items()}
    if not options["prompt"]:
        del options["chat"]  # messages and tokens are taken as they are
    asked = {name: value for name, value in options.items() if value is not None and value not in ((), {})}
    if not asked["ignore_eos"]:
        del asked["ignore_eos"]
    return {**asked, **sampling}
