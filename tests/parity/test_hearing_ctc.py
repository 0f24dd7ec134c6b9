"""Models that spell frame by frame: what transformers' pipeline gives, windows over long recordings included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
import tiny
import tiny_vision
from tiny_hearing import CTC, RATE, ctc, recording, seamless, whisper
from tiny_pipelines.spec import picture


@pytest.fixture(autouse=True)
def _as_pipelines_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def listening(folder: Path) -> Any:
    """transformers' pipeline."""
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, pipeline

    return pipeline(
        "automatic-speech-recognition",
        model=AutoModelForCTC.from_pretrained(folder).eval(),
        feature_extractor=AutoFeatureExtractor.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("name", sorted(CTC))
def test_text_and_words_are_those_of_the_pipeline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ctc(name, tmp_path / name)
    listen = listening(folder)
    if name == "parakeet_ctc":  # the pipeline believes that each sample gives a frame
        monkeypatch.setattr(type(listen), "_align_to", 1280)
    short, long = recording(1.3, 1), recording(7.0, 2)
    # Tokenizers of pieces tell no offsets.
    stamps = {} if name in ("parakeet_ctc", "lasr_ctc") else {"return_timestamps": "word"}
    expected = [listen(short.copy(), **stamps), listen(long.copy(), chunk_length_s=3.0, **stamps)]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        results = [
            model.generate(audio=(short, RATE), timestamps="word"),
            model.generate(audio=(long, RATE), timestamps="word", window=3.0),
        ]
    for result, wanted in zip(results, expected, strict=True):
        if name == "lasr_ctc":  # the pipeline keeps special tokens, which transformers' own examples leave out
            text = wanted["text"].replace("</s>", "").replace("<unk>", "")
            assert result.text.split() == text.split() and result.text
        else:
            assert result.text == wanted["text"].strip() and result.text
        assert all(0 <= word.start_s < word.end_s <= 7.1 for word in result.segments)
        if stamps:
            assert [word.text for word in result.segments] == [chunk["text"] for chunk in wanted["chunks"]]
            times = [(word.start_s, word.end_s) for word in result.segments]
            assert np.allclose(times, [chunk["timestamp"] for chunk in wanted["chunks"]])
        else:
            assert [word.text for word in result.segments] == result.text.split()
    assert len(results[1].segments) > 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ctc("hubert", tmp_path_factory.mktemp("hubert"))


def test_requests_share_windows_and_change_nothing(folder: Path) -> None:
    clips = [recording(seconds, seed) for seed, seconds in enumerate((30.0, 30.0, 29.0, 29.0))]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        alone = [model.generate(audio=(samples, RATE), window=1.0) for samples in clips]
        for _ in range(5):  # at first it is compared whether calls can be joined
            crowd = model.generate_many([{"audio": (samples, RATE), "window": 1.0} for samples in clips])
            if any(result.batched[0] for result in crowd):
                break
        together = model.generate(audio=[(samples, RATE) for samples in clips], window=1.0)
    assert [result.text for result in crowd] == [result.text for result in alone]
    assert [result.segments for result in crowd] == [result.segments for result in alone]
    assert [each.text for each in together.outputs] == [result.text for result in alone]  # type: ignore[union-attr]
    assert any(result.batched[0] for result in crowd)


def test_other_models_beside_it_change_nothing(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="transformers' class of MaskFormer wants it")
    heard = {"audio": (recording(5.0, 1), RATE)}
    asked: list[tuple[Path, dict[str, Any]]] = [
        (folder, heard),
        (ctc("sew-d", tmp_path / "sew-d"), heard),
        (ctc("unispeech", tmp_path / "unispeech"), heard),
        (whisper(tmp_path / "whisper", seed=5), heard),
        (seamless(tmp_path / "seamless", whole=True, version="v2"), {**heard, "language": "deu", "window": 2.0}),
        (tiny_vision.build("maskformer", tmp_path / "maskformer"), {"image": picture(64), "style": "map"}),
        (tiny.build("llama", tmp_path / "llama"), {"prompt": "a b c", "max_tokens": 24, "temperature": 0.0}),
    ]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        models = [(runtime.load(model), options) for model, options in asked]
        alone = [model.generate(**options) for model, options in models]
        jobs = [model.submit(**options) for _ in range(2) for model, options in models]
        beside = [job.result(timeout=120) for job in jobs]
    for result, wanted in zip(beside, alone * 2, strict=True):
        assert (result.text, result.segments) == (wanted.text, wanted.segments) and (result.text or result.images)
        for one, other in zip(result.images, wanted.images, strict=True):
            assert np.array_equal(one, other)


def test_lines_go_out_as_they_end_and_are_the_whole(folder: Path, tmp_path: Path) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        job = model.submit(audio=(recording(20.0, 3), RATE), window=4.0)
        events = [event for event in job.events() if isinstance(event, kamado.Media | kamado.Progress)]
        result = job.result()
        words = model.generate(audio=(recording(20.0, 3), RATE), window=4.0, timestamps="word").segments
        plain = model.generate(audio=(recording(20.0, 3), RATE), window=4.0, timestamps=False)
    parts = [event.data for event in events if isinstance(event, kamado.Media) and event.is_part]
    assert [part.segments[0] for part in parts] == list(result.segments) and len(parts) > 2
    first = next(i for i, event in enumerate(events) if isinstance(event, kamado.Media))
    assert any(isinstance(event, kamado.Progress) for event in events[first:])
    assert " ".join(part.text for part in parts).split() == [word.text for word in words]
    assert (plain.text, plain.segments) == (result.text, ())
    lines = [each for each in result.segments if " " in each.text]
    assert lines and all(each.end_s - each.start_s <= 7.0 and len(each.text) <= 84 for each in lines)
    [path] = result.save(tmp_path / "talk.srt")
    assert path.read_text().count(" --> ") == len(result.segments)


@pytest.mark.parametrize("seconds", [1 / RATE, 0.01])
def test_the_shortest_recordings(folder: Path, seconds: float) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        assert isinstance(model.generate(audio=(np.zeros(int(seconds * RATE), np.float32), RATE)).text, str)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a speech recognition model .* audio"),
        ({"audio": (recording(1.0), RATE), "language": "de"}, "takes no language"),
        ({"audio": (recording(1.0), RATE), "window": 0}, "window must be at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused(folder: Path, options: dict[str, Any], says: str) -> None:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime, pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(folder, request=options)
