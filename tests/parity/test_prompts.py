"""Long and weighted prompts: what CLIP's encoders make of them, written out once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest

LARGEST_DIFFERENCE = 1e-4
CLEAR = 0.01
LONG = "one token for each letter, so this prompt is far longer than the seventy seven tokens which its model reads"
ROOM = 75
Parts = list[list[tuple[str, float]]]


def _request(name: str, **more: Any) -> dict[str, Any]:
    return {**tiny.arguments(name), "seed": 3, **more}


def _encoded(tokenizer: Any, encoder: Any, parts: Parts, chunks: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Chunk by chunk, as diffusers' pipelines take states from their encoders, times weights, means kept."""
    rows: list[tuple[list[int], list[float]]] = []
    for part in parts:
        tokens, weights = [], []
        for text, weight in part:
            ids = tokenizer(text, add_special_tokens=False).input_ids
            tokens, weights = tokens + ids, weights + [weight] * len(ids)
        for start in range(0, max(1, len(tokens)), ROOM):
            rows.append((tokens[start : start + ROOM], weights[start : start + ROOM]))
    rows += [([], [])] * (chunks - len(rows))
    states, pooled = [], None
    for tokens, weights in rows:
        pad = ROOM - len(tokens)
        ids = [tokenizer.bos_token_id, *tokens, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * pad]
        with torch.no_grad():
            output = encoder(torch.tensor([ids]), output_hidden_states=True)
        is_xl = hasattr(encoder, "text_projection") or encoder.is_first_of_two
        state = output.hidden_states[-2] if is_xl else output[0]
        scaled = state * torch.tensor([1.0, *weights, 1.0, *[1.0] * pad])[None, :, None]
        if any(weight != 1 for weight in weights):
            gain = state.mean() / scaled.mean()
            scaled = scaled * gain if 0.25 <= gain <= 4 else scaled
        states.append(scaled)
        pooled = output[0] if pooled is None and output[0].ndim == 2 else pooled
    return torch.cat(states, dim=1), pooled


def _wanted(folder: Path, prompt: Parts, negative: Parts, chunks: int, request: dict[str, Any]) -> Any:
    """diffusers' picture from embeddings that are made here."""
    pipeline = tiny.load(folder)
    is_xl = hasattr(pipeline, "text_encoder_2")
    pipeline.text_encoder.is_first_of_two = is_xl
    pairs = [(pipeline.tokenizer, pipeline.text_encoder)]
    pairs += [(pipeline.tokenizer_2, pipeline.text_encoder_2)] if is_xl else []
    given: dict[str, Any] = {}
    for prefix, parts in (("", prompt), ("negative_", negative)):
        found = [_encoded(*pair, parts, chunks) for pair in pairs]
        given[f"{prefix}prompt_embeds"] = torch.cat([states for states, _ in found], dim=-1)
        if is_xl:
            given[f"{prefix}pooled_prompt_embeds"] = found[-1][1]
    rest = {name: value for name, value in request.items() if name not in ("prompt", "negative_prompt", "weighting")}
    return tiny.call(pipeline, **rest, **given)[0]


def _difference(result: kamado.Result, wanted: Any) -> float:
    return float(numpy.abs(result.pixels[0] - wanted).max())


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sd15", {}),
        ("sd15", {"negative_prompt": tiny.NEGATIVE}),
        ("sdxl", {}),
        ("sdxl", {"negative_prompt": tiny.NEGATIVE, "clip_skip": 1}),
        ("sdxl", {"prompt_2": tiny.PROMPTS[1]}),
        ("sdxl-refiner", {}),
    ],
    ids=str,
)
def test_short_plain_prompts_are_as_ever(
    name: str, more: dict[str, Any], folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    model = runtime.load(folders[name])
    request = _request(name, **more)
    plain, weighted = model.generate(**request), model.generate(**request, weighting="a1111")
    assert numpy.array_equal(plain.pixels[0], weighted.pixels[0])
    assert weighted.recipe["options"]["weighting"] == "a1111"
    other = model.generate(**request | {"prompt": "(a dog)"}, weighting="a1111")
    assert _difference(other, plain.pixels[0]) > CLEAR


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "parts", "chunks"),
    [
        ("a (red:1.4) cat, [grey]", [[("a ", 1.0), ("red", 1.4), (" cat, ", 1.0), ("grey", 1 / 1.1)]], 1),
        (LONG, [[(LONG, 1.0)]], 2),
        (f"(a cat:1.3) {LONG}", [[("a cat", 1.3), (f" {LONG}", 1.0)]], 2),
        ("a cat BREAK (a dog)", [[("a cat ", 1.0)], [(" ", 1.0), ("a dog", 1.1)]], 2),
    ],
    ids=["weights", "long", "both", "break"],
)
def test_embeddings_are_those_of_the_method(
    name: str, prompt: str, parts: Parts, chunks: int, folders: dict[str, Path], runtime: kamado.Runtime
) -> None:
    request = _request(name, prompt=prompt, negative_prompt=tiny.NEGATIVE)
    wanted = _wanted(folders[name], parts, [[(tiny.NEGATIVE, 1.0)]], chunks, request)
    model = runtime.load(folders[name])
    result = model.generate(**request, weighting="a1111")
    assert _difference(result, wanted) < LARGEST_DIFFERENCE
    assert result.notes == ()
    assert _difference(model.generate(**request), wanted) > CLEAR, "without weighting it is read otherwise"


def test_the_shorter_prompt_is_filled_up(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = _request("sd15", negative_prompt=LONG)
    wanted = _wanted(folders["sd15"], [[(request["prompt"], 1.0)]], [[(LONG, 1.0)]], 2, request)
    assert (
        _difference(runtime.load(folders["sd15"]).generate(**request, weighting="a1111"), wanted) < LARGEST_DIFFERENCE
    )


def test_beside_other_requests_and_with_a_picture(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["sd15"])
    requests = [_request("sd15", weighting="a1111", prompt=text) for text in ("(a cat:1.2)", LONG, "a dog")]
    requests.append({**tiny.arguments("sd15", "img2img"), "seed": 4, "weighting": "a1111", "prompt": "a (cat)"})
    requests.append(_request("sd15"))
    alone = [model.generate(**request) for request in requests]
    for job, other in zip([model.submit(**request) for request in requests], alone, strict=True):
        assert _difference(job.result(), other.pixels[0]) < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_what_is_left_out_is_told(name: str, folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders[name])
    advice = "and this model reads 77: the rest was left out; weighting='a1111' reads all of it"
    letters = len(LONG.replace(" ", ""))
    assert model.generate(**_request(name, prompt=LONG)).notes == (f"the prompt has {letters + 2} tokens, {advice}",)
    notes = model.generate(**_request(name, prompt=LONG, negative_prompt=LONG + "!", n=2)).notes
    assert notes == (
        f"the prompt has {letters + 2} tokens, {advice}",
        f"the negative prompt has {letters + 3} tokens, {advice}",
    )
    assert model.generate(**_request(name)).notes == ()


def test_of_several_encoders_the_one_that_cuts_is_named(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(folders["flux"])
    (note,) = model.generate(**_request("flux", prompt=LONG, max_sequence_length=256)).notes
    assert note == "the prompt has 90 tokens, of which one text encoder (tokenizer) reads 77"
    (note,) = model.generate(**_request("flux", prompt=LONG, max_sequence_length=48)).notes
    assert note == "the prompt has 90 tokens, and this model reads 77: the rest was left out"


def test_what_cannot_be_weighted(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    with pytest.raises(InvalidRequest, match="by CLIP alone"):
        runtime.load(folders["flux"]).submit(**_request("flux", weighting="a1111"))
    with pytest.raises(InvalidRequest, match="by CLIP alone"):
        runtime.load(folders["dit"]).submit(**_request("dit", weighting="a1111"))
    model = runtime.load(folders["sd15"])
    with pytest.raises(InvalidRequest, match="'a1111'"):
        model.submit(**_request("sd15", weighting="compel"))
    with pytest.raises(InvalidRequest, match="weight 500"):
        model.submit(**_request("sd15", prompt="(a cat:500)", weighting="a1111"))
