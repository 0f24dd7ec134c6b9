"""A model whose every layer slides holds no more than its window, and says what transformers says."""

from __future__ import annotations

from pathlib import Path

import kamado
import tiny


def test_many_long_sequences_in_little_memory(tmp_path: Path) -> None:
    """Eight sequences of 110 tokens in pages for 480, a window of 16: nobody has to wait, and nobody is pre-empted."""
    folder = tiny.build("mistral", tmp_path / "mistral", sliding_window=16)
    oracle = tiny.Oracle(folder)
    prompts = [[20 + (7 * i + n) % 200 for i in range(70)] for n in range(8)]
    wanted = [oracle.greedy(prompt, 40) for prompt in prompts]
    requests = [{"prompt_tokens": p, "max_tokens": 40, "temperature": 0.0, "ignore_eos": True} for p in prompts]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, kv_tokens=480, step_budget=32)
        assert model.loaded.execution.memory.window_tokens == 16  # type: ignore[attr-defined]
        assert [list(result.tokens) for result in model.generate_many(requests)] == wanted
        assert runtime.stats()["preemptions"] == 0
        # Again, from the prefix cache as far as it goes.
        results = model.generate_many(requests)
        assert [list(result.tokens) for result in results] == wanted
        usage = runtime.stats()["models"][model.owner]
        assert usage["kv_tokens_free"] == usage["kv_tokens_total"]


def test_a_layer_that_looks_back_to_the_beginning_keeps_all(tmp_path: Path) -> None:
    folder = tiny.build("gemma3", tmp_path / "gemma3")
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        assert runtime.load(folder).loaded.execution.memory.window_tokens is None  # type: ignore[attr-defined]
