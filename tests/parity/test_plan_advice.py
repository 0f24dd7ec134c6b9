"""What a plan that does not fit says would help, does: as many bytes as it says, and few enough."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import kamado
import tiny
from kamado.families import find
from kamado.memory.plan import Plan, PlanOptions
from kamado.units import format_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose weights and KV cache weigh some megabytes each."""
    return tiny.build(
        "llama",
        tmp_path_factory.mktemp("tiny") / "llama",
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        max_position_embeddings=4096,
    )


def _plan(reference: str | Path, budget: int, **asked: Any) -> Plan:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        checkpoint = runtime.inspect(reference)
    given = {"device": "cpu", "budget_bytes": budget, "good_dtypes": ("float32", "bfloat16"), "offload": "never"}
    features = ("avx2", "fma", "f16c")  # where quantized models have another KV cache
    options = PlanOptions(features=features, **{**given, **asked})
    return find(checkpoint).plan(checkpoint, options)


def _asked(sentence: str) -> dict[str, Any]:
    """The options that a sentence names, as PlanOptions has them."""
    from kamado.quant import parse_quant

    found: dict[str, Any] = {}
    for name, value in re.findall(r"--([a-z-]+) (\S+)", sentence):
        key = name.replace("-", "_")
        form = parse_quant(value) if key == "quant" else None
        found[key] = form.on("cpu") if form is not None else int(value) if key == "kv_tokens" else value
    return found


@pytest.mark.parametrize("kv_tokens", [None, 2000, 9000])
def test_what_is_said_to_fit_fits(folder: Path, kv_tokens: int | None) -> None:
    """For budgets from nearly enough down to nothing."""
    enough = _plan(folder, 2**30, kv_tokens=kv_tokens).minimum_bytes
    assert _plan(folder, enough, kv_tokens=kv_tokens).options == ()
    named: set[str] = set()
    for part in range(1, 20):
        budget = enough * part // 20
        *changes, last = _plan(folder, budget, kv_tokens=kv_tokens).options
        assert last == f"Give it --memory {-(-enough // 2**20)}MiB or more, or take a smaller model."
        for sentence in changes:
            asked = _asked(sentence)
            other = _plan(folder, budget, **{"kv_tokens": kv_tokens, **asked})
            named |= asked.keys()
            assert asked and other.minimum_bytes <= budget, sentence
            if "kv_tokens" not in asked:
                assert sentence.endswith(f" needs about {format_bytes(other.minimum_bytes)}."), sentence
    assert named >= {"dtype", "kv_dtype", "quant"}
    assert ("kv_tokens" in named) == (kv_tokens is not None)


def test_stated_tokens_beyond_the_context_count(folder: Path) -> None:
    """Tokens for many requests at once: what was asked for is what must fit."""
    one, two = _plan(folder, 2**30, kv_tokens=4096), _plan(folder, 2**30, kv_tokens=8192)
    assert two.minimum_bytes - one.minimum_bytes == 4096 * one.kv_bytes_per_token
    assert _plan(folder, one.minimum_bytes, kv_tokens=8192).options


def test_models_by_rows_are_not_offered_what_they_refuse(tmp_path: Path) -> None:
    folder = tiny.build("jamba", tmp_path / "jamba")
    enough = _plan(folder, 2**30).minimum_bytes
    offered = [sentence for part in range(1, 20) for sentence in _plan(folder, enough * part // 20).options]
    assert any("--quant" in sentence for sentence in offered)
    assert not any("--kv-dtype" in sentence for sentence in offered)


def test_what_was_asked_for_is_not_offered_again(folder: Path) -> None:
    from kamado.quant import parse_quant

    asked = {"kv_dtype": "fp8", "quant": parse_quant("int8"), "dtype": "float32"}
    enough = _plan(folder, 2**30, **asked).minimum_bytes
    for part in range(1, 20):
        for sentence in _plan(folder, enough * part // 20, **asked).options:
            assert "--kv-dtype" not in sentence and "--quant int8" not in sentence


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
def test_what_the_form_of_the_cache_rules_out_is_not_offered(kv_dtype: str, folder: Path) -> None:
    enough = _plan(folder, 2**30, kv_dtype=kv_dtype).minimum_bytes
    offered = [
        sentence for part in range(1, 20) for sentence in _plan(folder, enough * part // 20, kv_dtype=kv_dtype).options
    ]
    assert any("--kv-dtype int8" in sentence for sentence in offered)
    assert not any("--dtype" in sentence for sentence in offered)


def test_the_advice_is_in_the_error(folder: Path) -> None:
    enough = _plan(folder, 2**30).minimum_bytes
    with pytest.raises(kamado.DoesNotFit, match=r"--\S+ \S+ needs about ") as caught:
        _plan(folder, enough * 3 // 4).check()
    assert any(sentence.startswith("--quant int8 needs about") for sentence in caught.value.options)


def test_pictures(tmp_path: Path) -> None:
    """The emoji model: weights of a known size, of which only those that quantize get smaller."""
    enough = _plan("emoji-diffusion:64", 2**30).minimum_bytes
    said = [_plan("emoji-diffusion:64", enough * part // 40).options for part in range(1, 40)]
    assert all(options[-1].startswith(f"Allow {format_bytes(enough)} (--memory)") for options in said)
    for part, (*changes, _) in enumerate(said, start=1):
        for sentence in changes:
            other = _plan("emoji-diffusion:64", enough * part // 40, **_asked(sentence))
            assert other.minimum_bytes <= enough * part // 40
            assert sentence.endswith(f" needs about {format_bytes(other.minimum_bytes)}."), sentence
    assert {name for options in said for sentence in options for name in _asked(sentence)} >= {"quant"}
