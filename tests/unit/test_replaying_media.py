"""Sounds, videos, meshes, notes and documents made again from their recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kamado.errors import InvalidRequest
from kamado.media.compare import compare_outputs
from kamado.media.inputs import described_media
from kamado.media.reading import keeps_output, kind_of_file
from kamado.media.recipes import read_recipe
from kamado.media.saving import save_output
from kamado.options import Options, anything
from kamado.outputs import KINDS, Audio, Embedding, Mesh, Note, Picture, Score, Segment, Transcript, Video
from kamado.replaying import Replay, Replayable, replayable
from kamado.results import Result
from media_outputs import clip, melody, tetrahedron, tone

RECIPE: dict[str, Any] = {
    "kamado": "0.1.0",
    "model": {"reference": "fake", "revision": None, "files": {"a.safetensors": "00"}},
    "options": {"prompt": "la la", "steps": 3, "n": 1, "seed": 7},
    "device": "cpu",
    "dtype": "float32",
    "quant": "none",
}
SAID = Transcript(text="Hello", segments=(Segment(start_s=0, end_s=1.5, text="Hello"),), language="en")
EXACT = [(tone(), ".wav"), (tone(), ".flac"), (tetrahedron(), ".glb"), (tetrahedron(), ".ply"), (melody(), ".mid")]
EXACT += [(SAID, ".json"), (SAID, ".vtt"), (Embedding(vectors=np.ones((1, 4), np.float32)), ".json")]
EXACT += [(Embedding(vectors=np.arange(24, dtype=np.float32).reshape(1, 24), shape=(2, 3, 4)), ".safetensors")]
LOSSY = [(tone(), ".ogg"), (tone(), ".mp3"), (clip(audio=tone()), ".mp4"), (clip(), ".webm"), (clip(), ".gif")]
LOSSY += [(clip(), ".webp"), (tetrahedron(), ".obj")]


def made(output: Any, **changes: Any) -> Result:
    return Result(request_id="r", outputs=(output,), seeds=(7,), batched=(False,), recipe={**RECIPE, **changes})


def save(path: Path, output: Any, **changes: Any) -> Path:
    save_output(output, path, {**RECIPE, **changes})
    return path


def again(found: Replayable, output: Any, **changes: Any) -> Replay:
    return found.finish(made(output, **changes))


def other(output: Any) -> Any:
    """Something else of the kind and size."""
    if isinstance(output, Audio):
        return replace(output, samples=output.samples * np.float32(0.5))
    if isinstance(output, Video):
        return replace(output, frames=255 - output.frames)
    if isinstance(output, Mesh):
        return replace(output, vertices=output.vertices + np.float32([0, 0, 1]) * (output.vertices[:, :1] > 0))
    if isinstance(output, Score):
        return Score(notes=(replace(output.notes[0], pitch=61), *output.notes[1:]))
    if isinstance(output, Transcript):
        return Transcript(text="Hallo", segments=(Segment(start_s=0, end_s=1.5, text="Hallo"),), language="en")
    return replace(output, vectors=output.vectors * 2)


@pytest.mark.parametrize(("output", "suffix"), EXACT, ids=[f"{type(one).__name__}{suffix}" for one, suffix in EXACT])
def test_without_loss(tmp_path: Path, output: Any, suffix: str) -> None:
    source = save(tmp_path / f"x{suffix}", output)
    found = replayable(source)
    assert dict(found.options) == {"prompt": "la la", "steps": 3, "seed": 7}
    found.check_makes([KINDS[type(output)]])
    done = again(found, output)
    assert done.equal is True and done.as_expected and done.path == tmp_path / f"x-replay{suffix}"
    assert read_recipe(done.path) == read_recipe(source)
    assert done.path.read_bytes() == source.read_bytes()
    changed = again(replayable(source), other(output))
    assert changed.equal is False and not changed.as_expected
    assert changed.path == tmp_path / f"x-replay-2{suffix}"
    explained = again(replayable(source), other(output), device="cuda:0")
    assert explained.as_expected and explained.differences == ("device: cpu then, cuda:0 now",)


@pytest.mark.parametrize(("output", "suffix"), LOSSY, ids=[f"{type(one).__name__}{suffix}" for one, suffix in LOSSY])
def test_with_loss_equal_files_tell(tmp_path: Path, output: Any, suffix: str) -> None:
    source = save(tmp_path / f"x{suffix}", output)
    done = again(replayable(source), output)
    assert done.equal is True and done.path.read_bytes() == source.read_bytes()
    changed = again(replayable(source), other(output))
    assert changed.equal is None and changed.as_expected and changed.comparison.different > 0


def test_another_format(tmp_path: Path) -> None:
    source = save(tmp_path / "x.wav", tone())
    assert again(replayable(source, tmp_path / "y.flac"), tone()).equal is True
    assert again(replayable(source, tmp_path / "y.ogg"), tone()).equal is None
    video = save(tmp_path / "x.mp4", clip())
    assert again(replayable(video, tmp_path / "y.webm"), clip()).equal is None
    with pytest.raises(InvalidRequest, match=r"is no sound file that can be written; use \.wav"):
        replayable(source, tmp_path / "y.png")
    with pytest.raises(InvalidRequest, match="is the file that the new sound is compared with"):
        replayable(source, source)


def test_rounding_of_a_batch(tmp_path: Path) -> None:
    source = save(tmp_path / "x.wav", tone(), batched=True)
    near = replace(tone(), samples=tone().samples + np.float32(3 / 32768))
    done = again(replayable(source), near)
    assert (done.equal, done.comparison.largest, done.rounding, done.as_expected) == (False, 3, 1, True)
    far = replace(tone(), samples=tone().samples + np.float32(300 / 32768))
    assert not again(replayable(source), far).as_expected


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    found = replayable(save(tmp_path / "x.wav", tone()))
    with pytest.raises(InvalidRequest, match=r"x\.wav is a sound, and fake makes image"):
        found.check_makes(["image"])


def test_the_same_notes_are_the_same_input() -> None:
    usual = Note(start_s=0.0, duration_s=1.0, pitch=60)
    others: Any = replace(usual, start_s=0, duration_s=np.float32(1), pitch=np.int64(60))
    same = [Score(notes=(usual,)), Score(notes=(others,), tempos=((0, 120),))]
    other = Score(notes=(replace(usual, pitch=61),))
    digests = [described_media({"notes": score})["notes"]["sha256"] for score in (*same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_input_files_must_be_those_of_the_recipe(tmp_path: Path) -> None:
    voice, others = tone(0.2), tone(0.3)
    save_output(voice, tmp_path / "voice.wav", None)
    save_output(others, tmp_path / "others.wav", None)
    from kamado.media.sounds import open_sound

    heard = open_sound(tmp_path / "voice.wav")
    source = save(tmp_path / "x.wav", tone(), inputs=described_media({"audio": heard, "voice": [heard, heard]}))
    given = {"audio": tmp_path / "voice.wav", "voice": [tmp_path / "voice.wav"] * 2}
    options = replayable(source, inputs=given).options
    assert np.array_equal(options["audio"].samples, heard.samples) and len(options["voice"]) == 2
    for inputs, words in (
        ({}, r"made from an input \(audio\); give it \(--audio\)"),
        ({"audio": tmp_path / "voice.wav"}, r"input \(voice\); give it \(--input voice=FILE\)"),
        ({**given, "audio": tmp_path / "others.wav"}, r"the input \(audio\) is not the one"),
        ({**given, "video": tmp_path / "voice.wav"}, r"made without an input \(video\)"),
        ({**given, "musik": tmp_path / "voice.wav"}, "'musik' is no input that"),
        ({**given, "audio": source.with_name("none.wav")}, "does not exist"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            replayable(source, inputs=inputs)


def test_a_recipe_names_no_files(tmp_path: Path) -> None:
    stranger = {"prompt": "x", "speaker": "/etc/passwd"}
    found = replayable(save(tmp_path / "x.wav", tone(), options=stranger))
    takes = Options(what="a model", checks={"prompt": anything, "speaker": anything}, inputs={"speaker": "audio"})
    with pytest.raises(InvalidRequest, match="'speaker', which no recipe may have"):
        found.check_makes(["audio"], takes)
    for name in ("audio", "video", "image"):
        with pytest.raises(InvalidRequest, match="no recipe may have"):
            replayable(save(tmp_path / "y.wav", tone(), options={name: "/etc/passwd"}))


def test_what_is_in_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "still.webp")
    save_output(Picture(image=Image.new("RGB", (8, 8), "red")), tmp_path / "x.png", None)
    assert [kind_of_file(tmp_path / name) for name in ("still.webp", "x.png")] == ["image"] * 2
    for is_exact, outputs in ((True, EXACT), (False, LOSSY)):
        for number, (output, suffix) in enumerate(outputs):
            path = tmp_path / f"{is_exact}{number}{suffix}"
            save_output(output, path, None)
            kind = KINDS[type(output)]
            kind = "document" if suffix in (".json", ".vtt") else kind
            assert kind_of_file(path) == kind and keeps_output(path, kind) is is_exact, path


def test_how_far_apart() -> None:
    assert compare_outputs(tone(), tone(0.4)).same_size is False
    assert compare_outputs(tone(rate=8000, seconds=1), tone(rate=16000, seconds=0.5)).same_size is False
    one = compare_outputs(clip(), other(clip()))
    assert (one.what, one.different, one.largest) == ("pixel", 12 * 64 * 48, 255)
    quiet = compare_outputs(clip(audio=tone()), clip(audio=other(tone())))
    assert quiet.what == "sample" and quiet.equal is False
    assert compare_outputs(clip(), clip(audio=tone())).same_size is False
    moved = compare_outputs(tetrahedron(), other(tetrahedron()))
    assert (moved.what, moved.different, moved.largest) == ("vertex", 1, 1.0)
    assert compare_outputs(tetrahedron(), tetrahedron(colors=False)).different == 4
    assert compare_outputs(melody(), other(melody())).different == 2
    assert not compare_outputs({"a": 1}, {"a": 2}).within(255)
