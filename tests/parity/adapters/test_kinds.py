"""Embeddings, IP-Adapters and all forms of LoRAs do what diffusers makes of the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

import kamado
import tiny_pipelines as tiny
from adapter_files import LARGEST_DIFFERENCE, Files, clear, difference, drawn, halted, with_loras
from kamado.errors import InvalidRequest
from tiny_pipelines.adapters import lora


def test_an_embedding(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "prompt": f"{tiny.TOKEN} on a mat, {tiny.TOKEN}", "seed": 2}
    path = files["embedding-sd15"]
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    wanted = tiny.oracle(files["sd15"], prepare=lambda pipeline: pipeline.load_textual_inversion(path), **request)
    with halted(runtime):
        jobs = [
            model.submit(**request),
            model.submit(**request, adapters=[str(path)]),
            model.submit(**{**request, "seed": 3}, adapters=[str(path)]),
            model.submit(**request, adapters=[str(path), str(files["lora-sd15"])]),
        ]
    results = [job.result() for job in jobs]
    assert difference(results[1], wanted) < LARGEST_DIFFERENCE
    assert clear(plain, wanted[0])
    assert numpy.abs(results[0].pixels[0] - plain).max() < LARGEST_DIFFERENCE
    # The first ran by itself. An embedding changes text encoders alone, so the UNet's forwards are shared.
    lane = runtime.stats()["lanes"][f"{model.owner}/unet"]
    calls = lane["rows"] // 5
    assert 3 * calls <= lane["steps"] < 4 * calls
    weighted = model.generate(**request, adapters=[str(path)], weighting="a1111")
    assert difference(weighted, wanted) < LARGEST_DIFFERENCE
    assert numpy.array_equal(model.generate(**request).pixels[0], plain)

    def both(pipeline: Any) -> None:
        pipeline.load_textual_inversion(path)
        with_loras(pipeline, [(files["lora-sd15"], 1.0)])

    assert difference(results[3], tiny.oracle(files["sd15"], prepare=both, **request)) < LARGEST_DIFFERENCE


def test_embeddings_for_two_encoders_and_two_at_once(files: Files, runtime: kamado.Runtime) -> None:
    draw = torch.Generator().manual_seed(4)
    vectors = {name: 2.0 * torch.randn(3, 32, generator=draw) for name in ("clip_l", "clip_g")}
    path = files.save("glaze.safetensors", vectors)
    single = files.save("ember.safetensors", {"emb_params": 2.0 * torch.randn(32, generator=draw)})
    request = {**tiny.arguments("sdxl"), "prompt": "glaze and ember", "seed": 2}

    def load(pipeline: Any) -> None:
        for name, suffix in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
            state = {"glaze": vectors[name]}
            pipeline.load_textual_inversion(state, text_encoder=encoder, tokenizer=tokenizer)
        state = {"ember": safetensors.torch.load_file(single)["emb_params"]}
        pipeline.load_textual_inversion(state, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)

    wanted = tiny.oracle(files["sdxl"], prepare=load, **request)
    model = runtime.load(files["sdxl"])
    result = model.generate(**request, adapters=[str(path), str(single)])
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    assert clear(result.pixels[0], model.generate(**request, adapters=[str(path)]).pixels[0])
    with pytest.raises(InvalidRequest, match="no weight"):
        model.generate(**request, adapters=[f"{path}:0.5"])
    word = files.save("a.safetensors", {"emb_params": torch.ones(1, 32)})
    again = files.save("copy/glaze.safetensors", {"emb_params": torch.ones(1, 32)})
    for clashing in ([str(word)], [str(path), str(again)]):
        with pytest.raises(InvalidRequest, match="already"):
            model.generate(**request, adapters=clashing)


def test_an_ip_adapter(files: Files, runtime: kamado.Runtime, tmp_path: Path) -> None:
    request = {**tiny.arguments("sd15"), "seed": 2}
    path, shown = files["ip-adapter-sd15"], tiny.picture(1)

    def load(pipeline: Any) -> None:
        folder = {"subfolder": "models", "weight_name": path.name, "local_files_only": True}
        pipeline.load_ip_adapter(str(path.parent.parent), **folder)
        pipeline.set_ip_adapter_scale(0.6)

    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    adapters = [f"{path}:0.6"]
    jobs = [
        model.submit(**request, adapters=adapters, ip_adapter_image=shown),
        model.submit(**request),
        model.submit(**{**request, "seed": 9}, adapters=adapters, ip_adapter_image=tiny.picture(0)),
    ]
    results = [job.result() for job in jobs]
    wanted = tiny.oracle(files["sd15"], prepare=load, ip_adapter_image=shown, **request)
    assert difference(results[0], wanted) < LARGEST_DIFFERENCE
    assert clear(wanted[0], plain)
    assert numpy.abs(results[1].pixels[0] - plain).max() < LARGEST_DIFFERENCE
    assert numpy.array_equal(model.generate(**request).pixels[0], plain)
    assert numpy.array_equal(tiny.call(model.loaded.direct_pipeline(), **request)[0], plain)
    shown.save(tmp_path / "shown.png")
    from_file = model.generate(**request, adapters=adapters, ip_adapter_image=str(tmp_path / "shown.png"))
    assert from_file.recipe["inputs"] == results[0].recipe["inputs"]
    assert len(from_file.recipe["inputs"]["ip_adapter_image"]["sha256"]) == 64
    assert difference(from_file, wanted) < LARGEST_DIFFERENCE

    def both(pipeline: Any) -> None:
        load(pipeline)
        with_loras(pipeline, [(files["lora-sd15"], 0.5)])

    wanted = tiny.oracle(files["sd15"], prepare=both, ip_adapter_image=shown, **request)
    result = model.generate(**request, adapters=[*adapters, f"{files['lora-sd15']}:0.5"], ip_adapter_image=shown)
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    for options, told in (
        ({"adapters": adapters}, "give ip_adapter_image"),
        ({"ip_adapter_image": shown}, "needs an IP-Adapter"),
        ({"ip_adapter_image": shown, "adapters": [str(files["lora-sd15"])]}, "needs an IP-Adapter"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            model.generate(**request, **options)


def test_forms_of_loras(files: Files, runtime: kamado.Runtime) -> None:
    """Convolutions, ranks and alphas of their own, alphas in peft's settings, peft's folders, diffusers' old names."""
    pipeline = tiny.load(files["sd15"])
    draw = torch.Generator().manual_seed(4)
    state = {}
    for number, (path, layer) in enumerate(pipeline.unet.named_modules(), start=1):
        if path.endswith(("to_q", "conv1", "time_emb_proj", "ff.net.2", "conv_in")):
            rank = 1 + number % 5
            outs, ins, *kernel = layer.weight.shape
            state[f"unet.{path}.lora_A.weight"] = torch.randn(rank, ins, *kernel, generator=draw) * 0.2
            state[f"unet.{path}.lora_B.weight"] = torch.randn(outs, rank, *[1] * len(kernel), generator=draw) * 0.2
    settings = {"unet.r": 4, "unet.lora_alpha": 2, "unet.use_rslora": True, "unet.target_modules": ["to_q", "conv1"]}
    settings["unet.rank_pattern"] = {
        f"^{key.split('.', 1)[1].removesuffix('.lora_A.weight')}": value.shape[0]
        for key, value in state.items()
        if "lora_A" in key
    }
    old = {
        key.replace("to_q.lora_A", "processor.to_q_lora.down").replace("to_q.lora_B", "processor.to_q_lora.up"): value
        for key, value in drawn(lora, {"unet": pipeline.unet}, 3).items()
        if ".to_q." in key
    }
    peft = {f"base_model.model.{key.removeprefix('unet.')}": value for key, value in state.items() if ".to_q." in key}
    rank_one = {key: value for key, value in state.items() if ".to_q." in key}
    paths = {
        "shapes": files.save("shapes.safetensors", state),
        "settings": files.save("settings.safetensors", state, {"lora_adapter_metadata": json.dumps(settings)}),
        "old": files.save("old.safetensors", old),
    }
    folder = files.save("peft/adapter_model.safetensors", peft).parent
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "alpha_pattern": {"mid_block.*": 9}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    alphas = {key.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for key in rank_one if "lora_A" in key}
    request = {**tiny.arguments("sd15"), "num_inference_steps": 2, "seed": 2}
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    for name, path in paths.items():
        wanted = tiny.oracle(files["sd15"], prepare=lambda p, path=path: with_loras(p, [(path, 1.0)]), **request)
        result = model.generate(**request, adapters=[str(path)])
        assert difference(result, wanted) < LARGEST_DIFFERENCE, name
        assert clear(result.pixels[0], plain), name
    same = files.save("alphas.safetensors", rank_one | alphas)
    ours, theirs = (model.generate(**request, adapters=[str(path)]).pixels[0] for path in (folder, same))
    assert numpy.array_equal(ours, theirs)
    assert clear(ours, plain)


def test_flux_under_kohyas_names(files: Files, runtime: kamado.Runtime) -> None:
    """Their query, key and value are one matrix there."""
    draw = torch.Generator().manual_seed(4)
    width = tiny.load(files["flux"]).transformer.inner_dim
    state = {}
    for block in ("double_blocks_0_img_attn_qkv", "double_blocks_0_txt_attn_qkv"):
        state[f"lora_unet_{block}.lora_down.weight"] = torch.randn(2, width, generator=draw) * 0.5
        state[f"lora_unet_{block}.lora_up.weight"] = torch.randn(3 * width, 2, generator=draw) * 0.5
        state[f"lora_unet_{block}.alpha"] = torch.tensor(1.5)
    path = files.save("kohya-flux.safetensors", state)
    request = {**tiny.arguments("flux"), "seed": 2}
    wanted = tiny.oracle(files["flux"], prepare=lambda pipeline: with_loras(pipeline, [(path, 1.0)]), **request)
    result = runtime.load(files["flux"]).generate(**request, adapters=[str(path)])
    assert difference(result, wanted) < LARGEST_DIFFERENCE
