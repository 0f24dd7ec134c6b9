"""llama.cpp, as a program that is told over a pipe what to do and how fast it was. `peers.py` starts it.

It runs in the environment that has `llama-cpp-python` and needs nothing of Kamado. One JSON object a line comes in:

    {"do": "open", "model": PATH, "threads": N, "streams": N, "context": N}   context: tokens of each stream
    {"do": "decode", "prompts": [[ids], ...], "tokens": N}
    {"do": "prefill", "prompt": [ids]}
    {"do": "quantize", "source": PATH, "target": PATH, "form": "q8_0", "threads": N}
    {"do": "close"}

and one goes out for each: `{"error": TEXT}`, or what was asked for, with `seconds`. It ends when its input ends.
Settings are llama.cpp's own defaults, but for the number of threads. The likeliest token is looked up on the host, as a
client does it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from typing import Any

try:
    import llama_cpp as lib
    import numpy as np
except ImportError as error:
    sys.exit(f"{error} in {sys.executable}; `peers.py --python` names an environment that has llama-cpp-python")

FILE_TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7}
"""Of `enum llama_ftype`."""
ONE_PIECE = 2048
"""Tokens that are handed over at once: llama.cpp's own default (`n_batch`)."""


class Engine:
    """One model, with room for some streams."""

    def __init__(self, model: str, threads: int, streams: int, context: int) -> None:
        self.model = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        settings = lib.llama_context_default_params()
        settings.n_ctx = context * streams
        settings.n_seq_max = streams
        settings.n_threads = settings.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, settings)
        if not self.context:
            lib.llama_model_free(self.model)
            raise RuntimeError(f"llama.cpp has no room for {streams} streams of {context} tokens")
        self.vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(ONE_PIECE, 0, 1)

    def close(self) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def clear(self) -> None:
        """Forget all streams."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def forward(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Items: token, position, stream, whether logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, stream, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
        if status := lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
        lib.llama_synchronize(self.context)

    def read(self, prompt: list[int], stream: int) -> int:
        """Read a prompt; the token behind it."""
        last = len(prompt) - 1
        for start in range(0, len(prompt), ONE_PIECE):
            piece = range(start, min(start + ONE_PIECE, len(prompt)))
            self.forward([(prompt[at], at, stream, at == last) for at in piece])
        return self.likeliest(last % ONE_PIECE)

    def likeliest(self, index: int) -> int:
        """The likeliest token behind item `index` of the last forward."""
        logits = lib.llama_get_logits_ith(self.context, index)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Seconds from the prompt to the token behind it."""
        self.clear()
        begin = time.perf_counter()
        token = self.read(prompt, 0)
        return {"seconds": time.perf_counter() - begin, "token": token}

    def decode(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """Answers of so many tokens each. `seconds` are those behind the first token of each."""
        self.clear()
        begin = time.perf_counter()
        answers = [[self.read(prompt, stream)] for stream, prompt in enumerate(prompts)]
        read = time.perf_counter()
        for step in range(tokens - 1):
            self.forward(
                [
                    (answer[-1], len(prompt) + step, stream, True)
                    for stream, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
                ]
            )
            for stream, answer in enumerate(answers):
                answer.append(self.likeliest(stream))
        return {"seconds": time.perf_counter() - read, "prefill_s": read - begin, "answers": answers}


class Side:
    """Carries out what is asked."""

    def __init__(self) -> None:
        self._quiet = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._engine: Engine | None = None

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        what = request.pop("do")
        if what == "open":
            self._close()
            self._engine = Engine(**request)
            return {"vocab_size": self._engine.vocab_size, "model_bytes": lib.llama_model_size(self._engine.model)}
        if what == "close":
            self._close()
            return {}
        if what == "quantize":
            return quantize(**request)
        if self._engine is None:
            raise RuntimeError("no model is open")
        return {"decode": self._engine.decode, "prefill": self._engine.prefill}[what](**request)

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def quantize(source: str, target: str, form: str, threads: int) -> dict[str, Any]:
    """Write the model in another form, as llama.cpp does it by default."""
    settings = lib.llama_model_quantize_default_params()
    settings.allow_requantize = True
    settings.nthread = threads
    settings.ftype = FILE_TYPES[form]
    if status := lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama_model_quantize returned {status}")
    return {}


def main() -> None:
    """Replies go to what was standard output; what the library prints there goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    side = Side()
    hello = {"version": lib.__version__, "system": lib.llama_print_system_info().decode()}
    print(json.dumps(hello), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = side.do(json.loads(line))
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
