"""The small files beside the weights come from strangers: too large, too deep or ambiguous ones are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kamado
import tiny
from kamado.checkpoint.inspect import inspect
from kamado.errors import UnsupportedCheckpoint
from kamado_models.language.tokenizer import load_tokenizer

DEEP = '{"a": ' + "[" * 500 + "]" * 500 + "}"
TWICE = '{"eos_token_id": 1, "eos_token_id": 2}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("side") / "llama")


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", [DEEP, TWICE, "[1]", "{"])
def test_hostile_settings(name: str, content: str, folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    write(mine, name, content)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime, pytest.raises(UnsupportedCheckpoint, match=name):
        runtime.load(mine)


@pytest.mark.parametrize("content", ['{"a": [0]}', '{"a": true, "b": 0}', '{"a": 0, "a": 0}', '{"a": 1}', "[]"])
def test_hostile_vocabularies(content: str, folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    (mine / "tokenizer.json").unlink()
    write(mine, "vocab.json", content)
    write(mine, "merges.txt", "#version: 0.2\n")
    write(mine, "tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(UnsupportedCheckpoint, match=r"vocab\.json"):
        load_tokenizer(inspect(mine))


def test_an_endless_chat_template(folder: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    write(mine, "chat_template.jinja", "x" * (5 << 20))
    with pytest.raises(UnsupportedCheckpoint, match="larger than"):
        load_tokenizer(inspect(mine))
