"""Depth and segments: what transformers' models and post-processing give."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kamado
import kamado.api
from kamado.grids.thumbs import fitted
from kamado.media.pictures import save_picture
from kamado_models.vision.family import FAMILY
from tiny_pipelines.spec import picture
from tiny_vision import DEPTH, NAMES, POSES, SEGMENTS, build


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[kamado.Runtime]:
    monkeypatch.setattr(kamado.api, "find", lambda checkpoint: FAMILY)
    with kamado.Runtime(device="cpu", memory="1GiB") as found:
        yield found


def seen(width: int = 60, height: int = 40) -> Image.Image:
    """A picture that is no square."""
    return picture(64).convert("RGB").resize((width, height))


def oracle(folder: Path, kind: str, image: Image.Image) -> Any:
    """transformers' own answer: depth (height, width), or numbers of labels."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    with torch.no_grad():
        returned = model(**processor(images=image, return_tensors="pt"))
    size = [(image.height, image.width)]
    if kind == "depth":
        return processor.post_process_depth_estimation(returned, size)[0]["predicted_depth"].numpy()
    return processor.post_process_semantic_segmentation(returned, size)[0].numpy()


@pytest.mark.parametrize("name", sorted(DEPTH))
def test_depth(name: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    folder = build(name, tmp_path / name)
    image = seen()
    depth = oracle(folder, "depth", image)
    in_metres = name in ("glpn", "depth_anything_metric")
    near = -depth if in_metres else depth
    near = (near - near.min()) / (near.max() - near.min())
    model = runtime.load(folder)
    assert (model.tasks, model.capabilities) == (("depth-estimation",), ("image",))
    grey, deep, color = (model.generate(image=image, style=style) for style in ("grey", "deep", "color"))
    assert np.allclose(grey.pixels[0][..., 0], near, atol=1e-3)
    assert grey.images[0].mode == "L" and grey.images[0].size == image.size
    assert np.abs(np.asarray(grey.images[0], np.float32) - near * 255).max() < 1
    assert deep.images[0].mode == "I;16" and color.images[0].mode == "RGB"
    assert bool(grey.notes) == in_metres
    [path] = deep.save(tmp_path / "depth.png")
    assert np.allclose(np.asarray(Image.open(path)) / 65535, near, atol=1e-3)


def test_a_deep_map_is_made_again(tmp_path: Path, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 16 bits of it are compared."""
    monkeypatch.setattr("kamado.replaying.find", lambda checkpoint: FAMILY)
    folder = build("glpn", tmp_path / "glpn")
    result = runtime.load(folder).generate(image=seen(), style="deep")
    [path] = result.save(tmp_path / "depth.png")
    done = kamado.replay(path, tmp_path / "again.png", runtime=runtime, model=folder, image=seen())
    assert (done.equal, done.as_expected) == (True, True)
    edited = np.asarray(result.images[0]).copy()
    edited[0, 0] ^= 1
    save_picture(Image.fromarray(edited), path, result.recipe_of(0))
    found = kamado.replay(path, tmp_path / "other.png", runtime=runtime, model=folder, image=seen()).comparison
    assert (found.equal, found.different, found.largest, found.full) == (False, 1, 1, 65535)
    values = np.asarray(fitted(result.images[0], 32).convert("L"), np.float32)
    assert abs(values.mean() - (result.pixels[0] * 255).mean()) < 8


@pytest.mark.parametrize("name", sorted(SEGMENTS))
def test_segments(name: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    if name in ("mask2former", "maskformer"):
        pytest.importorskip("scipy", reason="transformers' class wants it")
    folder = build(name, tmp_path / name)
    image = seen()
    numbers = oracle(folder, "segments", image)
    assert len(np.unique(numbers)) > 1
    model = runtime.load(folder)
    assert model.tasks == ("image-segmentation",)
    there = NAMES[int(np.bincount(numbers.ravel()).argmax())]
    cutout = model.generate(image=image).images[0]
    assert cutout.mode == "RGBA" and np.array_equal(np.asarray(cutout)[..., 3] > 0, numbers != 0)
    assert np.array_equal(np.asarray(cutout)[..., :3], np.asarray(image))
    mask = model.generate(image=image, labels=there.upper(), style="mask").images[0]
    assert mask.mode == "L" and np.array_equal(np.asarray(mask) > 0, numbers == NAMES.index(there))
    whole = model.generate(image=image, style="map")
    assert len(np.unique(np.asarray(whole.images[0]).reshape(-1, 3), axis=0)) == len(np.unique(numbers))
    assert f"{there} {100 * (numbers == NAMES.index(there)).mean():.1f} %" in whole.notes[0]


@pytest.mark.parametrize("name", sorted(POSES))
def test_poses(name: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    pytest.importorskip("scipy", reason="transformers' image processor wants it")
    import transformers

    from kamado.media.poses import draw_poses

    folder = build(name, tmp_path / name)
    image = seen(120, 90)
    boxes = [[5.0, 5.0, 50.0, 80.0], [60.0, 10.0, 40.0, 70.0]]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    network = transformers.VitPoseForPoseEstimation.from_pretrained(folder).eval()
    with torch.no_grad():
        returned = network(**processor(images=image, boxes=[boxes], return_tensors="pt"))
    (people,) = processor.post_process_pose_estimation(returned, boxes=[boxes], threshold=0.0)
    places = [
        {int(label): tuple(map(float, place)) for label, place in zip(each["labels"], each["keypoints"], strict=True)}
        for each in people
    ]
    model = runtime.load(folder)
    assert model.tasks == ("keypoint-detection",)
    result = model.generate(image=image, boxes=boxes, threshold=0.0)
    wanted = draw_poses(Image.new("RGB", image.size), places)
    assert any(places) and (np.asarray(result.images[0]) != np.asarray(wanted)).mean() < 0.01  # rounded places
    over = model.generate(image=image, threshold=0.0, style="overlay").images[0]
    assert over.size == image.size
    with pytest.raises(kamado.InvalidRequest, match="a box is"):
        model.generate(image=image, boxes=[[1, 2, 3]])


def test_poses_say_what_they_need(tmp_path: Path, runtime: kamado.Runtime) -> None:
    if find_spec("scipy") is None:
        folder = build("vitpose", tmp_path)
        with pytest.raises(kamado.InvalidRequest, match="pip install scipy"):
            runtime.load(folder, request={"image": seen()})


def test_requests_share_forwards_and_change_nothing(tmp_path: Path, runtime: kamado.Runtime) -> None:
    model = runtime.load(build("dpt", tmp_path))
    pictures = [seen(60, 40 + 4 * step) for step in range(4)]
    alone = [model.generate(image=image).pixels[0] for image in pictures]
    for _ in range(10):
        crowd = model.generate(image=pictures)
        assert all(np.allclose(one, other, atol=1e-3) for one, other in zip(alone, crowd.pixels, strict=True))
        if any(crowd.batched):
            break
    assert len(crowd.images) == 4 and any(crowd.batched)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a segmentation model image"),
        ({"image": b"text"}, "picture"),
        ({"image": picture(64), "labels": "horse"}, "'horse' is none of this model's: background, cat, dog, sofa"),
        ({"image": picture(64), "labels": "cat", "style": "map"}, "leave labels out"),
        ({"image": picture(64), "style": "pretty"}, "style must be one of"),
        ({"image": picture(64), "prompt": "x"}, "takes no prompt"),
    ],
)
def test_what_cannot_be_used_is_refused(
    options: dict[str, Any], says: str, tmp_path: Path, runtime: kamado.Runtime
) -> None:
    model = runtime.load(build("segformer", tmp_path))
    with pytest.raises(kamado.InvalidRequest, match=says):
        model.generate(**options)


@pytest.mark.parametrize("name", ["segformer", "depth_anything"])
def test_one_pixel(name: str, tmp_path: Path, runtime: kamado.Runtime) -> None:
    model = runtime.load(build(name, tmp_path))
    assert model.generate(image=Image.new("RGB", (1, 1))).images[0].size == (1, 1)
