"""How long prompts may be: refused before anything is made, and what is made can be saved."""

from __future__ import annotations

import pytest
from PIL import Image

from kamado.errors import InvalidRequest
from kamado.media.pictures import read_recipe, save_picture
from kamado.picture_requests import MAX_PROMPT_CHARACTERS, resolve_picture_options


@pytest.mark.parametrize("name", ["prompt", "negative", "negative_prompt", "scheduler"])
def test_a_longer_text_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(InvalidRequest, match="has 100001 characters; at most 100000") as caught:
        resolve_picture_options({name: "a" * (MAX_PROMPT_CHARACTERS + 1)})
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("ending", ["png", "webp"])
@pytest.mark.parametrize("character", ["a", "<", '"', "\\", "\n", "\N{PILE OF POO}"])
def test_a_picture_of_the_longest_prompts_can_be_saved(
    tmp_path_factory: pytest.TempPathFactory, character: str, ending: str
) -> None:
    text = character * MAX_PROMPT_CHARACTERS
    options = resolve_picture_options({"prompt": text, "negative": text})
    path = tmp_path_factory.mktemp("long") / f"x.{ending}"
    recipe = {"options": {"prompt": options.prompt, "negative": options.negative}}
    save_picture(Image.new("RGB", (8, 8)), path, recipe)
    assert read_recipe(path) == recipe
