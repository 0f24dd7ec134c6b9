"""Moonshine, Speech2Text and SeamlessM4T: what transformers' `generate` gives for each piece of a recording."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado_models.hearing.common import quiet_pieces
from tiny_hearing import RATE, moonshine, recording, seamless, speech_to_text

BUILT: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    # name: (transformers' class, what writes it, what generate is told)
    "moonshine": ("MoonshineForConditionalGeneration", moonshine, {}),
    "speech_to_text": ("Speech2TextForConditionalGeneration", speech_to_text, {}),
    "seamless": ("SeamlessM4TForSpeechToText", lambda folder: seamless(folder, whole=False), {"tgt_lang": "deu"}),
    "seamless-whole": ("SeamlessM4TForSpeechToText", lambda folder: seamless(folder, whole=True), {"tgt_lang": "eng"}),
    "seamless-v2": (
        "SeamlessM4Tv2ForSpeechToText",
        lambda folder: seamless(folder, whole=False, version="v2"),
        {"tgt_lang": "deu"},
    ),
    "seamless-v2-whole": (
        "SeamlessM4Tv2ForSpeechToText",
        lambda folder: seamless(folder, whole=True, version="v2"),
        {"tgt_lang": "eng"},
    ),
}


@pytest.mark.parametrize("name", sorted(BUILT))
def test_each_piece_is_what_generate_gives(name: str, tmp_path: Path) -> None:
    import transformers

    class_name, write, settings = BUILT[name]
    folder = write(tmp_path)
    oracle = getattr(transformers, class_name).from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def said(samples: Any) -> str:
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        inputs = {key: inputs[key] for key in (oracle.main_input_name, "attention_mask")}
        limit = {"max_new_tokens": math.ceil(6.5 * len(samples) / RATE)} if name == "moonshine" else {}
        text: str = tokenizer.decode(oracle.generate(**inputs, **settings, **limit)[0], skip_special_tokens=True)
        return text.strip()

    long = recording(7.0, 1)
    pieces = quiet_pieces(long, RATE, 3.0)
    expected = [said(long[begin:end]) for begin, end in pieces]
    options = {"language": settings["tgt_lang"]} if settings else {}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        assert model.tasks == ("automatic-speech-recognition",)
        result = model.generate(audio=(long, RATE), window=3.0, **options)
        whole = model.generate(audio=(recording(1.5), RATE), timestamps=False, **options)
        for _ in range(2):
            crowd = model.generate_many([{"audio": (long, RATE), "window": 3.0, **options}] * 3)
    assert [segment.text for segment in result.segments] == [text for text in expected if text]
    assert result.text == " ".join(text for text in expected if text) and result.text
    assert [(segment.start_s, segment.end_s) for segment in result.segments] == [
        (begin / RATE, end / RATE) for (begin, end), text in zip(pieces, expected, strict=True) if text
    ]
    assert (whole.text, whole.segments) == (said(recording(1.5)), ())
    assert all(each.segments == result.segments for each in crowd)


def test_cuts_are_where_it_is_quiet() -> None:
    samples = recording(20.0)
    pieces = quiet_pieces(samples, RATE, 6.0)
    assert pieces[0][0] == 0 and pieces[-1][1] == len(samples)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(pieces))
    assert all(4.0 <= (end - begin) / RATE <= 6.0 for begin, end in pieces[:-1])
    assert all(np.abs(samples[end - 400 : end + 400]).max() < 0.05 for _, end in pieces[:-1])
    assert quiet_pieces(samples, RATE, 30.0) == [(0, len(samples))]


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = seamless(tmp_path, whole=False)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for options, says in [
            ({}, "must be told the language to write, one of deu, eng, ...; it was left out"),
            ({"language": "xyz"}, "'xyz' is none of them"),
            ({"language": "eng", "timestamps": "word"}, "does not know when words were said"),
            ({"language": "eng", "task": "translate"}, "takes no task"),
        ]:
            with pytest.raises(kamado.InvalidRequest, match=says):
                runtime.load(folder, request={"audio": (recording(1.0), RATE), **options})
