"""all-MiniLM-L6-v2 for real: its vectors against transformers' network and the mean of its states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

import kamado
from typed import typed

pytestmark = pytest.mark.slow

SENTENCES = [
    "A man is playing a guitar.",
    "Somebody plays an instrument.",
    "The price of oil fell again today.",
    "Crude became cheaper once more.",
    "guitar " * 400,
]


def test_vectors_are_those_of_the_library(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    words, network = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    given = words(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = network(**given)[0]
    mask = given["attention_mask"].unsqueeze(-1).float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load("minilm:l6")
        found = model.generate(SENTENCES)
        crowd = model.generate_many([{"prompt": each} for each in SENTENCES * 4])
    numpy.testing.assert_allclose(found.embedding, expected, atol=1e-5)
    numpy.testing.assert_allclose([each.embedding for each in crowd], numpy.tile(expected, (4, 1)), atol=1e-5)
    assert any(any(each.batched) for each in crowd)
    alike = found.embedding @ found.embedding.T
    assert min(alike[0, 1], alike[2, 3]) > 0.4 > 0.2 > max(alike[0, 2], alike[1, 3])


def test_the_command_line_prints_and_writes_vectors(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = typed(monkeypatch, capsys)
    done = run("run", "minilm:l6", "a sentence", stdin=b"")
    printed = [float(each) for each in done.out.split()]
    assert done.status == 0 and len(printed) == 384
    for suffix in (".json", ".npy", ".safetensors"):
        assert run("run", "minilm:l6", "a sentence", "-o", str(tmp_path / f"v{suffix}"), stdin=b"").status == 0
    written = numpy.load(tmp_path / "v.npy", allow_pickle=False)
    numpy.testing.assert_allclose(written, [printed], rtol=1e-4)
    numpy.testing.assert_allclose(json.loads((tmp_path / "v.json").read_text())["embedding"], written[0])
