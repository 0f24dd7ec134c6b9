"""Who does the work: each side reads prompts and answers them greedily, and says how fast it was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from peer_process import Peer

import kamado
from kamado.bench.requests import GREEDY, check_length, run_together
from kamado.bench.texts import decoding_rate

Prompts = Sequence[list[int]]
Answers = list[list[int]]
Done = tuple[float, Answers]
"""(tokens a second, the answers)"""
WORKS = ("decode", "prefill", "request")
"""`decode`: tokens behind the first one of each answer, all streams together. `prefill`: tokens of the prompt, over the
time to the first token. `request`: tokens of the answer, over the time of the whole call."""


class Side(Protocol):
    """One engine with one model."""

    name: str

    def run(self, work: str, prompts: Prompts, tokens: int) -> Done:
        """Answers of `tokens` tokens each (of `prefill`: one)."""
        ...


class Kamado:
    """Through the loop, as requests of a program."""

    def __init__(self, model: kamado.Model, form: str) -> None:
        self.name = f"kamado {form}"
        self._model = model

    def run(self, work: str, prompts: Prompts, tokens: int) -> Done:
        """See Side."""
        made = 1 if work == "prefill" else tokens
        requests = [{"prompt_tokens": prompt, "max_tokens": made, **GREEDY} for prompt in prompts]
        begin = time.perf_counter()
        done = run_together(self._model, requests)
        seconds = time.perf_counter() - begin
        for one in done:
            check_length(one, made)
        answers = [list(one.result.tokens) for one in done]
        if work == "prefill":
            return len(prompts[0]) / done[0].ttft_s, answers
        return decoding_rate(done) if work == "decode" else tokens / seconds, answers


class LlamaCpp:
    """In another process, which has a model open."""

    def __init__(self, peer: Peer, form: str) -> None:
        self.name = f"llama.cpp {form}"
        self._peer = peer

    def run(self, work: str, prompts: Prompts, tokens: int) -> Done:
        """See Side. There are no whole requests: how they come and go is not llama.cpp's but its user's."""
        if work == "prefill":
            (prompt,) = prompts
            reply = self._peer.ask("prefill", prompt=prompt)
            return len(prompt) / reply["seconds"], [[reply["token"]]]
        assert work == "decode"
        reply = self._peer.ask("decode", prompts=list(prompts), tokens=tokens)
        return len(prompts) * (tokens - 1) / reply["seconds"], reply["answers"]


class Generate:
    """transformers' `generate`, on the loop's thread: torch has a pool of threads for each one that calls it, and two
    pools on the same cores would hinder each other."""

    name = "generate float32"

    def __init__(self, module: Any, runtime: kamado.Runtime) -> None:
        self._module = module
        self._session = runtime._session

    def run(self, work: str, prompts: Prompts, tokens: int) -> Done:
        """See Side. One prompt."""
        (prompt,) = prompts
        ids, times = torch.tensor([prompt]), Times()
        made = 1 if work == "prefill" else tokens

        def call() -> Any:
            return self._module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=made,
                min_new_tokens=made,
                eos_token_id=None,
                pad_token_id=0,
                streamer=times,
            )

        begin = time.perf_counter()
        answer = self._session.call(call)[0, len(prompt) :].tolist()
        seconds = time.perf_counter() - begin
        first, last = times.at[1], times.at[-1]
        assert len(answer) == made == len(times.at) - 1, f"generate made {len(answer)} tokens"
        if work == "prefill":
            return len(prompt) / (first - begin), [answer]
        return ((tokens - 1) / (last - first) if work == "decode" else tokens / seconds), [answer]


class Times:
    """A streamer of transformers that notes when tokens come: first the prompt, then each one."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Any) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is kept back."""
