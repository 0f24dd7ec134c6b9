"""Whisper: what transformers' own long-form `generate` gives, alone and beside other requests."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kamado
from kamado.outputs import Audio, Segment
from tiny_hearing import RATE, recording, whisper


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper(tmp_path_factory.mktemp("whisper"), seed=5)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[kamado.Model]:
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        yield runtime.load(folder)


class Oracle:
    """transformers alone."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

        self.model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.extractor = AutoFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, samples: NDArray[Any], **settings: Any) -> tuple[str, list[Segment]]:
        long = {"truncation": False, "padding": "longest"} if len(samples) > self.extractor.n_samples else {}
        features = self.extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **long)
        settings = {"task": "transcribe", "return_timestamps": True} | settings
        made = self.model.generate(**features, return_segments=True, **settings)
        return self.text(made["sequences"][0]), [
            Segment(start_s=float(each["start"]), end_s=float(each["end"]), text=self.text(each["tokens"]))
            for each in made["segments"][0]
        ]

    def text(self, tokens: Any) -> str:
        found: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return found.strip()


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.3])
def test_text_and_segments_are_those_of_the_library(model: kamado.Model, oracle: Oracle, seconds: float) -> None:
    samples = recording(seconds)
    text, segments = oracle(samples)
    result = model.generate(audio=(samples, RATE))
    assert (result.text, list(result.segments)) == (text, segments)
    assert text and segments


def test_without_time_stamps_one_window_is_decoded_at_once(model: kamado.Model, oracle: Oracle) -> None:
    text, _ = oracle(recording(1.5), return_timestamps=False)
    result = model.generate(audio=(recording(1.5), RATE), timestamps=False)
    assert (result.text, result.segments) == (text, ())


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"language": "de"}, {"language": "de"}),
        ({"language": "German", "task": "translate"}, {"language": "de", "task": "translate"}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"condition_on_previous": True}, {"condition_on_prev_tokens": True}),
        ({"prompt": "ab"}, {"prompt_ids": "ab"}),
        ({"prompt": "ab", "condition_on_previous": True}, {"prompt_ids": "ab", "condition_on_prev_tokens": True}),
    ],
)
def test_options_are_those_of_the_library(
    model: kamado.Model, oracle: Oracle, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    if "prompt_ids" in settings:
        settings = settings | {"prompt_ids": oracle.tokenizer.get_prompt_ids("ab", return_tensors="pt")}
    text, segments = oracle(recording(5.0, 1), **settings)
    result = model.generate(audio=(recording(5.0, 1), RATE), **options)
    assert (result.text, list(result.segments)) == (text, segments)


def test_words_have_the_times_of_the_library_pipeline(
    model: kamado.Model, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import pipeline

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # pipelines set it
    samples = recording(5.0, 2)
    before, own = oracle.model.config._attn_implementation, copy.deepcopy(oracle.model.generation_config)
    listen = pipeline(
        "automatic-speech-recognition",
        model=oracle.model,
        feature_extractor=oracle.extractor,
        tokenizer=oracle.tokenizer,
    )
    settings = {"task": "transcribe", "num_beams": 1, "generation_config": copy.deepcopy(own)}
    found = listen(samples, return_timestamps="word", generate_kwargs=settings)
    oracle.model.config._attn_implementation, oracle.model.generation_config = before, own  # pipelines change them
    expected = [(chunk["text"].strip(), *chunk["timestamp"]) for chunk in found["chunks"] if chunk["text"].strip()]
    both = model.generate_many(
        [{"audio": (samples, RATE), "timestamps": "word"}, {"audio": (samples, RATE), "timestamps": True}]
    )
    assert [(word.text, word.start_s, word.end_s) for word in both[0].segments] == expected and expected
    assert both[0].text == found["text"].strip()
    assert list(both[1].segments) == oracle(samples)[1]  # its attention is as fast as ever


def test_fallback_is_the_librarys_and_draws_from_the_seed(model: kamado.Model, oracle: Oracle) -> None:
    samples = recording(3.0, 1)
    before = torch.get_rng_state()
    results = [model.generate(audio=(samples, RATE), fallback=True, seed=seed, max_tokens=12) for seed in (3, 4)]
    assert torch.equal(before, torch.get_rng_state())
    assert results[0].segments != results[1].segments
    from kamado_models.language.own_draws import OwnDraws

    with OwnDraws(3):
        text, segments = oracle(
            samples, temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0), logprob_threshold=-1.0,
            compression_ratio_threshold=1.35, no_speech_threshold=0.6, max_new_tokens=12,
        )  # fmt: skip
    assert (results[0].text, list(results[0].segments)) == (text, segments)


def test_requests_share_encoder_calls_and_change_nothing(model: kamado.Model, oracle: Oracle) -> None:
    clips = [recording(seconds, seed) for seed, seconds in enumerate((1.0, 2.0, 3.5, 0.4))]
    expected = [oracle(samples) for samples in clips]
    batched = False
    for _ in range(10):  # at first it is compared whether calls can be joined
        results = model.generate_many([{"audio": (samples, RATE)} for samples in clips])
        assert [(result.text, list(result.segments)) for result in results] == expected
        batched = batched or any(result.batched[0] for result in results)
        if batched:
            break
    assert batched
    together = model.generate(audio=[Audio(samples=samples[None], sample_rate=RATE) for samples in clips])
    assert [(each.text, list(each.segments)) for each in together.outputs] == expected  # type: ignore[union-attr]


def test_segments_go_out_as_they_are_heard(model: kamado.Model) -> None:
    job = model.submit(audio=(recording(7.0), RATE))
    events = list(job.events())
    parts = [event.data for event in events if isinstance(event, kamado.Media) and event.is_part]
    whole = job.result().outputs[0]
    assert [part.segments[0] for part in parts] == list(whole.segments)  # type: ignore[union-attr]
    first = next(i for i, event in enumerate(events) if isinstance(event, kamado.Media))
    assert any(isinstance(event, kamado.Progress) for event in events[first:])  # more windows came after it


def test_the_language_is_told(model: kamado.Model) -> None:
    transcript = model.generate(audio=(recording(1.0), RATE), language="french").outputs[0]
    assert transcript.language == "fr"  # type: ignore[union-attr]
    translated = model.generate(audio=(recording(1.0), RATE), language="french", task="translate").outputs[0]
    assert translated.language == "en"  # type: ignore[union-attr]
    assert model.generate(audio=(recording(1.0), RATE)).outputs[0].language in ("en", "de", "fr")  # type: ignore[union-attr]


def test_other_rates_and_channels_and_files(model: kamado.Model, tmp_path: Path) -> None:
    samples = (recording(1.0) * 32767).astype(np.int16)
    path = tmp_path / "talk.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    expected = model.generate(audio=(samples, RATE))
    for source in (path, str(path), path.read_bytes(), (np.stack([samples, samples]), RATE)):
        assert model.generate(audio=source).segments == expected.segments
    assert model.generate(audio=(recording(1.0, rate=44_100), 44_100)).text


def test_subtitles(model: kamado.Model, tmp_path: Path) -> None:
    result = model.generate(audio=(recording(5.0), RATE), seed=1)
    for suffix in ("srt", "vtt", "txt", "json"):
        result.save(tmp_path / f"talk.{suffix}")
    assert (tmp_path / "talk.srt").read_text().startswith("1\n00:00:00")
    assert (tmp_path / "talk.vtt").read_text().startswith("WEBVTT\n")
    document = json.loads((tmp_path / "talk.json").read_text())
    assert document["text"] == result.text and len(document["segments"]) == len(result.segments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a Whisper model audio"),
        ({"audio": (np.zeros(0, np.float32), RATE)}, "empty"),
        ({"audio": (recording(1.0), 0)}, "0 Hz"),
        ({"audio": (np.full(16000, np.nan, np.float32), RATE)}, "NaN"),
        ({"audio": []}, "1 to 1024 recordings"),
        ({"audio": "missing.wav"}, "missing.wav"),
        ({"audio": b"not a sound"}, "sound"),
        ({"audio": (recording(1.0), RATE), "language": "xx"}, "language 'xx' is none of this model's: de, en, fr"),
        ({"audio": (recording(1.0), RATE), "task": "sing"}, "task must be one of transcribe, translate"),
        ({"audio": (recording(1.0), RATE), "timestamps": "char"}, "timestamps must be"),
        ({"audio": (recording(3.0), RATE), "timestamps": False}, "longer than this model's window of 2 s"),
        ({"audio": (recording(1.0), RATE), "prompt": "a" * 40}, "the prompt has 42 tokens; this model takes 29"),
        ({"audio": (recording(1.0), RATE), "max_tokens": 100}, "max_tokens must be at most 56"),
        ({"audio": (recording(1.0), RATE), "voice": "bob"}, "takes no voice"),
    ],
)
def test_what_cannot_be_heard_is_refused(model: kamado.Model, options: dict[str, Any], says: str) -> None:
    with pytest.raises(kamado.InvalidRequest, match=says):
        model.generate(**options)


def test_silence_is_heard(model: kamado.Model, oracle: Oracle) -> None:
    silence = np.zeros(RATE, np.float32)
    assert model.generate(audio=(silence, RATE)).text == oracle(silence)[0]


def test_a_whisper_of_english_alone(tmp_path: Path) -> None:
    folder = whisper(tmp_path / "en", multilingual=False, alignment=False, seed=5)
    text, segments = Oracle(folder)(recording(3.0), task=None)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        for options, says in [
            ({"language": "de"}, "English alone"),
            ({"task": "translate"}, "English alone"),
            ({"timestamps": "word"}, "alignment_heads"),
        ]:
            with pytest.raises(kamado.InvalidRequest, match=says):
                runtime.load(folder, request={"audio": (recording(1.0), RATE), **options})
        assert runtime.stats()["held_bytes"] == 0
        model = runtime.load(folder)
        result = model.generate(audio=(recording(3.0), RATE), language="en")
        assert (result.text, list(result.segments)) == (text, segments)
        assert result.outputs[0].language == "en"  # type: ignore[union-attr]


def test_a_model_larger_than_the_memory(folder: Path, model: kamado.Model) -> None:
    expected = model.generate(audio=(recording(3.0), RATE))
    with kamado.Runtime(device="cpu", memory=1000) as runtime, pytest.raises(kamado.DoesNotFit) as raised:
        runtime.load(folder)
    with kamado.Runtime(device="cpu", memory=raised.value.needed_bytes) as runtime:
        small = runtime.load(folder)
        assert runtime.plan(folder).outside_bytes
        assert small.generate(audio=(recording(3.0), RATE)).segments == expected.segments


def test_plan_and_tasks(folder: Path, model: kamado.Model) -> None:
    assert (model.tasks, model.capabilities) == (("automatic-speech-recognition",), ("transcript",))
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        plan = runtime.plan(folder)
        assert plan.family == "hearing" and [lane.lane for lane in plan.lanes] == ["encoder", "model"]
        loaded = runtime.load(folder)
        assert runtime.stats()["held_bytes"] == pytest.approx(plan.total_bytes, rel=0.01)
        loaded.unload()
        assert runtime.stats()["held_bytes"] == 0


def changed(folder: Path, target: Path, settings: dict[str, Any] | None) -> Path:
    """A copy whose generation settings are `settings`; None: without."""
    shutil.copytree(folder, target)
    (target / "generation_config.json").unlink()
    if settings is not None:
        (target / "generation_config.json").write_text(json.dumps(settings))
    return target


LACKS: list[tuple[str, Any, dict[str, Any], str]] = [
    # what is changed, to what (... : left out), what is asked, what is said
    ("lang_to_id", ..., {"language": "de"}, "language 'de': .* no usable lang_to_id; fetch the file"),
    ("lang_to_id", {"<|de|>": 1 << 40}, {"language": "de"}, "no usable lang_to_id"),
    ("lang_to_id", ["<|de|>"], {"task": "translate"}, "no usable lang_to_id"),
    ("task_to_id", ..., {"task": "translate"}, "task translate: .* no usable task_to_id"),
    ("task_to_id", {"transcribe": 1}, {"task": "translate"}, "no usable task_to_id"),
    ("no_timestamps_token_id", ..., {"timestamps": True}, "no usable no_timestamps_token_id; .* timestamps=false"),
    ("no_timestamps_token_id", None, {"timestamps": "word"}, "no usable no_timestamps_token_id"),
    ("no_timestamps_token_id", 1 << 40, {"fallback": True}, "fallback: .* no usable no_timestamps_token_id"),
    ("alignment_heads", [[0, 2]], {"timestamps": "word"}, "no usable alignment_heads; .* timestamps=true"),
    ("alignment_heads", "all", {"timestamps": "word"}, "no usable alignment_heads"),
]


@pytest.mark.parametrize(("name", "value", "options", "says"), LACKS)
def test_what_generation_settings_lack_is_named(
    folder: Path, tmp_path: Path, name: str, value: Any, options: dict[str, Any], says: str
) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {name: value}
    if value is ...:
        del settings[name]
    less = changed(folder, tmp_path / "less", settings)
    heard = {"audio": (recording(1.0), RATE)}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        with pytest.raises(kamado.InvalidRequest, match=says):
            runtime.load(less, request={**heard, **options})
        assert isinstance(runtime.load(less).generate(**heard).text, str)


def test_without_generation_settings(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder, tmp_path / "bare", None)
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        model = runtime.load(bare)
        for seconds, options in ((1.0, {"language": "de"}), (1.0, {"timestamps": True}), (3.0, {})):
            with pytest.raises(kamado.InvalidRequest, match=r"no generation_config\.json, .*; fetch it, or "):
                model.generate(audio=(recording(seconds), RATE), **options)
        result = model.generate(audio=(recording(1.0), RATE))
    assert result.segments == () and result.outputs[0].language is None  # type: ignore[union-attr]


def test_settings_that_say_they_were_made_of_the_configuration(
    folder: Path, tmp_path: Path, model: kamado.Model
) -> None:
    settings = json.loads((folder / "generation_config.json").read_text())
    derived = changed(folder, tmp_path / "derived", settings | {"_from_model_config": True})
    heard = {"audio": (recording(3.0), RATE), "language": "de", "timestamps": "word"}
    with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
        assert runtime.load(derived).generate(**heard).segments == model.generate(**heard).segments


def test_the_library_has_nothing_to_warn_of(folder: Path, tmp_path: Path) -> None:
    from transformers.utils import logging as transformers_logging

    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    english = whisper(tmp_path / "en", multilingual=False, alignment=False, seed=5)
    settings = json.loads((english / "generation_config.json").read_text())
    old = {"forced_decoder_ids": [[1, settings["no_timestamps_token_id"]]]}  # as the first checkpoints had it
    early = changed(english, tmp_path / "early", settings | old)
    (early / "config.json").write_text(json.dumps(json.loads((early / "config.json").read_text()) | old))
    transformers_logging.warning_once.cache_clear()
    logger.addHandler(listener)
    try:
        with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
            many, one = runtime.load(folder), runtime.load(early)
            for options in ({}, {"max_tokens": 5}, {"timestamps": False}, {"timestamps": "word"}, {"fallback": True}):
                many.generate(audio=(recording(1.5), RATE), **options)
            told = one.generate(audio=(recording(1.5), RATE), timestamps=False)
            plain = runtime.load(english).generate(audio=(recording(1.5), RATE), timestamps=False)
    finally:
        logger.removeHandler(listener)
    assert said == [] and told.text == plain.text
