"""The real SmolLM2 file: every weight and the tokenizer, against transformers' own reading of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gguf_files
from kamado_models.language.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.slow

TEXTS = [
    "Hello world",
    "  leading   spaces\t\ttabs\n\n\nnew lines \r\n\r\n",
    "def f(x: int) -> str:\n    return f'{x**2:>8}'  # comment\n",
    "héllo wörld ñ 日本語 한국어 العربية हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 é \u200b\u3000",
    "1234567890 3.14159 1,000,000",
    "don't I'LL we've O'Brien",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|> x",
    "",
    " ",
    "\n",
    "\x00\x01\x7f",
    "a" * 3000,
    "http://x.y/z?a=b&c=%20",
    "ﬁx½",
]
"""Not: a space before a number that is no digit (` ½`). There transformers' GGUF tokenizer keeps the space with it,
against llama.cpp's rule for this vocabulary, by which every number stands alone."""


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.fixture(scope="module")
def ours(smollm2: Path) -> Tokenizer:
    return load_tokenizer(gguf_files.checkpoint_of(smollm2))


def test_weights_and_logits(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = gguf_files.load(gguf_files.checkpoint_of(smollm2))
    reference = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    expected, got = reference.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(got[key], expected[key])] == []
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = torch.arange(100, 140)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_same_tokens_and_the_text_comes_back(text: str, ours: Tokenizer, theirs: Any) -> None:
    ids = ours.encode(text, add_special=True)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special=False) == text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_space_before_a_number_stands_alone(ours: Tokenizer) -> None:
    assert [ours.decode([i]) for i in ours.encode("a 12", add_special=False)] == ["a", " ", "1", "2"]


def test_special_tokens(ours: Tokenizer) -> None:
    assert ours.eos_ids == {0, 2}
    assert (ours.bos_id, ours.vocab_size) == (1, 49152)
    assert ours.token_id("<|im_end|>") == 2 and ours.token_id("no such token") is None
    assert ours.decode([1, 28, 2]) == ours.decode([28])


def test_chat_prompts(ours: Tokenizer, theirs: Any) -> None:
    assert ours.has_chat_template
    for messages in (
        [{"role": "user", "content": "Why is the sky blue?"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé 😀 {{ 1 }}"}],
    ):
        for prompt in (True, False):
            text = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            assert ours.chat_text(messages, add_generation_prompt=prompt) == text
            assert ours.chat_prompt(messages, add_generation_prompt=prompt) == theirs(text)["input_ids"]
