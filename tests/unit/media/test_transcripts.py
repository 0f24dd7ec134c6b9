"""Subtitles."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado.media.recipes import read_recipe
from kamado.media.transcripts import save_transcript, srt_text, timestamp, vtt_text
from kamado.outputs import Segment, Transcript
from media_recipes import RECIPE, RECIPES

SEGMENTS = (
    Segment(start_s=0.0, end_s=1.5, text=" Hello there. "),
    Segment(start_s=1.5, end_s=1.5, text="   "),
    Segment(start_s=3599.9996, end_s=3601.25, text="a < b --> c\n\n\n& d"),
)
TRANSCRIPT = Transcript(text="Hello there. a < b", segments=SEGMENTS, language="en")
SRT = """1
00:00:00,000 --> 00:00:01,500
Hello there.

2
01:00:00,000 --> 01:00:01,250
a < b \u2192 c
& d
"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.500
Hello there.

01:00:00.000 --> 01:00:01.250
a &lt; b --&gt; c
&amp; d
"""


def test_subtitles() -> None:
    assert srt_text(SEGMENTS) == SRT
    assert vtt_text(SEGMENTS) == VTT


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00:00.000"),
        (-1, "00:00:00.000"),
        (59.9996, "00:01:00.000"),
        (360_000, "100:00:00.000"),
        (float("nan"), "00:00:00.000"),
    ],
)
def test_timestamps(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


@pytest.mark.parametrize("suffix", [".srt", ".vtt", ".txt", ".json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    save_transcript(TRANSCRIPT, path, RECIPE)
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        document = json.loads(text)
        assert document["segments"][0] == {"start": 0.0, "end": 1.5, "text": " Hello there. "}
        assert (document["text"], document["language"]) == ("Hello there. a < b", "en")
    else:
        assert text == {".srt": SRT, ".txt": "Hello there. a < b\n"}.get(suffix, text)
    if suffix in (".vtt", ".json"):
        assert read_recipe(path) == RECIPE
    else:
        with pytest.raises(InvalidRequest, match="carries no recipe"):
            read_recipe(path)


@given(recipe=RECIPES)
def test_any_recipe_survives(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> None:
    for suffix in (".vtt", ".json"):
        path = tmp_path_factory.getbasetemp() / f"recipe{suffix}"
        save_transcript(TRANSCRIPT, path, recipe)
        assert read_recipe(path) == recipe
        assert suffix != ".vtt" or "-->" not in path.read_text(encoding="utf-8").split("\n\n")[1]


@given(texts=st.lists(st.text(max_size=30), max_size=5))
def test_any_text_stays_within_its_block(texts: list[str]) -> None:
    segments = [Segment(start_s=number, end_s=number + 1, text=text) for number, text in enumerate(texts)]
    spoken = [text for text in texts if re.sub(r"[\x00-\x1f\x7f]", " ", text).strip()]
    blocks = srt_text(segments).split("\n\n") if spoken else []
    assert len(blocks) == len(spoken)
    for number, block in enumerate(blocks, start=1):
        lines = block.split("\n")
        assert lines[0] == str(number) and re.fullmatch(r"[\d:,]+ --> [\d:,]+", lines[1])
        assert all("-->" not in line for line in lines[2:])
    assert vtt_text(segments).count("-->") == len(spoken)


def test_times_are_needed_for_subtitles(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"has no times, which \.srt needs"):
        save_transcript(Transcript(text="Hello"), tmp_path / "x.srt", None)
    save_transcript(Transcript(text=""), tmp_path / "silence.srt", None)
    assert (tmp_path / "silence.srt").read_text() == ""
