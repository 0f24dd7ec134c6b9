"""SmolLM2-135M-Instruct for real: Kamado's greedy tokens against transformers' own `generate`, float32."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gguf_files
import kamado
from kamado_models.language.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200, 233, 300, 377, 500, 610, 800, 987, 1200, 1500)
THIRD = range(0, len(LENGTHS), 3)
"""Those that get long answers, of all sizes."""
TEXT = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    """Tokens of real English of each length, each beginning elsewhere in the text."""
    tokens = load_tokenizer(gguf_files.checkpoint_of(smollm2)).encode(TEXT.read_text(), add_special=False)
    assert len(tokens) > 1900
    return [tokens[17 * i : 17 * i + length] for i, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def oracle(smollm2: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers alone says, from the same file through its own GGUF reader."""
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"gguf_file": smollm2.name, "dtype": torch.float32}
    try:
        from transformers.utils.quantization_config import GgufConfig
    except ImportError:  # transformers before 5.20 always unpacks
        pass
    else:
        arguments["quantization_config"] = GgufConfig(gguf_file=smollm2.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, **arguments).eval()
    answers = []
    with torch.inference_mode():
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([prompt])
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=_new_tokens(index),
                eos_token_id=None,
                pad_token_id=0,
            )
            answers.append(made[0, len(prompt) :].tolist())
    return answers


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="6GiB") as runtime:
        yield runtime


def _new_tokens(index: int) -> int:
    return 64 if index in THIRD else 24


def _requests(prompts: list[list[int]]) -> list[dict[str, Any]]:
    return [
        {"prompt_tokens": prompt, "max_tokens": _new_tokens(index), "temperature": 0.0, "ignore_eos": True}
        for index, prompt in enumerate(prompts)
    ]


def test_alone(runtime: kamado.Runtime, smollm2: Path, prompts: list[list[int]], oracle: list[list[int]]) -> None:
    model = runtime.load(smollm2, dtype="float32")
    for request, wanted in zip(_requests(prompts), oracle, strict=True):
        found = list(model.generate(**request).tokens)
        assert found == wanted, f"prompt of {len(request['prompt_tokens'])} tokens"


def test_all_at_once_with_too_few_pages(
    runtime: kamado.Runtime, smollm2: Path, prompts: list[list[int]], oracle: list[list[int]]
) -> None:
    """Requests that come one after another while others run, and pages for about a third of them."""
    model = runtime.load(smollm2, dtype="float32", kv_tokens=2600)
    jobs = []
    for request in _requests(prompts):
        jobs.append(model.submit(**request))
        time.sleep(0.05)
    for prompt, job, wanted in zip(prompts, jobs, oracle, strict=True):
        assert list(job.result().tokens) == wanted, f"prompt of {len(prompt)} tokens"
    stats = runtime.stats()
    (lane,) = stats["lanes"].values()
    (usage,) = stats["models"].values()
    assert stats["preemptions"] > 0
    assert lane["mean_batch"] > 3
    assert usage["kv_tokens_free"] == usage["kv_tokens_total"]


def test_small_steps(runtime: kamado.Runtime, smollm2: Path, prompts: list[list[int]], oracle: list[list[int]]) -> None:
    """Prompts cut into pieces of at most 48 tokens beside decoding rows."""
    model = runtime.load(smollm2, dtype="float32", step_budget=48)
    requests = _requests(prompts)
    results = model.generate_many([requests[i] for i in THIRD])
    assert [list(result.tokens) for result in results] == [oracle[i] for i in THIRD]


def test_one_seed_gives_one_text_alone_and_in_a_batch(runtime: kamado.Runtime, smollm2: Path) -> None:
    model = runtime.load(smollm2, dtype="float32")
    requests = [
        {"prompt": f"Write a line about {what}.", "seed": 11, "temperature": 0.9, "top_p": 0.95, "max_tokens": 24}
        for what in ("rain", "iron", "bread", "the moon", "a lighthouse", "a fox")
    ]
    alone = [model.generate(**request).text for request in requests]
    assert [result.text for result in model.generate_many(requests)] == alone
    assert len(set(alone)) == len(alone)


def test_it_answers_in_english(runtime: kamado.Runtime, smollm2: Path) -> None:
    answer = runtime.load(smollm2).generate("What is the capital of France?", max_tokens=40)
    assert "Paris" in answer.text
    assert answer.usage.completion_tokens <= 40
