"""Single files in their authors' layouts make the pictures of the folders that hold the same models."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import original_files
import tiny_pipelines as tiny
from kamado.checkpoint.inspect import inspect
from kamado.errors import HubUnreachable, InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado_models.diffusion.original import kinds
from tiny_pipelines import Folders
from tiny_pipelines.parts import clip_text, picture_vae
from tiny_pipelines.weights import rescale

LARGEST_DIFFERENCE = 1e-4
NAMES = ("sd15", "sd15-inpaint", "sdxl", "sdxl-refiner", "sd3", "flux", "flux-schnell")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What somebody tried to reach."""
    tried: list[Any] = []

    def refuse(self: Any, address: Any, *rest: Any) -> None:
        tried.append(address)
        raise OSError("the network is off in this test")

    def lookup(host: Any, *rest: Any, **named: Any) -> None:
        tried.append(host)
        raise socket.gaierror("the network is off in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return tried


def difference(result: kamado.Result, wanted: Any) -> float:
    assert result.pixels[0].shape == wanted[0].shape
    return float(numpy.abs(result.pixels[0] - wanted[0]).max())


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_the_folder(
    name: str, folders: Folders, runtime: kamado.Runtime, tmp_path: Path, no_network: list[Any]
) -> None:
    pipeline = tiny.load(folders[name])
    path = original_files.single_file(pipeline, name, tmp_path / "x.safetensors")
    usual = tiny.arguments(name)
    wanted = tiny.call(pipeline, seed=3, **usual)
    plan = runtime.plan(path, base=folders[name])
    model = runtime.load(path, base=folders[name])
    jobs = [model.submit(seed=3, **usual) for _ in range(2)]
    for job in jobs:
        result = job.result()
        assert difference(result, wanted) < LARGEST_DIFFERENCE
    assert no_network == []
    assert plan.weight_bytes == pytest.approx(runtime.ledger.held(owner=model.owner, kind="weights"), rel=0.01)
    assert list(result.recipe["model"]["files"]) == ["x.safetensors"]
    base = result.recipe["base"]
    assert base["reference"] == f"./{folders[name].name}"
    assert {"scheduler/scheduler_config.json"} < set(base["files"])
    assert not any(file.endswith(".safetensors") for file in base["files"]), "all weights are the file's"
    assert model.info["components"] == sorted(original_files.LAYOUTS[name])


def test_stable_diffusion_2(folders: Folders, runtime: kamado.Runtime, tmp_path: Path) -> None:
    """OpenCLIP's text encoder in the place of CLIP's, and a UNet with linear projections."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = clip_text(act="gelu")
        unet = tiny.unets.unet(use_linear_projection=True)
    pipeline = tiny.load(folders["sd15"], text_encoder=encoder, unet=unet)
    pipeline.save_pretrained(tmp_path / "folder")
    path = original_files.single_file(pipeline, "sd2", tmp_path / "x.safetensors")
    usual = tiny.arguments("sd15")
    wanted = tiny.call(pipeline, seed=3, **usual)
    result = runtime.load(path, base=tmp_path / "folder").generate(seed=3, **usual)
    assert difference(result, wanted) < LARGEST_DIFFERENCE


def _variant(name: str, folders: Folders) -> tuple[Any, str, dict[str, Any]]:
    """A pipeline of a variant, the tiny pipeline that it varies, and what to call it with."""
    import diffusers

    base = "sd15" if name == "ip2p" else "flux"
    parts = {key: part for key, part in tiny.load(folders[base]).components.items() if part is not None}
    size = {"prompt": "a red cat", "num_inference_steps": 3}
    if name == "ip2p":
        kind, parts["unet"] = diffusers.StableDiffusionInstructPix2PixPipeline, tiny.unets.unet(in_channels=8)
        nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return kind(**parts, **nothing), base, size | {"image": tiny.picture(1), "image_guidance_scale": 1.5}
    known = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    channels = {"fill": 384, "control": 128}[name]
    transformer = diffusers.FluxTransformer2DModel(**known | {"in_channels": channels, "out_channels": 64})
    parts["transformer"] = rescale(transformer, {"proj_out": 2.5})
    size |= {"height": 64, "width": 64, "max_sequence_length": 48}
    if name == "fill":
        return diffusers.FluxFillPipeline(**parts), base, size | {"image": tiny.picture(1), "mask_image": tiny.mask()}
    return diffusers.FluxControlPipeline(**parts), base, size | {"control_image": tiny.picture(1)}


@pytest.mark.parametrize("name", ["fill", "control", "ip2p"])
def test_variants_complete_themselves_from_the_plain_model(
    name: str, folders: Folders, runtime: kamado.Runtime, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pipeline, base, usual = _variant(name, folders)
    pipeline.set_progress_bar_config(disable=True)
    path = original_files.single_file(pipeline, base, tmp_path / "x.safetensors")
    wanted = tiny.call(pipeline, seed=3, **usual)
    result = runtime.load(path, base=folders[base]).generate(seed=3, **usual)
    assert result.recipe["pipeline"] == type(pipeline).__name__
    assert difference(result, wanted) < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_what_a_file_lacks_comes_from_the_base(
    name: str, folders: Folders, runtime: kamado.Runtime, tmp_path: Path
) -> None:
    """Files with the denoiser alone, of another training than the base's."""
    pipeline = tiny.load(folders[name])
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.02)
    # A tiny UNet alone is of no published width; beside a text encoder it is known.
    kept = {"sd15": ("unet", "text_encoder")}.get(name, ("transformer",))
    rest = tuple(part for part in original_files.LAYOUTS[name] if part not in kept)
    path = original_files.single_file(pipeline, name, tmp_path / "x.safetensors", leave_out=rest)
    usual = tiny.arguments(name)
    wanted = tiny.call(pipeline, seed=3, **usual)
    result = runtime.load(path, base=folders[name]).generate(seed=3, **usual)
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    weights = {file for file in result.recipe["base"]["files"] if file.endswith(".safetensors")}
    assert {file.partition("/")[0] for file in weights} == set(rest)
    with pytest.raises(UnsupportedCheckpoint, match=r"holds no vae.*--base.*--component"):
        runtime.plan(path)


def test_parts_as_files_of_their_own(folders: Folders, runtime: kamado.Runtime, tmp_path: Path) -> None:
    """As they are published one by one: the transformer, the autoencoder, two text encoders in transformers' names."""
    pipeline = tiny.load(folders["flux"])
    written = original_files.written
    file = written(original_files.flux(pipeline.transformer), tmp_path / "flux.safetensors")
    parts = {
        "vae": written(original_files.vae(pipeline.vae, ""), tmp_path / "ae.safetensors"),
        "text_encoder": written(
            original_files.clip(pipeline.text_encoder, "") | {"text_projection.weight": torch.eye(32)},
            tmp_path / "clip_l.safetensors",
        ),
        "text_encoder_2": written(original_files.t5(pipeline.text_encoder_2, ""), tmp_path / "t5xxl.safetensors"),
    }
    usual = tiny.arguments("flux")
    wanted = tiny.call(pipeline, seed=3, **usual)
    result = runtime.load(file, base=folders["flux"], components=parts).generate(seed=3, **usual)
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    assert set(result.recipe["components"]) == set(parts)
    assert not any(each.endswith(".safetensors") for each in result.recipe["base"]["files"])


@pytest.mark.parametrize("how", ["alone", "whole"])
def test_an_autoencoder_in_a_file_for_a_folder(
    how: str, folders: Folders, runtime: kamado.Runtime, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vae = picture_vae()
    pipeline = tiny.load(folders["sd15"], vae=vae)
    if how == "alone":
        path = original_files.written(original_files.vae(vae, ""), tmp_path / "x.safetensors")
    else:
        path = original_files.single_file(pipeline, "sd15", tmp_path / "x.safetensors")
    usual = tiny.arguments("sd15")
    model = runtime.load(folders["sd15"], components={"vae": path})
    assert difference(model.generate(seed=3, **usual), tiny.call(pipeline, seed=3, **usual)) < LARGEST_DIFFERENCE
    assert model.plan.weight_bytes == runtime.plan(folders["sd15"]).weight_bytes
    with pytest.raises(UnsupportedCheckpoint, match=r"cannot be the controlnet: it has no config\.json"):
        runtime.plan(folders["sd15"], components={"controlnet": path})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_in_other_precisions(
    dtype: torch.dtype, folders: Folders, runtime: kamado.Runtime, tmp_path: Path
) -> None:
    pipeline = tiny.load(folders["flux"])
    rounded = {name: t.to(dtype) for name, t in original_files.flux(pipeline.transformer).items()}
    path = original_files.written(rounded, tmp_path / "x.safetensors")
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    usual = tiny.arguments("flux")
    result = runtime.load(path, base=folders["flux"]).generate(seed=3, **usual)
    assert difference(result, tiny.call(pipeline, seed=3, **usual)) < LARGEST_DIFFERENCE


@pytest.fixture
def small_kind(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Stable Diffusion 1 were of the tiny size: what is known of the kind is what its folder says."""
    components = inspect(folders["sd15"]).metadata["components"]
    kind = kinds.load_kind("sd1")
    parts = {name: replace(part, config=components[name]) for name, part in kind.parts.items()}
    monkeypatch.setattr(kinds, "load_kind", lambda name: replace(kind, parts=parts))


@pytest.mark.usefixtures("small_kind")
def test_without_a_base(
    folders: Folders, runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[Any]
) -> None:
    """Configurations and scheduler are known; the tokenizer is named, or lies in a hub cache without any weights."""
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    pipeline = tiny.load(folders["sd15"])
    path = original_files.single_file(pipeline, "sd15", tmp_path / "x.safetensors")
    usual = tiny.arguments("sd15")
    wanted = tiny.call(pipeline, seed=3, **usual)
    assert runtime.plan(path, offline=True).weight_bytes > 0
    with pytest.raises(
        HubUnreachable, match=r"holds no tokenizer, and stable-diffusion-v1-5/.*--base.*--component tok"
    ):
        runtime.load(path, offline=True)
    assert no_network == []
    named = runtime.load(path, components={"tokenizer": folders["sd15"]}, offline=True)
    result = named.generate(seed=3, **usual)
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    assert "tokenizers" not in result.recipe
    repository = tmp_path / "hub" / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "tokenizer").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for file in (folders["sd15"] / "tokenizer").iterdir():
        (snapshot / "tokenizer" / file.name).write_bytes(file.read_bytes())
    result = runtime.load(path, offline=True).generate(seed=3, **usual)
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    assert result.recipe["tokenizers"]["reference"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert all(file.startswith("tokenizer/") for file in result.recipe["tokenizers"]["files"])
    assert no_network == []


def _wide(folders: Folders, root: Path) -> Path:
    """A pipeline like sd15 whose UNet takes wider text states."""
    unet = tiny.unets.unet(cross_attention_dim=64)
    tiny.load(folders["sd15"], unet=unet).save_pretrained(root / "wide")
    return root / "wide"


Wrong = Callable[[Folders, Path], dict[str, Any]]
WRONG: dict[str, tuple[Wrong, type[KamadoError], str]] = {
    "a base of another kind": (
        lambda folders, path: {"base": folders["flux"]}, UnsupportedCheckpoint,
        r"\(FluxPipeline\) cannot be the base of .*Stable Diffusion 1: its unet would have to be a UNet2DCondition",
    ),
    "a base of another size": (
        lambda folders, path: {"base": _wide(folders, path)}, UnsupportedCheckpoint,
        "the cross_attention_dim of its unet is 64, that of the file 32",
    ),
    "a base that is no pipeline": (
        lambda folders, path: {"base": folders["sd15"] / "vae"}, UnsupportedCheckpoint,
        "cannot be a base: it is no pipe",
    ),
    "a base for a folder": (
        lambda folders, path: {"reference": folders["sd15"], "base": folders["sd15"]}, InvalidRequest, "needs no base",
    ),
    "a base that is not there": (
        lambda folders, path: {"base": "./nowhere"}, kamado.ModelNotFound, "'./nowhere' does not exist",
    ),
    "an unknown layout": (
        lambda folders, path: {"reference": folders["sd15"] / "vae" / "diffusion_pytorch_model.safetensors"},
        UnsupportedCheckpoint, r"its tensors \(.*\.\.\.\) are in no known layout; a part of a pipeline goes to --comp",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(name: str, folders: Folders, runtime: kamado.Runtime, tmp_path: Path) -> None:
    path = original_files.single_file(tiny.load(folders["sd15"]), "sd15", tmp_path / "x.safetensors")

    given, error, text = WRONG[name]
    with pytest.raises(error, match=text):
        runtime.load(**({"reference": path} | given(folders, tmp_path)), offline=True)
    assert runtime.ledger.held() == 0


def test_damaged_files_and_pickles(folders: Folders, runtime: kamado.Runtime, tmp_path: Path) -> None:
    path = original_files.single_file(tiny.load(folders["sd15"]), "sd15", tmp_path / "x.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsupportedCheckpoint, match=r"x\.safetensors"):
        runtime.load(path, base=folders["sd15"])
    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}}, tmp_path / "x.ckpt")
    with pytest.raises(UnsafeCheckpoint, match=r"is a pickle.*kamado convert-pickle"):
        runtime.load(tmp_path / "x.ckpt", base=folders["sd15"])
    pipeline = tiny.load(folders["sd15"])
    tensors = original_files.unet(pipeline.unet)
    tensors |= original_files.clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    del tensors["model.diffusion_model.out.2.bias"]
    cut = original_files.written(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(UnsupportedCheckpoint, match=r"its unet lacks conv_out\.bias"):
        runtime.load(cut, base=folders["sd15"])
    assert runtime.ledger.held() == 0
