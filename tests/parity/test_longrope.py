"""LongRoPE: positions mean something else once a sequence is longer than the original context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kamado
import tiny

ORIGINAL = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.build("phi3", tmp_path_factory.mktemp("longrope") / "phi3")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    config["original_max_position_embeddings"] = ORIGINAL
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": ORIGINAL,
        "short_factor": [1.0] * half,
        "long_factor": [4.0 + i for i in range(half)],
    }
    path.write_text(json.dumps(config))
    return folder


def test_on_both_sides_of_the_switch_and_across_it(folder: Path) -> None:
    """Prompts below, above and growing beyond it, in small steps, one after the other and all at once."""
    oracle = tiny.Oracle(folder)
    prompts = [[5 + (7 * i + n) % 200 for i in range(n)] for n in (40, 60, 64, 65, 150)]
    prompts.append(prompts[-1][:40])
    wanted = [oracle.greedy(prompt, 24) for prompt in prompts]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder, step_budget=32)
        requests = [
            {"prompt_tokens": prompt, "max_tokens": 24, "temperature": 0.0, "ignore_eos": True} for prompt in prompts
        ]
        assert [list(model.generate(**request).tokens) for request in reversed(requests)] == wanted[::-1]
        assert [list(result.tokens) for result in model.generate_many(requests)] == wanted
