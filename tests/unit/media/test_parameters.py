"""The `parameters` text is read back by a parser that was written from the format's description."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.media.parameters import SAMPLERS, parameters_text
from media_recipes import ODD_RECIPES, RECIPE


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, fields): the last line holds `name: value` pairs between commas, a value may be a JSON
    string; the line that starts with "Negative prompt:" begins the negative prompt."""
    *lines, last = [line.strip() for line in text.strip().split("\n")]
    start = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = [line.removeprefix("Negative prompt:").strip() for line in lines[start : start + 1]] + lines[start + 1 :]
    fields: dict[str, str] = {}
    at = 0
    while at < len(last):
        name, _, _ = last[at:].partition(":")
        at += len(name) + 1
        at += len(last[at:]) - len(last[at:].lstrip())
        if last.startswith('"', at):
            value, end = json.JSONDecoder().raw_decode(last, at)
        else:
            end = at + len(last[at:].partition(",")[0])
            value = last[at:end]
        fields[name] = value
        assert last[end : end + 2] in ("", ", ")
        at = end + 2
    return "\n".join(lines[:start]), "\n".join(negative), fields


def test_the_usual_form() -> None:
    assert parameters_text(RECIPE) == (
        "a lighthouse at dusk, (oil:1.2)\nwide\n"
        "Negative prompt: blurry, low: quality\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, "
        "Model hash: 879db523c3, Model: dreamer_8, Version: Kamado 0.1.0"
    )


def lines(max_size: int) -> st.SearchStrategy[str]:
    """Text that the form can hold: no spaces at the ends of lines, no line that starts like the negative prompt."""
    line = st.text(max_size=30).map(lambda text: text.replace("\0", "").replace("\n", " ").strip())
    line = line.filter(lambda text: not text.startswith("Negative prompt:"))
    # Characters that `strip` knows as spaces may stay inside, where they do no harm.
    return st.lists(line, max_size=max_size).map("\n".join).filter(lambda text: text == text.strip())


NAMES = st.text(min_size=1, max_size=30).map(lambda text: text.replace("\0", "")).filter(lambda text: text != "")


@given(lines(4), lines(3), NAMES, NAMES, st.floats(0, 100), st.integers(0, 2**63))
def test_another_parser_reads_it(
    prompt: str, negative: str, model: str, scheduler: str, guidance: float, seed: int
) -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["model"] = {"reference": f"org/{model}"}
    recipe["options"] |= {"prompt": prompt, "negative": negative, "scheduler": scheduler, "guidance": guidance}
    recipe["options"] |= {"seed": seed, "strength": 0.75}
    found_prompt, found_negative, fields = parse(parameters_text(recipe))
    assert found_prompt == prompt
    assert found_negative == negative
    assert fields["Steps"] == "20"
    assert fields["Seed"] == str(seed)
    assert fields["Size"] == "512x768"
    assert float(fields["CFG scale"]) == guidance
    assert fields["Denoising strength"] == "0.75"
    assert fields["Version"] == "Kamado 0.1.0"
    if not model.lower().endswith((".safetensors", ".gguf")):
        assert fields["Model"] == f"org/{model}"
    if scheduler.lower() not in SAMPLERS:
        assert fields["Sampler"] == scheduler


def test_adapters_are_tags_and_hashes() -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["adapters"] = [
        {"reference": "/home/someone/loras/Ink, v2.safetensors", "weight": 0.8, "sha256": "ab" * 32},
        {"reference": "org/plain"},
    ]
    prompt, _, fields = parse(parameters_text(recipe))
    assert prompt == "a lighthouse at dusk, (oil:1.2)\nwide <lora:Ink_ v2:0.8><lora:org/plain:1>"
    assert fields["Lora hashes"] == "Ink_ v2: ababababab"


@pytest.mark.parametrize(
    ("reference", "files", "name", "digest"),
    [
        ("/home/someone/m/x.safetensors", {"x.safetensors": "12" * 32}, "x", "1212121212"),
        ("~/m/pipe", {"unet/x.safetensors": "12" * 32, "vae/x.safetensors": "34" * 32}, "pipe", None),
        ("./pipe", {}, "pipe", None),
        ("../pipe", {}, "pipe", None),
        ("C:\\models\\pipe", {}, "pipe", None),
        ("org/name", {"model_index.json": "12" * 32}, "org/name", None),
        ("pypi:package", {}, "pypi:package", None),
    ],
)
def test_what_a_model_is_called(reference: str, files: dict[str, str], name: str, digest: str | None) -> None:
    _, _, fields = parse(parameters_text({"model": {"reference": reference, "files": files}, "options": {"seed": 1}}))
    assert fields["Model"] == name
    assert fields.get("Model hash") == digest


def test_missing_fields_are_left_out() -> None:
    assert parameters_text({}) == "\nVersion: Kamado"
    assert parameters_text({"options": {"prompt": "x", "width": 5, "guidance": 7.5}}) == (
        "x\nCFG scale: 7.5, Version: Kamado"
    )


def test_schedulers_by_both_names() -> None:
    for name in ("euler-a", "EulerAncestralDiscreteScheduler"):
        assert "Sampler: Euler a," in parameters_text({"options": {"scheduler": name}})


def test_halves_of_characters_and_nul_cannot_break_a_file() -> None:
    text = parameters_text({"options": {"prompt": "a\ud800b\0c"}})
    assert text.startswith("a\ufffdbc\n")


@given(ODD_RECIPES)
def test_odd_recipes_raise_nothing(recipe: dict[str, Any]) -> None:
    parameters_text(recipe).encode()


def test_a_second_pass_in_their_words() -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["options"] |= {"hires": 2.0, "hires_strength": 0.4, "hires_steps": 12}
    _, _, fields = parse(parameters_text(recipe))
    names = ("Denoising strength", "Hires upscale", "Hires steps", "Hires upscaler")
    assert [fields[name] for name in names] == ["0.4", "2", "12", "Lanczos"]
    assert not {"Hires upscale", "Hires upscaler"} & parse(parameters_text(RECIPE))[2].keys()
