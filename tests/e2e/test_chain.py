"""`kamado chain`, as typed: a picture, and another picture of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kamado.media.pictures import read_recipe

from .conftest import Kamado

CHAIN = """
[[step]]
name = "picture"
model = "emoji-diffusion:64"
prompt = "{thing}"
steps = 2
seed = 3

[[step]]
name = "again"
model = "emoji-diffusion:64"
prompt = "a panda"
image = "{picture}"
strength = 0.9
steps = 2
seed = 4
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "emoji.toml"
    path.write_text(CHAIN)
    return path


def test_each_step_leaves_its_file_and_its_line(quick: Kamado, chain: Path, tmp_path: Path) -> None:
    done = quick("chain", chain, "--input", "thing=a red heart", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    made = {name: tmp_path / f"out/media/1.{name}.png" for name in ("picture", "again")}
    assert done.stdout.decode().splitlines() == [f"{name}: {path}" for name, path in made.items()]
    (line,) = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert line["status"] == "ok" and line["inputs"] == {"thing": "a red heart"}
    for name in ("picture", "again"):
        file = tmp_path / "out" / line["steps"][name]["files"][0]
        assert Image.open(file).size == (64, 64)
        assert read_recipe(file)["model"]["reference"] == "emoji-diffusion:64"


def test_many_sets_go_on_where_they_were(quick: Kamado, chain: Path, tmp_path: Path) -> None:
    inputs, out = tmp_path / "things.jsonl", tmp_path / "out"
    inputs.write_text('{"id": "h", "thing": "a red heart"}\n\n{"thing": "a rocket"}\n')
    first = quick("chain", chain, "--inputs", inputs, "-o", out, "--json")
    assert json.loads(first.stdout) == {"results": str(out / "results.jsonl"), "sets": 2, "failed": 0}
    before = (out / "results.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in before.splitlines()] == ["h", "line-3"]
    journal = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (out / "journal.jsonl").write_bytes(b"".join(journal[:2]))  # as after a kill
    again = quick("chain", chain, "--inputs", inputs, "-o", out)
    assert b"going on after 1 of 2" in again.stderr
    assert (out / "results.jsonl").read_bytes() == before


def test_a_failing_step_is_told_and_the_status_says_so(quick: Kamado, chain: Path, tmp_path: Path) -> None:
    chain.write_text(CHAIN.replace("strength = 0.9", "strength = 9.0"))
    done = quick("chain", chain, "--input", "thing=a star", "-o", tmp_path / "out", "--json")
    assert done.returncode == 1
    steps = json.loads((tmp_path / "out/results.jsonl").read_text())["steps"]
    assert steps["picture"]["status"] == "ok" and "strength must be" in steps["again"]["error"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], b"lacks thing"),
        (["--input", "thing"], b"NAME=TEXT"),
        (["--input", "thing=a", "--input", "colour=b"], b"does not take colour"),
    ],
)
def test_wrong_inputs_are_one_line_before_anything_is_loaded(
    quick: Kamado, chain: Path, tmp_path: Path, args: list[str], says: bytes
) -> None:
    done = quick("chain", chain, *args, "-o", tmp_path / "out")
    assert done.returncode == 2 and says in done.stderr and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_chains_folder_is_left_alone(quick: Kamado, chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "journal.jsonl").write_text('{"kamado_batch": 1, "chain": "other"}\n')
    done = quick("chain", chain, "--input", "thing=a", "-o", out)
    assert done.returncode == 2, done.stderr
    assert (out / "journal.jsonl").read_text().count("other") == 1


def test_a_chain_that_cannot_be_run_writes_nothing(quick: Kamado, tmp_path: Path) -> None:
    file, lines, out = tmp_path / "chain.toml", tmp_path / "sets.jsonl", tmp_path / "out"
    file.write_text('[[step]]\nname = "a"\nmodel = "absent"\nprompt = "{thing}"\n')
    missing = quick("chain", file, "--input", "thing=x", "--offline", "-o", out)
    assert missing.returncode == 4 and b"absent" in missing.stderr
    lines.write_text('{"thing": "x"}\nno JSON\n')
    bad = quick("chain", file, "--inputs", lines, "--offline", "-o", out)
    assert bad.returncode == 2 and b"sets.jsonl, line 2: the line is not JSON" in bad.stderr
    nowhere = quick("chain", file, "--input", "thing=x", "--offline", "-o", lines / "out")
    assert nowhere.returncode == 2 and b"is a file; name another folder" in nowhere.stderr
    assert not out.exists()
