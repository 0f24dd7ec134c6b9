"""Transducers: what transformers' `generate` gives for each piece of a recording, and its processor's times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado_models.hearing.common import quiet_pieces
from tiny_hearing import RATE, recording
from tiny_hearing_more import outside, transducer


@pytest.mark.parametrize("name", ["parakeet_tdt", "parakeet_rnnt"])
def test_each_piece_is_what_generate_gives(name: str, tmp_path: Path) -> None:
    import transformers

    folder = transducer(name, tmp_path)
    class_name = "ParakeetForTDT" if name == "parakeet_tdt" else "ParakeetForRNNT"
    oracle = getattr(transformers, class_name).from_pretrained(folder).eval()
    processor = transformers.ParakeetProcessor.from_pretrained(folder)

    def said(samples: Any) -> tuple[str, list[dict[str, Any]]]:
        made = oracle.generate(**processor(samples, sampling_rate=RATE))
        texts, times = processor.decode(made.sequences, durations=made.durations, skip_special_tokens=True)
        return texts[0].strip(), times[0]

    long = recording(4.0, 1)
    pieces = quiet_pieces(long, RATE, 2.0)
    expected = [said(long[begin:end]) for begin, end in pieces]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        assert model.tasks == ("automatic-speech-recognition",)
        words = model.generate(audio=(long, RATE), window=2.0, timestamps="word")
        lines = model.generate(audio=(long, RATE), window=2.0)
        plain = model.generate(audio=(long, RATE), window=2.0, timestamps=False)
        crowd = model.generate_many([{"audio": (long, RATE), "window": 2.0}] * 2)
        short = model.generate(audio=(np.zeros(1, np.float32), RATE))
        job = model.submit(audio=(long, RATE), window=2.0)
        parts = [event.data for event in job.events() if isinstance(event, kamado.Media) and event.is_part]
    text = " ".join(text for text, _ in expected if text)
    assert words.text == lines.text == plain.text == text and len(set(text)) > 3 and not plain.segments
    assert " ".join(segment.text for segment in words.segments).split() == text.split()
    # A word has its first token's beginning, and no token's end is after its own.
    starts = [
        begin / RATE + token["start"]
        for (begin, _), (_, tokens) in zip(pieces, expected, strict=True)
        for number, token in enumerate(tokens)
        if token["token"].strip() and (token["token"].startswith(" ") or number == 0)
    ]
    assert np.allclose([segment.start_s for segment in words.segments], starts, atol=1e-3)
    assert all(segment.start_s <= segment.end_s for segment in words.segments)
    assert " ".join(segment.text for segment in lines.segments) == " ".join(text.split())
    assert all(each.segments == lines.segments for each in crowd) and isinstance(short.text, str)
    assert [part.segments[0] for part in parts] == list(lines.segments)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = transducer("parakeet_tdt", tmp_path)
    heard = {"audio": (recording(1.0), RATE)}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for options, says in [({}, "give a speech recognition model .* audio"), ({**heard, "task": "x"}, "no task")]:
            with pytest.raises(kamado.InvalidRequest, match=says):
                runtime.load(folder, request=options)


LIES: list[tuple[str, dict[str, Any], str]] = [
    # file, what it says, what is said of that
    ("config.json", {"max_symbols_per_step": 1 << 40}, "max_symbols_per_step 1099511627776"),
    ("config.json", {"encoder_config": "large", "vocab_size": [1]}, "field 'vocab_size'"),
    ("config.json", {"durations": [9e9]}, "field 'durations'"),
    ("processor_config.json", {"blank_token": [1]}, r"processor_config.json has blank_token \[1\]"),
    ("processor_config.json", {"decoder_type": "rnn"}, "processor_config.json has decoder_type 'rnn'"),
]


@pytest.mark.parametrize(("file", "values", "says"), LIES)
def test_files_that_lie_are_errors(file: str, values: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = transducer("parakeet_tdt", tmp_path)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
    with (
        kamado.Runtime(device="cpu", memory="1GiB") as runtime,
        pytest.raises(kamado.UnsupportedCheckpoint, match=says),
    ):
        runtime.load(folder)


def test_processors_bring_no_models_of_other_places(tmp_path: Path) -> None:
    folder = transducer("parakeet_tdt", tmp_path)
    (folder / "processor_config.json").write_text(json.dumps(outside(folder)))
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        assert runtime.load(folder).generate(audio=(recording(1.0), RATE)).outputs
