"""Damaged and hostile files of models that speak, and requests without an end: one clear error, nothing written."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import kamado
from kamado.cli.main import main
from kamado_models.speech import speaking

from .tiny_codec_models import write_fastspeech2
from .tiny_speech import write_bark, write_speecht5, write_vits, write_vocoder

ONE = "HH AH0 L OW1"
NUMBERS = {name: number for number, name in enumerate(["<blank>", "<unk>", "HH", "AH0", "L", "OW1", "<sos/eos>"])}


def changed(path: Path, *section: str, **values: Any) -> None:
    """Change values in a JSON file."""
    whole = json.loads(path.read_text())
    inner = whole
    for name in section:
        inner = inner[name]
    inner.update(values)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no phonemes in a file vocab.json"),
        ("{}", "no phonemes in a file vocab.json"),
        ("", "not valid JSON"),
        ('{"HH": 2,', "not valid JSON"),
        ('{"HH": 2, "HH": 3}', "the key 'HH' is there twice"),
        ("[1, 2]", "holds a JSON list"),
        (json.dumps({**NUMBERS, "HH": "2"}), "gives 'HH' the number '2'; the model has whole numbers from 0 to 11"),
        (json.dumps({**NUMBERS, "HH": 2.5}), "the number 2.5"),
        (json.dumps({**NUMBERS, "HH": True}), "the number True"),
        (json.dumps({**NUMBERS, "HH": None}), "the number None"),
        (json.dumps({**NUMBERS, "HH": -1}), "the number -1"),
        (json.dumps({**NUMBERS, "HH": 12}), "the number 12"),
        (json.dumps({**NUMBERS, "<sos/eos>": 10**30}), "the number 1000"),
    ],
)
def test_vocabularies_that_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, content: str | None, says: str
) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    folder = write_fastspeech2(tmp_path / "fast")[0]
    if content is None:
        (folder / "vocab.json").unlink()
    else:
        (folder / "vocab.json").write_text(content)
    target = tmp_path / "said.wav"
    assert main(["run", str(folder), "--option", f'phonemes="{ONE}"', "-o", str(target), "--device", "cpu"]) == 4
    told = " ".join(capsys.readouterr().err.split())
    assert says in told and "Traceback" not in told and not target.exists()


@pytest.mark.parametrize(
    ("section", "values", "says"),
    [
        ("model_config", {"speaking_speed": 0}, "speaking_speed"),
        ("model_config", {"speaking_speed": "fast"}, "speaking_speed"),
        ("model_config", {"encoder_layers": 10**6}, "has encoder_layers 1000000"),
        ("model_config", {"vocab_size": 5}, "vocab.json gives|do not fit"),
        ("model_config", {"num_mel_bins": 9}, "do not fit"),
        ("model_config", {"hidden_size": -16}, "cannot be loaded"),
        ("model_config", {"encoder_num_attention_heads": 0}, "config.json cannot be used"),
        ("vocoder_config", {"sampling_rate": 0}, "its sample rate is 0; it must be a whole number from 1000"),
        ("vocoder_config", {"sampling_rate": "x"}, "its sample rate is 'x'"),
        ("vocoder_config", {"sampling_rate": 10**12}, "its sample rate is 1000000000000"),
        ("vocoder_config", {"upsample_rates": [0, 2]}, r"upsample_rates is \[0, 2\]"),
        ("vocoder_config", {"resblock_dilation_sizes": [[1] * 1000]}, "resblock_dilation_sizes has more than 16"),
        ("vocoder_config", {"upsample_rates": [150, 150]}, r"make 2.25e\+04 samples of a frame"),
    ],
)
def test_configurations_that_are_hostile(
    runtime: kamado.Runtime, tmp_path: Path, section: str, values: dict[str, Any], says: str
) -> None:
    folder = write_fastspeech2(tmp_path / "fast")[0]
    changed(folder / "config.json", section, **values)
    with pytest.raises(kamado.UnsupportedCheckpoint, match=says):
        runtime.load(folder)


def test_a_vocoder_of_other_spectrograms(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_fastspeech2(tmp_path / "fast", whole=False)[0]
    other = write_vocoder(tmp_path / "other", bins=9)[0]
    changed(other / "config.json", architectures=["FastSpeech2ConformerHifiGan"], model_type="hifigan")
    with pytest.raises(kamado.InvalidRequest, match=r"takes 9 mel bins, and .* makes 8"):
        runtime.load(folder, components={"vocoder": other})


@pytest.mark.parametrize(
    ("speed", "bias", "says"),
    [
        (1.0, 30.0, "would speak for .* frames, and 5000 are the most"),
        (1.0, float("nan"), "durations are no finite numbers"),
        (1.0, 1e9, "durations are no finite numbers"),
        (float("inf"), 1.5, "durations are no finite numbers"),
        (1e12, 1.5, "would speak for"),
    ],
)
def test_absurd_durations(runtime: kamado.Runtime, tmp_path: Path, speed: float, bias: float, says: str) -> None:
    folder, own = write_fastspeech2(tmp_path / "fast")
    with torch.no_grad():
        own.model.duration_predictor.linear.bias.fill_(bias)
    own.save_pretrained(folder)
    changed(folder / "config.json", "model_config", speaking_speed=speed)
    with pytest.raises(kamado.GenerationFailed, match=says):
        runtime.load(folder).generate(phonemes=ONE)


def test_requests_that_are_too_long_leave_others_alone(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(write_fastspeech2(tmp_path / "fast")[0])
    alone = model.generate(phonemes=ONE, seed=1)
    slow, usual = model.submit(phonemes="HH " * 900, speed=0.1), model.submit(phonemes=ONE, seed=1)
    with pytest.raises(kamado.GenerationFailed, match="give shorter sentences, or a higher speed"):
        slow.result()
    assert numpy.abs(usual.result().audio - alone.audio).max() < 1e-4
    for phonemes, says in (
        ("HH " * 5000, "5001 phonemes, with the one that ends them, are too many at once; give 4999 at most"),
        ("<blank> <sos/eos>", "knows no phoneme of"),
        (" ", "phonemes is empty"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(phonemes=phonemes)


def test_words_become_phonemes(runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's tokenizer, with a dictionary of three words in place of g2p-en's."""
    import transformers.models.fastspeech2_conformer.tokenization_fastspeech2_conformer as library

    known = {"HELLO": ["HH", "AH0", "L", "OW1"], "WORLD": ["W", "ER1", "L", "D"], "ODD": ["XX"]}

    def spelled(text: str) -> list[str]:
        return [each for word in text.split() for each in known.get(word.strip("."), [])]

    monkeypatch.setitem(sys.modules, "g2p_en", SimpleNamespace(G2p=lambda: spelled))
    monkeypatch.setattr(library, "requires_backends", lambda *_: None)
    monkeypatch.setattr("kamado_models.speech.fastspeech2._reads_words", lambda: True)
    folder, own = write_fastspeech2(tmp_path / "fast")
    model = runtime.load(folder)
    tokens = library.FastSpeech2ConformerTokenizer.from_pretrained(folder)("hello world", return_tensors="pt").input_ids
    expected = own(tokens).waveform.detach().numpy()
    found = model.generate("hello world", seed=1)
    assert numpy.abs(found.audio - expected).max() < 1e-4
    assert model.generate("hello odd", seed=1).audio.size
    for prompt, says in (
        ("你好。", "knows no phoneme of '你好。'"),
        ("odd", "no phoneme of 'odd'"),
        ("", "prompt is empty"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(prompt)
    vocabulary = {name: number for name, number in NUMBERS.items() if name != "<unk>"}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(kamado.InvalidRequest, match="knows no phoneme 'XX'"), kamado.Runtime(device="cpu") as other:
        other.load(folder).generate("odd")


def test_vits_that_never_ends(runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = write_vits(tmp_path / "vits")[0]
    changed(folder / "config.json", speaking_rate=1e-9)
    with pytest.raises(kamado.GenerationFailed, match="600000 are the most of one piece"):
        runtime.load(folder).generate("hello", seed=1)


def test_sample_rates_of_other_kinds(runtime: kamado.Runtime, tmp_path: Path) -> None:
    vits = write_vits(tmp_path / "vits")[0]
    changed(vits / "config.json", sampling_rate=0)
    speecht5 = write_speecht5(tmp_path / "t5")[0]
    changed(write_vocoder(speecht5 / "vocoder")[0] / "config.json", sampling_rate=-1)
    bark = write_bark(tmp_path / "bark")[0]
    changed(bark / "generation_config.json", sample_rate=5)
    for folder in (vits, speecht5, bark):
        with pytest.raises(kamado.UnsupportedCheckpoint, match="its sample rate is"):
            runtime.load(folder)


def test_pauses_have_an_end(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = write_vits(tmp_path / "vits")[0]
    model = runtime.load(folder)
    text = "No! " * 400
    for options, says in (
        ({"pause": 60.0}, "399 pauses of 60 s are 6.65 hours of silence; 3 hours are the most"),
        ({"pause": 20.0, "n": 2}, "798 pauses of 20 s are 4.43 hours"),
    ):
        with pytest.raises(kamado.InvalidRequest, match=says):
            model.generate(text, **options)  # type: ignore[arg-type]
    status = main(["run", str(folder), text, "--option", "pause=60", "-o", str(tmp_path / "x.wav"), "--device", "cpu"])
    assert status == 2 and "hours of silence" in capsys.readouterr().err and not (tmp_path / "x.wav").exists()
    changed(folder / "config.json", sampling_rate=768_000)
    with kamado.Runtime(device="cpu") as other, pytest.raises(kamado.InvalidRequest, match=r"0.194 hours are the most"):
        other.load(folder).generate("No! " * 40, pause=30.0)
    monkeypatch.setattr(speaking, "LONGEST_S", 1)
    assert model.generate("Hello. You.", pause=0.1, seed=1).audio.shape[1] < 8000
    with pytest.raises(kamado.GenerationFailed, match=r"piece \d of 3 makes the answer longer"):
        model.generate("Hello there. You and me. All of us.", pause=0.5, seed=1)
