"""Adapters do what diffusers and peft make of the same files: alone, several at once, and beside other requests."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy
import pytest
import safetensors.torch
import torch

import kamado
import tiny_pipelines as tiny
from kamado.errors import DoesNotFit, InvalidRequest, KamadoError, UnsupportedCheckpoint
from tiny_pipelines.adapters import lora

LARGEST_DIFFERENCE = 1e-4
CLEAR = 0.01
"""Mean difference between pictures that must differ."""
DENOISERS = {"unet", "transformer"}
WITH_LORAS = sorted(
    name
    for name, spec in tiny.PIPELINES.items()
    if name != "wan" and hasattr(getattr(diffusers, spec.class_name), "lora_state_dict")
)


class Files(dict[str, Path]):
    """Pipelines and adapters, written when they are first asked for. Of an IP-Adapter: its file."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        build = tiny.build if name in tiny.PIPELINES else tiny.build_extra
        path = build(name, self.root / name)
        self[name] = path / "models" / "ip-adapter_sd15.safetensors" if name.startswith("ip-") else path
        return self[name]

    def save(self, name: str, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def runtime() -> Iterator[kamado.Runtime]:
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made


Loras = Sequence[tuple[Path, float]]


def with_loras(pipeline: Any, loras: Loras) -> None:
    """Load LoRAs as diffusers does."""
    for index, (path, _) in enumerate(loras):
        name = f"lora{index}"
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name, local_files_only=True)
    if loras:
        pipeline.set_adapters([f"lora{index}" for index in range(len(loras))], [weight for _, weight in loras])


def asked(loras: Loras) -> list[dict[str, Any]]:
    return [{"reference": str(path), "weight": weight} for path, weight in loras]


@contextmanager
def halted(runtime: kamado.Runtime) -> Iterator[None]:
    """What is submitted inside starts at once afterwards."""
    go_on = threading.Event()
    thread = threading.Thread(target=lambda: runtime._session.call(go_on.wait))
    thread.start()
    try:
        yield
    finally:
        go_on.set()
        thread.join()


def difference(result: kamado.Result, wanted: Any) -> float:
    assert result.pixels[0].shape == wanted[0].shape
    return float(numpy.abs(result.pixels[0] - wanted[0]).max())


def clear(one: Any, other: Any) -> bool:
    return float(numpy.abs(one - other).mean()) > CLEAR


def drawn(make: Callable[[dict[str, Any]], dict[str, torch.Tensor]], models: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(models)


@pytest.mark.parametrize("name", WITH_LORAS)
def test_a_lora_for_each_kind_of_pipeline(name: str, files: Files, runtime: kamado.Runtime) -> None:
    pipeline = tiny.load(files[name])
    scheduler = pipeline.scheduler
    models = {key: part for key, part in pipeline.components.items() if key in DENOISERS and part is not None}
    path = files.save(f"own/{name}.safetensors", drawn(lora, models, 1))
    request = {**tiny.arguments(name), "seed": 5}
    without = tiny.call(pipeline, **request)
    with_loras(pipeline, [(path, 0.8)])
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    wanted = tiny.call(pipeline, **request)
    model = runtime.load(files[name])
    assert difference(model.generate(**request, adapters=[f"{path}:0.8"]), wanted) < LARGEST_DIFFERENCE
    assert difference(model.generate(**request), without) < LARGEST_DIFFERENCE
    assert clear(wanted, without)


@pytest.mark.parametrize("extra", ["lora-sd15", "lora-sd15-kohya", "lora-sdxl", "lora-sdxl-kohya", "lora-flux"])
def test_text_encoders_and_names_of_other_programs(extra: str, files: Files, runtime: kamado.Runtime) -> None:
    name = extra.split("-")[1]
    request = {**tiny.arguments(name), "seed": 3}
    wanted = tiny.oracle(files[name], prepare=lambda pipeline: with_loras(pipeline, [(files[extra], 0.7)]), **request)
    model = runtime.load(files[name])
    result = model.generate(**request, adapters=asked([(files[extra], 0.7)]))
    assert difference(result, wanted) < LARGEST_DIFFERENCE
    (adapter,) = result.recipe["adapters"]
    assert (adapter["reference"], adapter["weight"], len(adapter["sha256"])) == (str(files[extra]), 0.7, 64)


def test_a_mixed_batch(files: Files, runtime: kamado.Runtime) -> None:
    one, other = files["lora-sd15"], files["lora-sd15-kohya"]
    cases: list[Loras] = [
        [],
        [(one, 1.0)],
        [(one, 1.0)],
        [(one, 0.6), (other, -0.9)],
        [(other, -0.9), (one, 0.6)],
        [(one, 0.5)],
        [(one, 0.0)],
    ]
    requests = [
        {**tiny.arguments("sd15", prompt=index % 3), "num_inference_steps": 3, "seed": index}
        for index in range(len(cases))
    ]
    model = runtime.load(files["sd15"])
    with halted(runtime):
        jobs = [model.submit(**request, adapters=asked(case)) for request, case in zip(requests, cases, strict=True)]
    pictures = [job.result() for job in jobs]
    lane = runtime.stats()["lanes"][f"{model.owner}/unet"]
    # Without any (and with weight 0), the first one, both in either order, the first one at half weight.
    assert lane["steps"] == 4 * lane["rows"] // len(cases)
    assert runtime.stats()["lanes"][f"{model.owner}/vae"]["rows"] == len(cases)
    for request, case, result in zip(requests, cases, pictures, strict=True):
        wanted = tiny.oracle(files["sd15"], prepare=lambda pipeline, case=case: with_loras(pipeline, case), **request)
        assert difference(result, wanted) < LARGEST_DIFFERENCE


def test_without_adapters_nothing_changes(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    before = model.generate(**request).pixels[0]
    adapted = model.generate(**request, adapters=[str(files["lora-sd15"])]).pixels[0]
    assert clear(before, adapted)
    assert numpy.array_equal(before, model.generate(**request).pixels[0])
    assert numpy.array_equal(before, tiny.oracle(files["sd15"], **request)[0])
    model.generate(**request, adapters=[str(files["lora-sd15"])])
    direct = model.loaded.direct_pipeline()
    assert numpy.array_equal(before, tiny.call(direct, **request)[0])


def test_pipelines_that_run_as_a_whole(files: Files, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    adapters = [f"{files['lora-sd15']}:0.5", str(files["embedding-sd15"])]
    wanted = [model.generate(**request), model.generate(**request, adapters=adapters)]
    monkeypatch.setattr("kamado_models.diffusion.task.runs_alone", lambda name: True)
    whole = [model.generate(**request), model.generate(**request, adapters=adapters), model.generate(**request)]
    for ours, theirs in zip(whole, [*wanted, wanted[0]], strict=True):
        assert numpy.array_equal(ours.pixels[0], theirs.pixels[0])


def test_unloading_gives_everything_back(files: Files, runtime: kamado.Runtime) -> None:
    model = runtime.load(files["sd15"])
    model.generate(**tiny.arguments("sd15"), adapters=[str(files["lora-sd15"]), str(files["embedding-sd15"])])
    assert runtime.ledger.snapshot()["cpu"][model.owner]["adapters"] > 0
    assert runtime.stats()["models"][model.owner]["adapters"] == {"in_place": 2, "in_use": 0}
    unet = weakref.ref(model.loaded._workshop.factory.components["unet"])
    model.unload()
    assert model.owner not in runtime.ledger.snapshot()["cpu"]
    gc.collect()
    assert unet() is None


def test_the_one_that_was_not_used_for_longest_goes_first(files: Files, runtime: kamado.Runtime) -> None:
    one, other = str(files["lora-sd15"]), str(files["lora-sd15-kohya"])
    request = {**tiny.arguments("sd15"), "seed": 1}
    wanted = {}
    with kamado.Runtime(device="cpu", memory="2GiB") as roomy:
        model = roomy.load(files["sd15"])
        wanted = {each: model.generate(**request, adapters=[each]).pixels[0] for each in (one, other)}
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    assert numpy.array_equal(model.generate(**request, adapters=[one]).pixels[0], wanted[one])
    held = runtime.ledger.snapshot()["cpu"][model.owner]["adapters"]
    runtime.ledger.enter("cpu", "somebody else", "all", runtime.ledger.free("cpu"))
    for each in (other, one, other):
        assert numpy.array_equal(model.generate(**request, adapters=[each]).pixels[0], wanted[each])
        assert runtime.ledger.snapshot()["cpu"][model.owner]["adapters"] == held
        assert runtime.stats()["models"][model.owner]["adapters"] == {"in_place": 1, "in_use": 0}
    with pytest.raises(DoesNotFit, match="adapters need"):
        model.generate(**request, adapters=[one, other])
    assert numpy.array_equal(model.generate(**request).pixels[0], plain)
    runtime.ledger.drop("somebody else")


def test_a_file_that_was_replaced_is_read_anew(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    models = {"unet": tiny.load(files["sd15"]).unet}
    model = runtime.load(files["sd15"])
    results = []
    for seed in (1, 2):
        path = files.save("changing.safetensors", drawn(lora, models, seed))
        results.append(model.generate(**request, adapters=[str(path)]))
    assert clear(*(result.pixels[0] for result in results))
    first, second = (result.recipe["adapters"][0]["sha256"] for result in results)
    assert first != second


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
    assert lane["steps"] == 3 * lane["rows"] // 5
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


def test_an_ip_adapter(files: Files, runtime: kamado.Runtime) -> None:
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


def unusable(files: Files) -> Iterator[tuple[str, Any, type[KamadoError], str]]:
    """(name, adapters, error, what it says)"""
    good = safetensors.torch.load_file(files["lora-sd15"])
    first = next(key for key in good if "lora_A" in key)
    unet = {key: value for key, value in good.items() if key.startswith("unet.")}

    def changed(name: str, **tensors: torch.Tensor) -> list[str]:
        return [str(files.save(f"bad/{name}.safetensors", good | tensors))]

    def alone(name: str, tensors: dict[str, torch.Tensor]) -> list[str]:
        return [str(files.save(f"bad/{name}.safetensors", tensors))]

    damaged = files.root / "bad" / "damaged.safetensors"
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(files["lora-sd15"].read_bytes()[:-100])
    pickled = files.root / "bad" / "pickled.pt"
    torch.save({"a": torch.ones(1)}, pickled)
    hidden = files.root / "bad" / "hidden.safetensors"
    hidden.write_bytes(pickled.read_bytes())
    several = files.save("several/a.safetensors", good).parent
    files.save("several/b.safetensors", good)
    path = str(files["lora-sd15"])
    nan, wrong = good[first].clone(), torch.ones(4, 7)
    nan[0, 0] = torch.nan
    place = "unet.somewhere.to_q"
    homeless = {f"{place}.lora_A.weight": torch.ones(4, 8), f"{place}.lora_B.weight": torch.ones(8, 4)}
    yield "missing", [str(files.root / "none.safetensors")], kamado.ModelNotFound, "none.safetensors' does not exist"
    yield "pickle", [str(pickled)], kamado.UnsafeCheckpoint, "pickle"
    yield "hidden pickle", [str(hidden)], kamado.UnsafeCheckpoint, "pickle under another name"
    yield "damaged", [str(damaged)], UnsupportedCheckpoint, "not a sound safetensors file"
    yield "nan", changed("nan", **{first: nan}), UnsupportedCheckpoint, "NaN or infinity"
    yield "rank", changed("rank", **{first: torch.ones(0, 32)}), UnsupportedCheckpoint, "rank 0"
    yield (
        "shape",
        changed("shape", **{first: wrong}),
        InvalidRequest,
        r"lora_A has the shape \[4, 7\].* needs \[4, 32\]",
    )
    yield "half", alone("half", {first: good[first]}), UnsupportedCheckpoint, r"has only A\.weight"
    yield (
        "partly",
        changed("partly", **homeless),
        InvalidRequest,
        rf"only {len(good)} of its {len(good) + 2} .*somewhere",
    )
    yield "nothing", alone("nothing", homeless), InvalidRequest, "none of its 2 tensors"
    yield "another model", [str(files["lora-sdxl"])], InvalidRequest, "made for another model"
    yield "another program", [str(files["lora-sdxl-kohya"])], KamadoError, "lora-sdxl-kohya"
    yield "unknown names", alone("names", {"lora_unet_x": torch.ones(2, 2)}), UnsupportedCheckpoint, "no form"
    yield "dora", changed("dora", **{"unet.a.dora_scale": torch.ones(2)}), UnsupportedCheckpoint, "is a DoRA"
    yield "loha", alone("loha", {"lora_unet_x.hada_w1_a": torch.ones(2, 2)}), UnsupportedCheckpoint, "is a LoHa"
    yield "neither", alone("neither", {"a": torch.ones(2, 2), "b": torch.ones(2)}), UnsupportedCheckpoint, "neither"
    yield "numbers", alone("numbers", {"lora_99999": torch.ones(2, 2)}), UnsupportedCheckpoint, "so many layers"
    yield "whole model", [str(files["sdxl"])], UnsupportedCheckpoint, "whole model"
    yield "several files", [str(several)], UnsupportedCheckpoint, r"a\.safetensors, b\.safetensors; name the file"
    yield "no file", [str(files["sd15"] / "tokenizer")], UnsupportedCheckpoint, "no .safetensors"
    yield "twice", [path, f"{path}:0.5"], InvalidRequest, "given twice"
    yield "weight", [f"{path}:much"], InvalidRequest, "the weight 'much' is not a number"
    yield "weight nan", [f"{path}:nan"], InvalidRequest, "finite number"
    yield "weight text", [{"reference": path, "weight": "1"}], InvalidRequest, "finite number"
    yield "no reference", [{"weight": 1}], InvalidRequest, "must have a reference"
    yield "no text", [7], InvalidRequest, "7 is not a reference"
    yield "word", alone("a b", {"emb_params": torch.ones(1, 32)}), UnsupportedCheckpoint, "cannot stand in a prompt"
    yield "width", alone("width", {"emb_params": torch.ones(1, 31)}), InvalidRequest, "vectors of 31 numbers"
    yield "no vectors", alone("empty", {"emb_params": torch.ones(0, 32)}), UnsupportedCheckpoint, "the shape"
    yield "bare ip-adapter", alone("ip", {"image_proj.a": torch.ones(2)}), KamadoError, "another model"
    assert unet


def test_unusable_ones_are_told_in_a_line_and_hurt_nobody(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    job = model.submit(**request, adapters=[str(files["lora-sd15"])])
    for name, adapters, error, told in unusable(files):
        with pytest.raises(error, match=told) as caught:
            model.generate(**request, adapters=adapters)
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 600, name
    with pytest.raises(InvalidRequest, match="give each adapter its weight"):
        model.generate(**request, cross_attention_kwargs={"scale": 0.5})
    assert clear(job.result().pixels[0], plain)
    assert numpy.array_equal(model.generate(**request).pixels[0], plain)
    with pytest.raises(InvalidRequest, match="takes none"):
        runtime.load(files["dit"]).generate(**tiny.arguments("dit"), adapters=[str(files["lora-sd15"])])


def test_a_batch_of_requests_fails_alone(files: Files, runtime: kamado.Runtime) -> None:
    model = runtime.load(files["sd15"])
    small = {**tiny.arguments("sd15"), "num_inference_steps": 1, "seed": 1}
    requests = [small, {**small, "adapters": ["./none.safetensors"]}, {**small, "adapters": [str(files["lora-sd15"])]}]
    outcomes = dict(model.map(requests))
    assert [isinstance(outcomes[index], KamadoError) for index in range(3)] == [False, True, False]
