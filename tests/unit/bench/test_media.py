"""Figures of models that make neither text nor a diffusion model's picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kamado
import kamado.api
import kamado.bench.run
from kamado.bench.media import figures
from kamado.bench.options import BenchOptions
from kamado.bench.pictures import Prompted
from kamado.bench.run import bench
from kamado.bench.samples import Declared, medium, sample_request
from kamado.errors import InvalidRequest
from kamado.options import Options, anything, text
from kamado.outputs import Audio, Embedding, Picture, Scored, Scores, Transcript, Video
from tiny_autoencoders import saved
from tiny_pipelines import Folders
from tiny_pipelines.solids import marigold
from tiny_vectors import build
from typed import typed

from ..library_kinds.toy_kind import FAMILY, write_checkpoint


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


def test_figures_of_each_kind() -> None:
    sound = Audio(samples=np.zeros((1, 8000), np.float32), sample_rate=4000)
    clip = Video(frames=np.zeros((12, 4, 6, 3), np.uint8), fps=8.0)
    common: dict[str, Any] = {"heard_s": None, "tokens": 0}
    assert figures([sound, sound], 0.5, **common) == {"seconds": 4.0, "sample_rate": 4000, "real_time_factor": 8.0}
    assert figures([clip], 2.0, **common) == {"width": 6, "height": 4, "frames": 12, "frames_per_s": 6.0}
    assert figures([Picture(image=Image.new("RGB", (5, 3)))], 2.0, **common)["s_per_image"] == 2.0
    said = Transcript(text="x")
    assert figures([said], 2.0, heard_s=30.0, tokens=0) == {"seconds": 30.0, "real_time_factor": 15.0}
    assert figures([said], 2.0, **common)["real_time_factor"] is None
    found = figures([Embedding(vectors=np.zeros((3, 2)))], 0.5, heard_s=None, tokens=30)
    assert found == {"inputs": 3, "tokens": 30, "inputs_per_s": 6.0, "tokens_per_s": 60.0}
    scores = Scores(items=tuple(Scored(value="a", score=0.1, index=index) for index in (0, 1, 1)))
    assert figures([scores], 1.0, **common)["inputs_per_s"] == 2.0


def test_requests_that_nobody_has_made_before() -> None:
    told = Options(what="a model", checks={"prompt": text(), "image": anything}, inputs={"image": "image"})
    first, second = (sample_request(told, {}, {"steps": 3}, number) for number in (1, 2))
    assert first["prompt"] != second["prompt"] and (first["seed"], second["seed"]) == (1, 2) and first["steps"] == 3
    assert sample_request(told, {"prompt": "{number} a [MASK]"}, {}, 7)["prompt"] == "7 a [MASK]"
    assert sample_request(told, {"prompt": "a"}, {"prompt": "b", "seed": 9}, 7) == {"prompt": "b", "seed": 9}
    for kind, name, shape in (
        ("image", "size", (256, 256)),
        ("audio", "samples", (1, 160_000)),
        ("video", "frames", (8, 256, 256, 3)),
    ):
        takes = Options(what="a model", checks={"x": anything}, inputs={"x": kind}, needs=("x",))  # type: ignore[dict-item]
        found = getattr(sample_request(takes, {}, {}, 1)["x"], name)
        assert getattr(found, "shape", found) == shape
    assert medium("audio", 1).duration_s == 10.0


def test_a_model_that_makes_sound(runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kamado.api, "find", lambda checkpoint: FAMILY)
    monkeypatch.setattr(kamado.bench.run, "find", lambda checkpoint: FAMILY)
    told = bench(
        runtime,
        str(write_checkpoint(tmp_path / "hum")),
        BenchOptions(batches=(1, 2), reps=2, picture={"steps": 4}),
    )
    first, second = told.rows
    assert (first["test"], first["batch"], second["batch"], first["steps"]) == ("audio", 1, 2, 4)
    assert first["real_time_factor"] == pytest.approx(first["seconds"] / first["s_per_answer"], rel=1e-3)
    assert first["peak_memory_bytes"] > 0 and first["load_s"] > 0 and first["reps"] == 2 and first["steps_per_s"] > 0


@pytest.mark.parametrize(
    ("kind", "head", "settings", "test", "inputs"),
    [
        ("bert", "Model", {}, "embedding", 1),
        ("bert", "ForMaskedLM", {}, "scores", 1),
        ("bert", "ForSequenceClassification", {"num_labels": 1}, "scores", 8),
        ("bert", "ForSequenceClassification", {"num_labels": 3}, "scores", 1),
    ],
)
def test_models_that_make_vectors_and_scores(
    kind: str, head: str, settings: dict[str, Any], test: str, inputs: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    build(kind, head, tmp_path, **settings)
    run = typed(monkeypatch, capsys)
    done = run("bench", str(tmp_path), "--reps", "1", "-b", "1,4", "--json", stdin=b"")
    rows = json.loads(done.out)
    assert [(row["test"], row["batch"], row["inputs"]) for row in rows] == [(test, 1, inputs), (test, 4, inputs)]
    assert all(row["inputs_per_s"] > 0 and row["tokens_per_s"] > row["inputs_per_s"] for row in rows)
    assert rows[0]["steps"] is None
    table = run("bench", str(tmp_path), "--reps", "1", stdin=b"")
    assert table.status == 0 and "inputs/s" in table.out and table.out.splitlines()[-1].split()[3] == "32"
    refused = run("bench", str(tmp_path), "-p", "5", stdin=b"")
    assert refused.status == 2 and "-p has no meaning here" in refused.err


def test_a_file_of_noise_is_given_where_nothing_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def run_together(model: Any, requests: list[dict[str, Any]]) -> list[Any]:
        asked.extend(requests)
        if "image" not in requests[0]:
            raise InvalidRequest("give image")
        return []

    monkeypatch.setattr("kamado.bench.samples.run_together", run_together)
    told = Options(what="a model", checks={"image": anything, "x": anything}, inputs={"image": "image"}, needs=())
    requests = Declared(None, told, {}, {})  # type: ignore[arg-type]
    requests.run(1)
    requests.run(2)
    assert ["image" in each for each in asked] == [False, True, True, True]
    with pytest.raises(InvalidRequest, match="give image"):
        Declared(None, Options(what="a model", checks={}, needs=()), {}, {}).run(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "tried"),
    [
        ({"prompt"}, 1),
        (set(), 2),
        ({"prompt", "image"}, 3),
        ({"image"}, 4),
        ({"prompt", "image", "mask"}, 5),
        ({"prompt", "video"}, 6),
        ({"audio"}, None),
    ],
)
def test_a_pipeline_is_given_what_it_wants(
    wanted: set[str], tried: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def run_together(model: Any, requests: list[dict[str, Any]]) -> list[Any]:
        asked.extend(requests)
        if requests[0].keys() - {"seed", "steps"} != wanted:
            raise InvalidRequest(f"not {sorted(requests[0])}")
        return []

    monkeypatch.setattr("kamado.bench.pictures.run_together", run_together)
    requests = Prompted(None, {"steps": 2})  # type: ignore[arg-type]
    if tried is None:
        with pytest.raises(InvalidRequest, match=r"^not \['prompt', 'seed', 'steps'\]"):
            requests.run(1)
        return
    requests.run(1)
    requests.run(2)
    assert len(asked) == tried + 2 and [each["seed"] for each in asked[-3:]] == [1, 2, 3]


def test_a_pipeline_that_maps_pictures(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = marigold("Depth", tmp_path / "depth")
    (row,) = bench(runtime, str(folder), BenchOptions(batches=(1,), reps=1, picture={"steps": 1})).rows
    assert (row["test"], row["width"], row["height"], row["steps"]) == ("image", 256, 256, 1)


def test_an_autoencoder_is_measured_one_picture_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = saved("AutoencoderTiny", tmp_path)
    done = typed(monkeypatch, capsys)("bench", str(folder), "--reps", "1", "--json", stdin=b"")
    assert [(row["test"], row["batch"]) for row in json.loads(done.out)] == [("image", 1)]


def test_a_pipeline_that_makes_video(runtime: kamado.Runtime, folders: Folders) -> None:
    small = {"width": 32, "height": 32, "frames": 5, "steps": 2}
    (row,) = bench(runtime, str(folders["wan"]), BenchOptions(batches=(1,), reps=1, picture=small)).rows
    assert (row["test"], row["width"], row["frames"], row["steps"]) == ("video", 32, 5, 2)
    assert row["frames_per_s"] == pytest.approx(5 / row["s_per_answer"], rel=1e-3) and row["steps_per_s"] > 0
