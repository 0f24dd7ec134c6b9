"""Models that hear a recording piece by piece: what transformers' `generate` gives for each piece of a recording."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado_models.hearing.common import quiet_pieces
from kamado_models.hearing.loading import features_of
from tiny_hearing import RATE, moonshine, recording, seamless, speech_to_text
from tiny_hearing_more import moonshine_streaming, outside, prompted

BUILT: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    # name: (transformers' class, what writes it, what generate is told)
    "moonshine": ("MoonshineForConditionalGeneration", moonshine, {}),
    "moonshine_streaming": ("MoonshineStreamingForConditionalGeneration", moonshine_streaming, {}),
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
        more = {"pad_to_multiple_of": 80, "padding": True} if "streaming" in name else {}  # as its processor
        inputs = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **more)
        inputs = {key: inputs[key] for key in (oracle.main_input_name, "attention_mask")}
        limit = {"max_new_tokens": math.ceil(6.5 * len(samples) / RATE)} if "moonshine" in name else {}
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
    assert result.outputs[0].language == settings.get("tgt_lang")  # type: ignore[union-attr]


ASKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("canary", {}, {"source_language": "en"}),
    (
        "canary",
        {"language": "German", "target_language": "EN", "punctuation": False},
        {"source_language": "de", "target_language": "en", "punctuation": False},
    ),
    ("cohere_asr", {"language": "de"}, {"language": "de"}),
    ("cohere_asr", {"language": "en", "punctuation": False}, {"language": "en", "punctuation": False}),
]


@pytest.mark.parametrize(("name", "options", "settings"), ASKED)
def test_prompts_are_those_of_the_processor(
    name: str, options: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    folder = prompted(name, tmp_path)
    oracle = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)

    def said(samples: Any) -> str:
        if name == "canary":
            inputs = processor.apply_transcription_request(audio=samples, **settings)
        else:
            inputs = processor(audio=samples, sampling_rate=RATE, **settings)
        text: str = processor.decode(oracle.generate(**inputs)[0], skip_special_tokens=True)
        return text.strip()

    long = recording(7.0, 1)
    expected = [said(long[begin:end]) for begin, end in quiet_pieces(long, RATE, 3.0)]
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(folder)
        result = model.generate(audio=(long, RATE), window=3.0, **options)
        for _ in range(2):
            crowd = model.generate_many([{"audio": (long, RATE), "window": 3.0, **options}] * 3)
        for wrong, says in [
            ({"language": "xyz"}, "'xyz' is none of them"),
            ({"language": "en", "timestamps": "word"}, "does not know when words were said"),
            ({"language": "en", "target_language": "xyz"}, "'xyz' is none of bg, .* uk$|takes no target_language"),
        ]:
            with pytest.raises(kamado.InvalidRequest, match=says):
                model.generate(audio=(long, RATE), **wrong)
    assert [segment.text for segment in result.segments] == [text for text in expected if text]
    assert len(set(expected)) > 1 and all(each.segments == result.segments for each in crowd)
    written = settings.get("target_language") or settings.get("source_language") or settings["language"]
    assert result.outputs[0].language == written  # type: ignore[union-attr]


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
            ({}, "must be told the language to write, one of deu, eng; it was left out"),
            ({"language": "xyz"}, "'xyz' is none of them"),
            ({"language": "eng", "timestamps": "word"}, "does not know when words were said"),
            ({"language": "eng", "task": "translate"}, "takes no task"),
        ]:
            with pytest.raises(kamado.InvalidRequest, match=says):
                runtime.load(folder, request={"audio": (recording(1.0), RATE), **options})


LIES: list[tuple[str, str, Any, str]] = [
    # model type, file, what it says, what is said of that
    ("canary", "chat_template.jinja", "{{ raise_exception('no more') }}", "chat template refuses .*: no more"),
    ("canary", "chat_template.jinja", "{{ 'a' * 5000 }}", "chat template fails"),
    ("canary", "chat_template.jinja", None, "has no chat_template.jinja"),
    (
        "canary",
        "config.json",
        {"encoder_config": {"model_type": "parakeet_encoder", "hidden_size": -1}},
        "CanaryForConditionalGeneration cannot be loaded .*: math domain error",
    ),
    ("canary", "config.json", {"encoder_config": "large", "d_model": [1]}, "field 'encoder_config'"),
    ("cohere_asr", "config.json", {"hidden_size": 1 << 50, "num_hidden_layers": "many"}, "field 'num_hidden_layers'"),
    ("cohere_asr", "processor_config.json", {"max_audio_clip_s": 0.2, "overlap_chunk_second": 5.0}, "several pieces"),
    ("cohere_asr", "processor_config.json", {"max_audio_clip_s": "long"}, "max_audio_clip_s 'long'; 0 to"),
    ("cohere_asr", "processor_config.json", {"max_audio_clip_s": 10**399}, "max_audio_clip_s 1000.*; 0 to"),
    ("cohere_asr", "processor_config.json", {"max_audio_clip_s": math.nan}, "max_audio_clip_s nan; 0 to"),
    ("cohere_asr", "processor_config.json", {"overlap_chunk_second": -math.inf}, "overlap_chunk_second -inf; 0 to"),
]


@pytest.mark.parametrize(("name", "file", "values", "says"), LIES)
def test_files_that_lie_are_errors(name: str, file: str, values: Any, says: str, tmp_path: Path) -> None:
    folder = prompted(name, tmp_path)
    if values is None:
        (folder / file).unlink()
    elif isinstance(values, str):
        (folder / file).write_text(values)
    else:
        whole = json.loads((folder / file).read_text())
        inner = whole["feature_extractor"] if file.startswith("processor") else whole
        inner.update(values)
        (folder / file).write_text(json.dumps(whole))
    with (
        kamado.Runtime(device="cpu", memory="1GiB") as runtime,
        pytest.raises((kamado.InvalidRequest, kamado.UnsupportedCheckpoint, kamado.DoesNotFit), match=says),
    ):
        runtime.load(folder).generate(audio=(recording(2.0), RATE), language="en")


def test_processors_bring_no_models_of_other_places(tmp_path: Path) -> None:
    folder = prompted("canary", tmp_path)
    (folder / "processor_config.json").write_text(json.dumps(outside(folder)))
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        assert runtime.load(folder).generate(audio=(recording(2.0), RATE)).outputs


def test_a_shortage_of_memory_stays_one() -> None:
    class Extractor:
        sampling_rate = RATE

        def __call__(self, *_: Any, **__: Any) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        features_of(Extractor(), recording(1.0))
