"""Components from elsewhere: ControlNets, and models that take the place of a pipeline's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import kamado
import tiny_pipelines as tiny
from kamado.errors import InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint
from kamado.media.edges import canny
from tiny_pipelines.parts import clip_text, euler, picture_vae
from tiny_pipelines.weights import rescale

LARGEST_DIFFERENCE = 1e-4
CLEAR = 0.01


@pytest.fixture(scope="module")
def made(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline, an extra or one of `MODELS`, built when first asked for."""
    root = tmp_path_factory.mktemp("components")

    def get(name: str) -> Path:
        if name not in MODELS:
            return folders[name]
        folder = root / name
        if not folder.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sum(name.encode()))
                MODELS[name](get).save_pretrained(folder)
        return folder

    return get


def _sd15_net(get: Callable[[str], Path]) -> Any:
    from diffusers import ControlNetModel

    return rescale(ControlNetModel.from_pretrained(get("controlnet-sd15")), {"controlnet_": 0.6})


def _flux_net(get: Callable[[str], Path]) -> Any:
    from diffusers import FluxControlNetModel, FluxTransformer2DModel

    like = FluxTransformer2DModel.from_pretrained(get("flux"), subfolder="transformer")
    net = FluxControlNetModel.from_transformer(
        like, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    return rescale(net, {"controlnet_": 0.5})


def _sd3_net(get: Callable[[str], Path]) -> Any:
    from diffusers import SD3ControlNetModel, SD3Transformer2DModel

    like = SD3Transformer2DModel.from_pretrained(get("sd3"), subfolder="transformer")
    return rescale(
        SD3ControlNetModel.from_transformer(like, num_layers=1, num_extra_conditioning_channels=0), {"controlnet_": 0.5}
    )


def _small_vae(get: Callable[[str], Path]) -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


MODELS: dict[str, Callable[[Callable[[str], Path]], Any]] = {
    "second-net-sd15": _sd15_net,
    "net-flux": _flux_net,
    "second-net-flux": _flux_net,
    "net-sd3": _sd3_net,
    "vae": lambda get: picture_vae(),
    "small-vae": _small_vae,
    "text-encoder": lambda get: clip_text(layers=3),
    "scheduler": lambda get: euler(),
}


def _difference(result: kamado.Result, wanted: Any) -> float:
    assert result.pixels[0].shape == wanted[0].shape
    return float(numpy.abs(result.pixels[0] - wanted[0]).max())


def _asked(arguments: dict[str, Any]) -> dict[str, Any]:
    """A request in Kamado's words: the picture of a ControlNet is always `control`."""
    if "control_image" in arguments:
        return arguments
    return {"control" if name == "image" else name: value for name, value in arguments.items()}


CONTROLLED = [
    *(("sd15", kind, "controlnet-sd15") for kind in ("control", "control_img2img", "control_inpaint")),
    ("sdxl", "control", "controlnet-sdxl"),
]


@pytest.mark.parametrize(("name", "sibling", "net"), CONTROLLED, ids=lambda value: str(value))
def test_controlnets_beside_requests_without(
    name: str, sibling: str, net: str, made: Callable[[str], Path], runtime: kamado.Runtime
) -> None:
    from diffusers import ControlNetModel

    spec = tiny.PIPELINES[name]
    parts = {"controlnet": ControlNetModel.from_pretrained(made(net))}
    usual = [tiny.arguments(name, sibling, prompt=index) for index in range(3)]
    usual[1] |= {"controlnet_conditioning_scale": 0.4}
    usual[2] |= {"control_guidance_end": 0.5}
    wanted = [
        tiny.oracle(made(name), pipeline_class=spec.siblings[sibling], seed=index, components=parts, **each)
        for index, each in enumerate(usual)
    ]
    plain = tiny.arguments(name)
    plain_wanted = tiny.oracle(made(name), seed=5, **plain)
    model = runtime.load(made(name), components={"controlnet": made(net)})
    jobs = [model.submit(seed=index, **_asked(each)) for index, each in enumerate(usual)]
    beside = [model.submit(seed=5, **plain) for _ in range(2)]
    results = [job.result() for job in jobs]
    for result, picture in zip(results, wanted, strict=True):
        assert _difference(result, picture) < LARGEST_DIFFERENCE
    for job in beside:
        assert _difference(job.result(), plain_wanted) < LARGEST_DIFFERENCE
    assert results[0].recipe["pipeline"] == spec.siblings[sibling]
    assert results[1].recipe["options"]["control_scale"] == 0.4
    recorded = results[0].recipe["components"]["controlnet"]
    assert recorded["reference"] == f"./{made(net).name}"
    assert sorted(recorded["files"]) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert not any("controlnet" in file for file in results[0].recipe["model"]["files"])
    assert all(runtime.stats()["models"][model.owner]["compared"].values())


def test_forwards_are_shared_and_weights_held_once(made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    model = runtime.load(made("sd15"), components={"controlnet": made("controlnet-sd15")})
    held = runtime.ledger.held(owner=model.owner, kind="weights")
    usual = tiny.arguments("sd15") | {"num_inference_steps": 12}
    jobs = [model.submit(control=tiny.picture(seed), seed=seed, **usual) for seed in range(3)]
    jobs += [model.submit(control=tiny.picture(7), image=tiny.picture(seed), seed=seed, **usual) for seed in range(3)]
    jobs += [model.submit(seed=seed, **usual) for seed in range(3)]
    for job in jobs:
        job.result()
    stats = runtime.stats()
    assert stats["models"][model.owner]["compared"] == {"controlnet.forward": True}
    for lane in ("unet", "controlnet"):
        assert stats["lanes"][f"{model.owner}/{lane}"]["mean_batch"] > 1.5
    assert runtime.ledger.held(owner=model.owner, kind="weights") == held


def test_several_controlnets(made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    from diffusers import ControlNetModel

    paths = [made("controlnet-sd15"), made("second-net-sd15")]
    nets = [ControlNetModel.from_pretrained(path) for path in paths]
    usual = tiny.arguments("sd15")
    pictures = [tiny.picture(7), tiny.picture(3)]
    oracle_kind = tiny.PIPELINES["sd15"].siblings["control"]
    model = runtime.load(made("sd15"), components={"controlnet": paths})
    assert [lane.lane for lane in model.plan.lanes][:2] == ["controlnet", "controlnet_2"]
    for scale in (0.5, [0.2, 1.0]):
        wanted = tiny.oracle(
            made("sd15"), pipeline_class=oracle_kind, components={"controlnet": nets}, image=pictures,
            controlnet_conditioning_scale=scale, **usual,
        )  # fmt: skip
        result = model.generate(control=pictures, control_scale=scale, seed=0, **usual)
        assert _difference(result, wanted) < LARGEST_DIFFERENCE
    assert set(result.recipe["components"]) == {"controlnet", "controlnet_2"}
    with pytest.raises(InvalidRequest, match="2 ControlNets, so it takes 2 pictures, not 1"):
        model.generate(control=pictures[0], **usual)
    with pytest.raises(InvalidRequest, match="give 2 numbers"):
        model.generate(control=pictures, control_scale=[1.0, 1.0, 1.0], **usual)


@pytest.mark.parametrize("several", [False, True])
def test_flux(several: bool, made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    from diffusers import FluxControlNetModel

    paths = [made("net-flux"), made("second-net-flux")][: 2 if several else 1]
    nets = [FluxControlNetModel.from_pretrained(path) for path in paths]
    pictures: Any = [tiny.picture(seed) for seed in (7, 3)] if several else tiny.picture(7)
    usual = tiny.arguments("flux") | {"control_image": pictures}
    scale = {"controlnet_conditioning_scale": [1.0, 1.0]} if several else {}
    wanted = tiny.oracle(
        made("flux"), pipeline_class="FluxControlNetPipeline", **usual, **scale,
        components={"controlnet": nets if several else nets[0]},
    )  # fmt: skip
    plain = tiny.oracle(made("flux"), **tiny.arguments("flux"))
    model = runtime.load(made("flux"), components={"controlnet": paths})
    jobs = [model.submit(seed=0, **usual) for _ in range(2)]
    without = model.submit(seed=0, **tiny.arguments("flux"))
    for job in jobs:
        assert _difference(job.result(), wanted) < LARGEST_DIFFERENCE
    assert _difference(without.result(), plain) < LARGEST_DIFFERENCE
    assert float(numpy.abs(wanted - plain).mean()) > CLEAR
    assert all(runtime.stats()["models"][model.owner]["compared"].values())


def test_sd3(made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    from diffusers import SD3ControlNetModel

    net = SD3ControlNetModel.from_pretrained(made("net-sd3"))
    usual = tiny.arguments("sd3") | {"control_image": tiny.picture(7)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # this pipeline draws the latents of its control picture from everybody's random numbers
        wanted = tiny.oracle(
            made("sd3"), pipeline_class="StableDiffusion3ControlNetPipeline", components={"controlnet": net}, **usual
        )
    model = runtime.load(made("sd3"), components={"controlnet": made("net-sd3")})
    jobs = [model.submit(seed=0, **usual) for _ in range(2)]
    for job in jobs:
        assert _difference(job.result(), wanted) < LARGEST_DIFFERENCE
    with pytest.raises(InvalidRequest, match=r"takes no control beside image$"):
        model.generate(image=tiny.picture(0), **usual)


def test_a_saved_pipeline_with_a_controlnet(
    made: Callable[[str], Path], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    net = ControlNetModel.from_pretrained(made("controlnet-sd15"))
    pipeline = tiny.load(made("sd15"), pipeline_class=StableDiffusionControlNetPipeline, controlnet=net)
    pipeline.save_pretrained(tmp_path)
    usual = tiny.arguments("sd15")
    model = runtime.load(tmp_path)
    result = model.generate(control=tiny.picture(7), seed=0, **usual)
    assert _difference(result, tiny.call(pipeline, image=tiny.picture(7), **usual)) < LARGEST_DIFFERENCE
    edges, mapped = (
        model.generate(control=control, seed=0, **usual, **more)
        for control, more in ((canny(tiny.picture(7)), {}), (tiny.picture(7), {"control_map": "edges"}))
    )
    assert (edges.pixels[0] == mapped.pixels[0]).all() and (mapped.pixels[0] != result.pixels[0]).any()
    assert mapped.recipe["options"]["control_map"] == "edges" and mapped.recipe["inputs"] == result.recipe["inputs"]
    with pytest.raises(InvalidRequest, match="control_map says what is made of control"):
        model.generate(control_map="edges", **usual)
    result = model.generate(seed=0, **usual)
    assert _difference(result, tiny.oracle(made("sd15"), **usual)) < LARGEST_DIFFERENCE
    assert result.recipe["pipeline"] == "StableDiffusionPipeline"
    assert "components" not in result.recipe


@pytest.mark.parametrize(
    ("component", "part"),
    [("vae", "vae"), ("vae", "small-vae"), ("text_encoder", "text-encoder"), ("scheduler", "scheduler")],
)
def test_swapped_components(component: str, part: str, made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    import diffusers
    import transformers

    kinds: dict[str, Any] = {
        "vae": diffusers.AutoencoderKL, "small-vae": diffusers.AutoencoderTiny,
        "text-encoder": transformers.CLIPTextModel, "scheduler": diffusers.EulerDiscreteScheduler,
    }  # fmt: skip
    usual = tiny.arguments("sd15")
    own = tiny.oracle(made("sd15"), **usual)
    wanted = tiny.oracle(made("sd15"), components={component: kinds[part].from_pretrained(made(part))}, **usual)
    before = runtime.plan(made("sd15"))
    model = runtime.load(made("sd15"), components={component: made(part)})
    result = model.generate(seed=0, **usual)
    assert _difference(result, wanted) < LARGEST_DIFFERENCE
    assert float(numpy.abs(wanted - own).mean()) > 1e-4
    assert f"{component}: {made(part)}" in model.plan.notes
    held = runtime.ledger.held(owner=model.owner, kind="weights")
    assert held == pytest.approx(model.plan.weight_bytes, rel=0.02)
    if part in ("small-vae", "text-encoder"):
        assert model.plan.weight_bytes != before.weight_bytes


def test_parts_of_other_pipelines_and_folders(made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    usual = tiny.arguments("sd15")
    for reference in (made("lcm"), f"{made('lcm')}#vae"):
        from diffusers import AutoencoderKL

        wanted = tiny.oracle(
            made("sd15"), components={"vae": AutoencoderKL.from_pretrained(made("lcm"), subfolder="vae")}, **usual
        )
        model = runtime.load(made("sd15"), components={"vae": reference})
        assert _difference(model.generate(seed=0, **usual), wanted) < LARGEST_DIFFERENCE
        model.unload()
    model = runtime.load(made("sdxl"), components={"text_encoder_2": f"{made('sdxl-refiner')}#text_encoder_2"})
    recorded = model.generate(seed=0, **tiny.arguments("sdxl")).recipe["components"]["text_encoder_2"]
    assert sorted(recorded["files"]) == ["config.json", "model.safetensors"]


def test_a_component_can_be_left_out(made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    usual = tiny.arguments("sd3")
    wanted = tiny.oracle(made("sd3"), components={"text_encoder_3": None, "tokenizer_3": None}, **usual)
    model = runtime.load(made("sd3"), components={"text_encoder_3": None, "tokenizer_3": None})
    result = model.generate(seed=0, **usual)
    assert _difference(result, wanted) < LARGEST_DIFFERENCE
    assert result.recipe["components"] == {"text_encoder_3": None, "tokenizer_3": None}
    assert "text_encoder_3" not in {lane.lane for lane in model.plan.lanes}


BAD, ODD = UnsupportedCheckpoint, InvalidRequest
WRONG: dict[str, tuple[Any, type[KamadoError], str]] = {
    "another model": ({"vae": "controlnet-sd15"}, BAD, "is a ControlNetModel; the vae must be a AutoencoderKL"),
    "another text encoder": (
        {"text_encoder": "sd3#text_encoder_3"}, BAD, "is a T5EncoderModel; the text_encoder must be a CLIPTextModel",
    ),
    "no ControlNet": ({"controlnet": "vae"}, BAD, "controlnet must be ControlNetModel, not AutoencoderKL"),
    "a ControlNet of others": ({"controlnet": "net-sd3"}, BAD, "must be ControlNetModel, not SD3ControlNetModel"),
    "mixed ControlNets": (
        {"controlnet": ["controlnet-sd15", "net-sd3"]}, BAD, "not ControlNetModel, SD3ControlNetModel",
    ),
    "no place for it": ({"transformer": "flux"}, ODD, "no component transformer; it has controlnet, "),
    "several": ({"vae": ["vae", "vae"]}, ODD, "vae takes one reference"),
    "a pipeline without it": ({"vae_2": "flux"}, BAD, "is a pipeline without a vae_2; name the folder"),
    "a folder that is not there": ({"vae": "flux#nothing"}, BAD, "no folder 'nothing'"),
    "a folder above": ({"vae": "flux#../sd15"}, UnsafeCheckpoint, "'..' parts"),
    "a tokenizer for a model": ({"vae": "flux#tokenizer"}, BAD, "not a model that can be the vae"),
    "no name": ({"../vae": "vae"}, ODD, "is not the name of a component"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(name: str, made: Callable[[str], Path], runtime: kamado.Runtime) -> None:
    given, error, text = WRONG[name]

    def reference(value: str) -> str:
        whole, separator, folder = value.partition("#")
        return f"{made(whole)}{separator}{folder}"

    components = {
        key: [reference(each) for each in value] if isinstance(value, list) else reference(value)
        for key, value in given.items()
    }
    with pytest.raises(error, match=text):
        runtime.load(made("sd15"), components=components)
    assert runtime.ledger.held() == 0


def test_what_components_cannot_do(made: Callable[[str], Path], runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(made("sd15"))
    with pytest.raises(InvalidRequest, match=r"loaded without a ControlNet.*--component controlnet=REF"):
        model.generate("x", control=tiny.picture(7), steps=1)
    with pytest.raises(UnsupportedCheckpoint, match=r"one model \(ControlNetModel\).*--component NAME="):
        runtime.load(made("controlnet-sd15"))
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "ControlNetModel", "auto_map": {"AutoModel": "x.Y"}})
    )
    (tmp_path / "x.safetensors").write_bytes((made("vae") / "diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(UnsafeCheckpoint, match="wants its own code run"):
        runtime.plan(made("sd15"), components={"controlnet": tmp_path})
    with pytest.raises(InvalidRequest, match="is one model, so there are no components"):
        runtime.plan(made("vae"), components={"vae": made("vae")})


@pytest.mark.parametrize(("name", "net"), [("sd15", "controlnet-sdxl"), ("sdxl", "controlnet-sd15")])
def test_a_controlnet_of_another_family(
    name: str, net: str, made: Callable[[str], Path], runtime: kamado.Runtime
) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=r"controlnet was made for another family of models: its \w+ is "):
        runtime.load(made(name), components={"controlnet": made(net)}, progress=lambda done, total: pytest.fail("read"))
    assert runtime.ledger.held() == 0
