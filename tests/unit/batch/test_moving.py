"""Batches of pipelines that make videos and sounds."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from kamado.batch.pictures import PictureAnswers
from kamado.errors import InvalidRequest
from kamado.media.recipes import read_recipe
from kamado.media.videos import open_video
from kamado.outputs import Audio, Video
from kamado.results import Result

FRAMES = numpy.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=numpy.uint8)
RECIPE = {"options": {"prompt": "a cat"}}


def test_answers_are_files_of_their_kind(tmp_path: Path) -> None:
    video, sound = (
        Video(frames=FRAMES, fps=8.0),
        Audio(samples=numpy.full((1, 80), 0.5, numpy.float32), sample_rate=8000),
    )
    answers = PictureAnswers(tmp_path, tmp_path, "gif", kind="video")
    kept = answers.keep("a", Result(request_id="r", outputs=(video, video), seeds=(3, 4), recipe=RECIPE))
    assert (kept["files"], kept["seeds"]) == (["media/a.1.gif", "media/a.2.gif"], [3, 4])
    assert len(open_video(tmp_path / "media/a.2.gif").frames) == 3
    assert read_recipe(tmp_path / "media/a.2.gif")["options"]["seed"] == 4
    answers = PictureAnswers(tmp_path, tmp_path, None, kind="audio")
    kept = answers.keep("b", Result(request_id="r", outputs=(sound,), seeds=(3,), recipe=RECIPE))
    assert kept["files"] == ["media/b.wav"] and (tmp_path / "media/b.wav").stat().st_size > 160
    assert answers.identity == {"makes": "audio", "format": None}


def test_input_videos_lie_beside_the_lines(tmp_path: Path) -> None:
    answers = PictureAnswers(tmp_path, tmp_path, "gif", kind="video")
    kept = answers.keep("a", Result(request_id="r", outputs=(Video(frames=FRAMES, fps=8.0),), seeds=(3,)))
    options = answers.options({"id": "b", "prompt": "x", "video": kept["files"][0], "num_frames": 5})
    assert options["video"].frames.shape == FRAMES.shape and options["num_frames"] == 5
    with pytest.raises(InvalidRequest, match="does not exist"):
        answers.options({"id": "b", "prompt": "x", "video": "nothing.mp4"})
    with pytest.raises(InvalidRequest, match="max_tokens is for text models, and this model makes video"):
        answers.options({"id": "b", "prompt": "x", "max_tokens": 5})
