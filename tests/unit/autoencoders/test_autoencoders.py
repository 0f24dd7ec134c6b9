"""Autoencoders as models of their own: equal to diffusers' encode and decode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import kamado
import kamado.api
import kamado.families
import kamado.replaying
import tiny_autoencoders as tiny
from kamado.checkpoint.inspect import inspect
from kamado.errors import InvalidRequest
from kamado.media.latents import open_latents
from kamado.outputs import Embedding, Scores, Video
from kamado_models.autoencoders.family import FAMILY
from kamado_models.autoencoders.layouts import LAYOUTS, facts
from typed import typed

PICTURES = [name for name, layout in LAYOUTS.items() if layout.temporal is None and not layout.frames_are_rows]
VIDEOS = [name for name in LAYOUTS if name not in (*PICTURES, "AutoencoderKLQwenImage")]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kamado.Runtime]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAMADO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(kamado.api, "find", lambda checkpoint: FAMILY)
        with kamado.Runtime(device="cpu", memory="2GiB") as found:
            yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("autoencoders")


@pytest.fixture(scope="module")
def kl(runtime: kamado.Runtime, folder: Path) -> tuple[kamado.Model, Any]:
    path, oracle = tiny.saved("AutoencoderKL", folder)
    return runtime.load(path), oracle


def photo(width: int, height: int, seed: int = 3) -> Image.Image:
    coarse = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tensor(*images: Image.Image) -> Tensor:
    """(frames, channels, height, width) in [-1, 1]."""
    return torch.stack([torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 127.5 - 1 for image in images])


def latents_of(oracle: Any, pixels: Tensor) -> Tensor:
    """The library's own."""
    with torch.no_grad():
        found = oracle.encode(pixels)
    for name in ("latents", "latent"):
        if getattr(found, name, None) is not None:
            return getattr(found, name)  # type: ignore[no-any-return]
    return found.latent_dist.mode()  # type: ignore[no-any-return]


def pixels_of(oracle: Any, latents: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return oracle.decode(latents, **options).sample  # type: ignore[no-any-return]


def shown(made: Tensor) -> Any:
    """(channels, height, width) in [-1, 1] as a picture."""
    return ((made + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(runtime: kamado.Runtime, folder: Path, name: str) -> None:
    path, oracle = tiny.saved(name, folder)
    model = runtime.load(path)
    image = photo(24, 16)
    latents = latents_of(oracle, tensor(image))
    expected = shown(pixels_of(oracle, latents)[0])
    assert numpy.abs(model.generate(image=image).pixels[0] - expected).max() < 1e-4
    code = model.generate(image=image, task="encode").outputs[0]
    assert isinstance(code, Embedding) and code.shape == tuple(latents.shape[1:])
    assert numpy.abs(code.vectors.reshape(code.shape) - latents[0].numpy()).max() < 1e-4
    assert numpy.abs(model.generate(latents=code).pixels[0] - expected).max() < 1e-4
    assert model.tasks == ("image-feature-extraction", "image-to-image")


def test_pictures_of_an_autoencoder_with_frames(runtime: kamado.Runtime, folder: Path) -> None:
    path, oracle = tiny.saved("AutoencoderKLQwenImage", folder)
    image = photo(24, 16)
    expected = pixels_of(oracle, latents_of(oracle, tensor(image).transpose(0, 1)[None]))[0, :, 0]
    model = runtime.load(path)
    assert numpy.abs(model.generate(image=image).pixels[0] - shown(expected)).max() < 1e-4
    with pytest.raises(kamado.InvalidRequest, match="takes no video"):
        model.generate(video=(numpy.zeros((2, 8, 8, 3), dtype=numpy.uint8), 4.0))


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(runtime: kamado.Runtime, folder: Path, name: str) -> None:
    path, oracle = tiny.saved(name, folder)
    about = facts(inspect(path))
    side = max(about.spatial, 16)
    frames = [photo(side, side, seed) for seed in range(1 + 2 * about.temporal if about.has_frames else 3)]
    given = tensor(*frames)
    if about.has_frames:
        latents = latents_of(oracle, given.transpose(0, 1)[None])
        made, code = pixels_of(oracle, latents)[0].transpose(0, 1), latents[0]
    else:
        latents = latents_of(oracle, given)
        made, code = pixels_of(oracle, latents, num_frames=3), latents.transpose(0, 1)
    video = Video(frames=numpy.stack([numpy.array(frame) for frame in frames]), fps=7.0)
    model = runtime.load(path)
    found = model.generate(video=video)
    assert found.video.shape == video.frames.shape and found.fps == 7.0
    expected = numpy.stack([shown(frame) for frame in made])
    assert numpy.abs(found.video / 255 - expected).max() < 0.5 / 255 + 1e-4
    embedding = model.generate(video=video, task="encode").outputs[0]
    assert isinstance(embedding, Embedding) and embedding.shape == tuple(code.shape)
    assert numpy.abs(embedding.vectors.reshape(code.shape) - code.numpy()).max() < 1e-4
    decoded = model.generate(latents=embedding, fps=7.0)
    assert numpy.abs(decoded.video.astype(int) - found.video).max() <= 1
    assert model.tasks[1] == "video-to-video" and model.capabilities[0] == "video"


def test_what_does_not_fit_is_filled_up_and_cut_again(runtime: kamado.Runtime, folder: Path) -> None:
    model = runtime.load(tiny.saved("AutoencoderKLWan", folder)[0])
    frames = numpy.stack([numpy.array(photo(13, 9, seed)) for seed in range(3)])
    found = model.generate(video=(frames, 4.0))
    assert found.video.shape == (3, 9, 13, 3) and "8 x 8 pixels, and 4 frames" in found.notes[0]
    filled = numpy.pad(frames, ((0, 2), (0, 7), (0, 3), (0, 0)), mode="edge")
    whole = model.generate(video=(filled, 4.0))
    assert numpy.abs(whole.video[:3, :9, :13].astype(int) - found.video).max() <= 1 and not whole.notes
    assert model.generate(image=photo(1, 1)).images[0].size == (1, 1)


def test_noise_of_a_decoder_is_the_seeds_own(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**tiny.CONFIGS["AutoencoderKLLTXVideo"], "decoder_inject_noise": [True] * 5}
    monkeypatch.setattr(tiny, "CONFIGS", {"AutoencoderKLLTXVideo": config})
    model = runtime.load(tiny.saved("AutoencoderKLLTXVideo", tmp_path)[0])
    before = torch.get_rng_state()
    one, two, three = (model.generate(image=photo(16, 16), seed=seed).pixels[0] for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert numpy.array_equal(one, two) and not numpy.array_equal(one, three)
    with pytest.raises(kamado.InvalidRequest, match="tiling cannot be used"):
        model.generate(image=photo(16, 16), tiling=True)


def test_draws_from_the_distribution_are_the_seeds_own(kl: tuple[kamado.Model, Any]) -> None:
    model, oracle = kl
    found = model.generate(image=photo(8, 8), sample_posterior=True, seed=4, n=2)
    for index in range(2):
        with torch.no_grad():
            drawn = oracle.encode(tensor(photo(8, 8))).latent_dist.sample(torch.Generator().manual_seed(4 + index))
        assert numpy.abs(found.pixels[index] - shown(pixels_of(oracle, drawn)[0])).max() < 1e-4
    assert numpy.abs(found.pixels[0] - found.pixels[1]).max() > 1e-3


def test_samples_come_from_the_scaled_prior(kl: tuple[kamado.Model, Any]) -> None:
    model, oracle = kl
    found = model.generate(task="sample", seed=9, width=12, height=8)
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(9)) / 0.5 + 0.1
    assert numpy.abs(found.pixels[0] - shown(pixels_of(oracle, latents)[0])).max() < 1e-4
    assert "textures" in found.notes[0] and model.generate().images[0].size == (256, 256)


def test_samples_of_a_video(runtime: kamado.Runtime, folder: Path) -> None:
    path, oracle = tiny.saved("AutoencoderKLWan", folder)
    found = runtime.load(path).generate(task="sample", seed=9, width=16, height=8, frames=4, fps=5.0)
    latents = torch.randn(1, 4, 2, 1, 2, generator=torch.Generator().manual_seed(9))
    config = tiny.CONFIGS["AutoencoderKLWan"]
    mean, deviation = (torch.tensor(config[key]).view(1, 4, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    expected = pixels_of(oracle, latents * deviation + mean)[0].transpose(0, 1)[:4]
    assert found.video.shape == (4, 8, 16, 3)
    assert numpy.abs(found.video / 255 - numpy.stack([shown(each) for each in expected])).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_between_pictures(kl: tuple[kamado.Model, Any], path: str) -> None:
    model, oracle = kl
    images = [photo(16, 16, seed) for seed in (1, 2, 3)]
    found = model.generate(image=images, task="interpolate", frames=21, fps=10, path=path)
    assert found.video.shape == (21, 16, 16, 3) and found.fps == 10
    for frame, image in ((0, images[0]), (10, images[1]), (20, images[2])):
        still = numpy.asarray(model.generate(image=image).images[0]).astype(int)
        assert numpy.abs(found.video[frame] - still).max() <= 1
    if path == "linear":
        one, two = (latents_of(oracle, tensor(image)) for image in images[:2])
        expected = shown(pixels_of(oracle, 0.7 * one + 0.3 * two)[0])
        assert numpy.abs(found.video[3] / 255 - expected).max() < 0.5 / 255 + 1e-4


def test_errors_of_reconstructions(kl: tuple[kamado.Model, Any]) -> None:
    model, oracle = kl
    images = [photo(16, 16, 1), Image.new("RGB", (16, 16), "gray")]
    scores = model.generate(image=images, task="score").outputs[0]
    assert isinstance(scores, Scores)
    wanted = {}
    for index, image in enumerate(images):
        pixels = tensor(image)
        again = pixels_of(oracle, latents_of(oracle, pixels)).clamp(-1, 1)
        wanted[index] = float((((again - pixels) / 2) ** 2).mean())
    assert {item.index: pytest.approx(item.score, abs=1e-5) for item in scores.items} == wanted
    assert [item.score for item in scores.items] == sorted(wanted.values(), reverse=True)
    assert scores.items[0].details["psnr_db"] == pytest.approx(-10 * numpy.log10(scores.items[0].score))
    picture = model.generate(image=images[0], task="error_map").pixels[0]
    pixels = tensor(images[0])
    error = (pixels_of(oracle, latents_of(oracle, pixels)).clamp(-1, 1) - pixels).abs().mean(1)[0] / 2
    assert numpy.abs(picture - error[..., None].numpy()).max() < 1e-4


def test_tiling_is_diffusers_own(runtime: kamado.Runtime, kl: tuple[kamado.Model, Any], folder: Path) -> None:
    model, _ = kl
    oracle = tiny.saved("AutoencoderKL", folder)[1]
    oracle.enable_tiling()
    image = photo(80, 80)
    expected = shown(pixels_of(oracle, latents_of(oracle, tensor(image)))[0])
    alone = model.generate(image=image).pixels[0]
    assert numpy.abs(model.generate(image=image, tiling=True).pixels[0] - expected).max() < 1e-4
    assert numpy.abs(alone - expected).max() > 1e-4  # 32 pixels are a tile of the tiny one
    assert numpy.abs(model.generate(image=image).pixels[0] - alone).max() == 0


def test_alone_and_beside_others(kl: tuple[kamado.Model, Any]) -> None:
    model, _ = kl
    alone = [model.generate(image=photo(16, 16, seed)).pixels[0] for seed in range(4)]
    model.generate(image=photo(16, 16), sample_posterior=True, seed=1, n=4)
    crowd = model.generate_many([{"image": photo(16, 16, seed)} for seed in range(4)])
    assert all(numpy.abs(one - two.pixels[0]).max() < 1e-4 for one, two in zip(alone, crowd, strict=True))


def test_cancelling_between_frames(kl: tuple[kamado.Model, Any]) -> None:
    job = kl[0].submit(image=[photo(64, 64, 1), photo(64, 64, 2)], task="interpolate", frames=5000)
    for event in job.events():
        if isinstance(event, kamado.Progress):
            job.cancel()
    with pytest.raises(kamado.Cancelled):
        job.result()


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_latents_are_written_and_read(kl: tuple[kamado.Model, Any], tmp_path: Path, suffix: str) -> None:
    model, _ = kl
    result = model.generate(image=photo(16, 8), task="encode")
    (path,) = result.save(tmp_path / f"latents{suffix}")
    again = model.generate(latents=path)
    assert numpy.abs(again.pixels[0] - model.generate(image=photo(16, 8)).pixels[0]).max() < 1e-4
    assert len(again.recipe["inputs"]["latents"]["sha256"]) == 64
    assert again.recipe["options"]["task"] == "decode" if "task" in again.recipe["options"] else True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image": photo(8, 8), "latents": numpy.zeros((4, 2, 2))}, "image cannot be used with task=decode"),
        ({"image": photo(8, 8), "task": "interpolate"}, "two pictures at least"),
        ({"image": [photo(8, 8)] * 2}, "takes one image"),
        ({"image": [photo(8, 8), photo(8, 9)], "task": "interpolate"}, "of one size, not 8 x 8, 8 x 9"),
        ({"image": photo(8, 8), "n": 2}, "would be equal"),
        ({"image": photo(8, 8), "frames": 3}, "frames cannot be used with task=reconstruct"),
        ({"image": photo(8, 8), "task": "upscale"}, "task must be one of reconstruct, encode"),
        ({"task": "encode"}, "needs image"),
        ({"task": "sample", "width": 9, "height": 8}, "multiple of 2, not 9"),
        ({"task": "sample", "frames": 9}, "frames is for autoencoders of videos"),
        ({"latents": numpy.zeros((3, 2, 2))}, "with 4 channels, not .3, 2, 2."),
        ({"latents": numpy.full((4, 2, 2), numpy.nan)}, "NaN"),
        ({"latents": "missing.safetensors"}, "does not exist"),
        ({"latents": [[1, 2], [3]]}, "as many in each row"),
        ({"latents": "latents.txt"}, "safetensors and .json"),
        ({"video": (numpy.zeros((2, 8, 8, 3), dtype=numpy.uint8), 4.0)}, "takes no video"),
        ({"prompt": "a cat"}, "takes no prompt"),
    ],
)
def test_bad_requests(kl: tuple[kamado.Model, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(kamado.InvalidRequest, match=says):
        kl[0].generate(**options)


def test_what_is_too_large_is_refused_before_it_is_tried(kl: tuple[kamado.Model, Any]) -> None:
    with pytest.raises(kamado.InvalidRequest, match="20000 x 20000"):
        kl[0].generate(image=Image.new("L", (20_000, 20_000)))
    with pytest.raises(kamado.DoesNotFit, match=r"8000 x 8000 pixels need about .* tiles"):
        kl[0].generate(image=Image.new("RGB", (8000, 8000)))


def test_a_way_that_no_memory_holds(kl: tuple[kamado.Model, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    few = SimpleNamespace(available_bytes=10_000)
    monkeypatch.setattr("kamado_models.pixels.host_memory", lambda: few)
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    with pytest.raises(kamado.DoesNotFit, match=r"9000 frames of 16 x 16 pixels need .* of RAM"):
        kl[0].generate(image=pictures, task="interpolate", frames=9000)


def test_only_autoencoders_that_are_known_are_claimed(runtime: kamado.Runtime, folder: Path, tmp_path: Path) -> None:
    path, _ = tiny.saved("AutoencoderKL", folder)
    assert kamado.families.find(inspect(path)).name == "autoencoders"
    import diffusers

    diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"is one model .*--component"):
        kamado.families.find(inspect(tmp_path / "unet"))
    (tmp_path / "bad").mkdir()
    (path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "bad" / "diffusion_pytorch_model.safetensors")
    config = json.loads((path / "config.json").read_text())
    for key, value in (("block_out_channels", 7), ("layers_per_block", 10**6), ("latent_channels", 5)):
        (tmp_path / "bad" / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(kamado.UnsupportedCheckpoint):
            runtime.load(tmp_path / "bad")


def test_what_was_decoded_from_latents_is_made_again(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kamado.replaying, "find", lambda checkpoint: FAMILY)
    model = runtime.load(tiny.saved("AutoencoderKL", tmp_path / "model")[0])
    (latents,) = model.generate(image=photo(16, 16), task="encode").save(tmp_path / "latents.safetensors")
    (made,) = model.generate(latents=latents).save(tmp_path / "made.png")
    for given in (latents, open_latents(latents)):
        done = kamado.replay(made, runtime=runtime, model=model.reference, latents=given)
        assert (done.equal, done.differences) == (True, ())
    again = kamado.replay(latents, runtime=runtime, model=model.reference, image=photo(16, 16))
    assert (again.equal, again.differences) == (True, ())
    with pytest.raises(InvalidRequest, match=r"give it \(--input latents=FILE\)"):
        kamado.replay(made, runtime=runtime, model=model.reference)
    with pytest.raises(InvalidRequest, match="is not the one that"):
        kamado.replay(made, runtime=runtime, model=model.reference, latents=open_latents(latents) + 1)
    with pytest.raises(InvalidRequest, match=r"latents are read from \.safetensors"):
        kamado.replay(made, runtime=runtime, model=model.reference, latents=made)


def test_what_a_request_comes_out_as_is_known_before(runtime: kamado.Runtime, folder: Path) -> None:
    picture, video = (
        FAMILY.options(inspect(tiny.saved(name, folder)[0])) for name in ("AutoencoderKL", "AutoencoderKLWan")
    )
    for takes, asked, kinds in (
        (picture, {"image": "x.png"}, ["image"]),
        (picture, {"image": "x.png", "task": "encode"}, ["embedding"]),
        (picture, {"image": "x.png", "task": "score"}, ["scores"]),
        (picture, {"image": ["x.png", "y.png"], "task": "interpolate"}, ["video"]),
        (picture, {"latents": "x.json"}, ["image"]),
        (picture, {}, ["image"]),
        (video, {"image": "x.png"}, ["image"]),
        (video, {"video": "x.mp4"}, ["video"]),
        (video, {"frames": 5, "task": "sample"}, ["video"]),
        (video, {"latents": "x.json"}, ["video", "image"]),
    ):
        assert list(takes.kinds_of(takes.checked(asked), ())) == kinds


@pytest.mark.parametrize(
    ("args", "suffix", "kind"),
    [(("--task", "encode"), "png", "embedding"), (("--task", "score"), "png", "scores"), ((), "json", "image")],
)
def test_a_file_that_cannot_hold_the_answer_is_refused_before_the_run(
    args: tuple[str, ...], suffix: str, kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(kamado.Runtime, "load", lambda *args, **kwargs: pytest.fail("it is loaded"))
    path, _ = tiny.saved("AutoencoderKL", folder)
    photo(16, 16).save(tmp_path / "a.png")
    target = tmp_path / f"x.{suffix}"
    command = typed(monkeypatch, capsys)
    done = command("run", str(path), "--image", str(tmp_path / "a.png"), *args, "-o", str(target))
    assert done.status == 2 and f"this makes {kind} files, which end in" in done.err
    assert not target.exists()
