"""Pieces of prompts that show something beside text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from kamado.checkpoint.types import Checkpoint
from kamado.cli.main import main
from kamado.errors import InvalidRequest, UnsupportedCheckpoint
from kamado.memory.blocks import BlockPool, PagedMemory
from kamado.quant import parse_quant
from kamado.requests import Sampling
from kamado.sequence import TokenSequence
from kamado.turns import MAX_ITEMS, joined_texts, relative_to, split_turns, turns_relative_to
from kamado_models.language.attention import CAUSAL, MaskRule
from kamado_models.language.chat_template import ChatTemplate
from kamado_models.language.media.classes import _whole
from kamado_models.language.media.decoder import Seen
from kamado_models.language.media.frames import FrameProcessor
from kamado_models.language.media.processor import load_senses
from kamado_models.language.media.sizes import encoder_peak, text_quant
from kamado_models.language.media.table import WANT_TORCHVISION, senses_of, tasks_of


def sequence(tokens: int = 20, **more: Any) -> TokenSequence:
    return TokenSequence(id="s", tokens=list(range(tokens)), num_prompt=tokens, sampling=Sampling(), seed=0, **more)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 40), st.integers(1, 40), st.lists(st.booleans())
)
def test_cuts_are_never_inside_of_a_block(lengths: list[int], computed: int, wanted: int, gaps: list[bool]) -> None:
    blocks, at = [], 0
    for number, length in enumerate(lengths):
        at += number < len(gaps) and gaps[number]
        blocks.append((at, at + length + 1))
        at += length + 1
    if any(first < computed < last for first, last in blocks):
        return  # nothing is ever cut there
    one = sequence(60, blocks=tuple(blocks), num_computed=computed)
    num_new = one.uncut(wanted)
    end = computed + num_new
    assert num_new >= 1 and not any(first < end < last for first, last in blocks)
    assert num_new <= wanted or (computed, end) in blocks
    if not any(first < computed + wanted < last for first, last in blocks):
        assert num_new == wanted


def names(contents: tuple[tuple[int, int, bytes], ...]) -> list[bytes]:
    memory = PagedMemory(BlockPool(8), 4, salt=b"x")
    one = sequence(16, contents=contents)
    memory.attach(one)
    assert memory.acquire(one, 16)
    one.num_computed = 16
    memory.committed(one)
    return list(one.state.names)


def test_pages_are_named_by_what_stands_in_them() -> None:
    plain, cat, dog = names(()), names(((5, 9, b"cat"),)), names(((5, 9, b"dog"),))
    assert plain[0] == cat[0] == dog[0], "nothing is shown in the first page"
    assert all(len({a, b, c}) == 3 for a, b, c in zip(plain[1:], cat[1:], dog[1:], strict=True))
    assert names(((5, 9, b"cat"),)) == cat
    assert names(((5, 8, b"cat"), (8, 9, b"dog")))[1] != names(((5, 7, b"cat"), (7, 9, b"dog")))[1], "where, too"


def test_rules_of_a_prompt_end_with_it() -> None:
    groups = torch.tensor([-1, 0, 0, 0, -1])

    def allows(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) | ((groups[query] == groups[key]) & (groups[query] >= 0))

    seen = Seen(
        num_tokens=5,
        places=torch.tensor([1, 2, 3]),
        embeddings=torch.zeros(3, 2),
        deep=None,
        positions=None,
        rules={"": MaskRule(allows, None, False)},
        blocks=((1, 4),),
    )
    places = torch.arange(8)
    mask = seen.rule(CAUSAL).mask(places[:, None], places[None, :])
    wanted = torch.ones(8, 8, dtype=torch.bool).tril()
    wanted[1:4, 1:4] = True
    assert torch.equal(mask, wanted)
    other = MaskRule(allows, 3, False, kind="sliding_attention")
    assert seen.rule(other) is other, "it says nothing of those layers"


def test_positions_go_on_behind_the_prompt() -> None:
    stated = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]])
    seen = Seen(num_tokens=4, places=torch.zeros(0), embeddings=torch.zeros(0, 2), deep=None, positions=stated)
    assert seen.shift == 0
    assert seen.positions_of(2, 6).tolist() == [[1, 2, 4, 5], [1, 2, 4, 5], [2, 3, 4, 5]]
    assert seen.positions_of(5, 7).tolist() == [[5, 6]] * 3


class Images:
    """Of pictures already as large as they should be."""

    temporal_patch_size, patch_size, merge_size = 2, 2, 1

    def __call__(self, frames: list[Any], **how: Any) -> dict[str, Any]:
        rows = []
        for frame in frames:
            channels = np.asarray(frame, np.float32).transpose(2, 0, 1)
            _, height, width = channels.shape
            patches = channels.reshape(3, height // 2, 2, width // 2, 2).transpose(1, 3, 0, 2, 4)
            twice = np.repeat(patches.reshape(-1, 3, 1, 2, 2), 2, axis=2)
            rows.append(twice.reshape(len(twice), -1))
        grid = [1, height // 2, width // 2]
        return {"pixel_values": np.concatenate(rows), "image_grid_thw": np.array([grid] * len(frames))}


def test_a_video_that_stands_still_is_a_picture() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    processor = FrameProcessor(Images(), {})
    processor.rates = [0.0]
    made = processor([np.stack([frame, frame])])
    assert made["video_grid_thw"].tolist() == [[1, 2, 3]]
    assert np.array_equal(made["pixel_values_videos"].numpy(), Images()([frame])["pixel_values"])


@pytest.mark.parametrize(
    ("frames", "rate", "taken"),
    [
        (6, 0.0, [0, 1, 2, 3, 4, 5]),
        (1, 24.0, [0]),
        (48, 24.0, [0, 16, 31, 47]),
        (240, 24.0, 20),
        (5, 0.0, [0, 1, 2, 3, 4]),
    ],
)
def test_frames_are_taken_evenly(frames: int, rate: float, taken: Any) -> None:
    processor = FrameProcessor(Images(), {})
    processor.rates = [rate]
    made = processor([np.zeros((frames, 4, 4, 3), np.uint8)])
    chosen = made["video_metadata"][0].frames_indices if rate else processor._chosen(frames, rate)
    assert (len(chosen) if isinstance(taken, int) else chosen) == taken


def test_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image", "image": "x.png"}, {"type": "video", "url": "v.mp4"}]
    turns, items = split_turns([{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}])
    assert turns[0]["content"] == [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "video"}]
    assert [(item.kind, item.source) for item in items] == [("image", "x.png"), ("video", "v.mp4")]
    assert joined_texts(turns, lambda kind: f"<{kind}>")[0]["content"] == "a<image><video>"
    with pytest.raises(InvalidRequest, match="at most"):
        split_turns([{"role": "user", "content": [parts[1]] * (MAX_ITEMS + 1)}])
    placed = turns_relative_to(Path("/data"), [{"role": "user", "content": parts}])
    assert [part.get("image", part.get("url")) for part in placed[0]["content"]] == [None, "/data/x.png", "/data/v.mp4"]
    assert relative_to(Path("/data"), ["a.png", "data:x", "https://a/b", 3]) == [
        "/data/a.png",
        "data:x",
        "https://a/b",
        3,
    ]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ message['content'] }}", None),
        ("{% for p in message['content'] %}{{ p['type'] }}{% endfor %}", [{"type": "text", "text": "hi"}]),
        ("{% if message['content'] is string %}{% else %}{{ message['content'][0]['type'] }}{% endif %}", "hi"),
    ],
)
def test_templates_get_contents_as_they_take_them(source: str, wanted: Any) -> None:
    found = ChatTemplate(source).in_parts([{"role": "user", "content": "hi"}])
    assert found is None if wanted is None else found is not None and found[0]["content"] == wanted


def test_sizes() -> None:
    config = {"model_type": "llava", "vision_config": {"hidden_size": 8, "image_size": 28, "patch_size": 14}}
    assert senses_of(config) == ("image",) and tasks_of(config) == ("image-text-to-text",)
    assert encoder_peak(config, 4) > 0 and encoder_peak({"model_type": "llama"}, 4) == 0
    quant = parse_quant("int8")
    assert quant is not None
    seeing, plain = text_quant(config, quant), text_quant({"model_type": "llama"}, quant)
    assert seeing is not None and plain == quant
    shape = (128, 128)
    assert seeing.scheme_for("model.vision_tower.layers.0.mlp.fc1.weight", shape) is None
    assert seeing.scheme_for("model.language_model.layers.0.mlp.up_proj.weight", shape) is not None
    absurd = {"model_type": "llava", "vision_config": {"hidden_size": "x", "image_size": -1, "patch_size": 0}}
    assert encoder_peak(absurd, 4) > 0


@pytest.mark.parametrize(
    ("name", "kind", "package"),
    [
        ("Voxtral", "voxtral", "mistral-common"),
        ("VoxtralRealtime", "voxtral_realtime", "mistral-common"),
        ("GraniteSpeech", "granite_speech", "torchaudio"),
        ("FunAsrNano", "fun_asr_nano", "torchaudio"),
    ],
)
def test_prompts_that_a_package_makes(
    name: str,
    kind: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    folder = tiny.build("llama", tmp_path / "model")
    named = {"architectures": [f"{name}ForConditionalGeneration"], "model_type": kind, "audio_config": {}}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | named))
    for command in (["run", str(folder), "hello", "--device", "cpu"], ["plan", str(folder), "--device", "cpu"]):
        assert main(command) == 4
        told = " ".join(capsys.readouterr().err.split())
        assert f"pip install {package}" in told and "Traceback" not in told
    assert main(["show", str(folder)]) == 0 and package in capsys.readouterr().out


@pytest.mark.parametrize("kind", sorted(WANT_TORCHVISION))
def test_pictures_that_are_prepared_with_torchvision(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = {"model_type": kind}
    checkpoint = Checkpoint(
        reference="a/b", root=tmp_path, layout="transformers", config=config, metadata={}, tensors={}, files={}
    )
    with pytest.raises(UnsupportedCheckpoint, match=r"a/b: .*pip install torchvision"):
        load_senses(checkpoint)


def test_of_a_cut_picture_frames_keep_the_middle() -> None:
    from transformers import LlavaNextImageProcessor

    grid = [[28, 56], [56, 28]]
    images = LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=28, image_grid_pinpoints=grid)
    video = np.zeros((3, 28, 84, 3), np.uint8)
    video[:, :, 28:56] = 255
    frames = FrameProcessor(_whole(images), {})
    frames.rates = [0.0]
    made = frames(video)["pixel_values_videos"]
    assert made.shape == (1, 3, 3, 28, 28)
    assert made[0, 0, 0, 14, 0] == made[0, 0, 0, 14, 27] > 1, "the white middle alone"
