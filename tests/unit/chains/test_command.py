"""`kamado chain`: what it prints can be opened from where it was typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kamado.chains.chain import Chain, ChainResult
from kamado.cli import chain
from kamado.results import Result
from typed import Kamado, typed

TOML = """
[[step]]
name = "idea"
model = "m"
prompt = "{topic}"
[[step]]
name = "sky"
model = "m"
prompt = "{idea}"
"""


@pytest.fixture
def kamado_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kamado:
    def made(self: Chain, runtime: object, inputs: list[dict[str, object]], **_: object) -> list[ChainResult]:
        results = {
            "idea": Result(request_id="r", choices=()),
            "sky": Result(request_id="r", images=(Image.new("RGB", (8, 8)),), seeds=(1,)),
        }
        return [ChainResult(index=index, inputs=each, results=results, errors={}) for index, each in enumerate(inputs)]

    monkeypatch.setattr(Chain, "map", made)
    monkeypatch.setattr(chain, "_check_models", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    Path("x.toml").write_text(TOML)
    return typed(monkeypatch, capsys)


def test_files_are_named_as_they_lie_from_here(kamado_command: Kamado) -> None:
    done = kamado_command("chain", "x.toml", "--input", "topic=rain", "-o", "out/deep")
    assert done.status == 0, done.err
    told = dict(line.split(": ", 1) for line in done.out.splitlines())
    assert told["sky"] == "out/deep/media/1.sky.png" and Path(told["sky"]).is_file()


def test_of_many_inputs_it_says_where_the_results_are(kamado_command: Kamado) -> None:
    Path("in.jsonl").write_text('{"topic": "rain"}\n{"topic": "sun"}\n')
    done = kamado_command("chain", "x.toml", "--inputs", "in.jsonl", "-o", "out")
    assert (done.status, done.out) == (0, "out/results.jsonl\n"), done.err
    assert len(Path("out/results.jsonl").read_text().splitlines()) == 2
    assert kamado_command("chain", "x.toml", "--inputs", "in.jsonl", "-o", "out", "-q").out == ""
