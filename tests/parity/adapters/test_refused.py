"""Adapters that cannot be used: a line that says why, for their own request alone. And where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kamado
import tiny_pipelines as tiny
from adapter_files import Files, clear
from fake_hub import fake_hub, use_hub
from kamado.errors import InvalidRequest, KamadoError, UnsupportedCheckpoint

Case = tuple[str, Any, type[KamadoError], str]
"""(name, adapters, error, what it says)"""


def changed(files: Files, name: str, **tensors: torch.Tensor) -> list[str]:
    good = safetensors.torch.load_file(files["lora-sd15"])
    return [str(files.save(f"bad/{name}.safetensors", good | tensors))]


def alone(files: Files, name: str, **tensors: torch.Tensor) -> list[str]:
    return [str(files.save(f"bad/{name}.safetensors", tensors))]


def wrong_files(files: Files) -> Iterator[Case]:
    sound = files["lora-sd15"].read_bytes()
    several = files.save("several/a.safetensors", {"lora": torch.ones(1)}).parent
    files.save("several/b.safetensors", {"lora": torch.ones(1)})
    damaged, hidden, pickled = (several.parent / name for name in ("cut.safetensors", "hidden.safetensors", "x.pt"))
    damaged.write_bytes(sound[:-100])
    torch.save({"a": torch.ones(1)}, pickled)
    hidden.write_bytes(pickled.read_bytes())
    yield "missing", [str(several / "none.safetensors")], kamado.ModelNotFound, "none.safetensors' does not exist"
    yield "pickle", [str(pickled)], kamado.UnsafeCheckpoint, "pickle"
    yield "hidden pickle", [str(hidden)], kamado.UnsafeCheckpoint, "pickle under another name"
    yield "damaged", [str(damaged)], UnsupportedCheckpoint, "not a sound safetensors file"
    yield "whole model", [str(files["sdxl"])], UnsupportedCheckpoint, "whole model"
    yield "several files", [str(several)], UnsupportedCheckpoint, r"a\.safetensors, b\.safetensors; name the file"
    yield "no file", [str(files["sd15"] / "tokenizer")], UnsupportedCheckpoint, "no .safetensors"


def wrong_requests(files: Files) -> Iterator[Case]:
    path = str(files["lora-sd15"])
    yield "twice", [path, f"{path}:0.5"], InvalidRequest, "given twice"
    yield "weight", [f"{path}:much"], InvalidRequest, "the weight 'much' is not a number"
    yield "weight nan", [f"{path}:nan"], InvalidRequest, "finite number"
    yield "weight text", [{"reference": path, "weight": "1"}], InvalidRequest, "finite number"
    yield "no reference", [{"weight": 1}], InvalidRequest, "must have a reference"
    yield "no text", [7], InvalidRequest, "7 is not a reference"
    yield "too many", [path] * 33, InvalidRequest, "at most 32"


def wrong_tensors(files: Files) -> Iterator[Case]:
    good = safetensors.torch.load_file(files["lora-sd15"])
    first, total = next(key for key in good if "lora_A" in key), len(good)
    nan, empty, wrong, two = good[first].clone(), torch.ones(0, 32), torch.ones(4, 7), torch.ones(2, 2)
    nan[0, 0] = torch.nan
    place = "unet.somewhere.to_q"
    homeless = {f"{place}.lora_A.weight": torch.ones(4, 8), f"{place}.lora_B.weight": torch.ones(8, 4)}
    shapes = r"lora_A has the shape \[4, 7\].* needs \[4, 32\]"
    yield "nan", changed(files, "nan", **{first: nan}), UnsupportedCheckpoint, "NaN or infinity"
    yield "rank", changed(files, "rank", **{first: empty}), UnsupportedCheckpoint, "rank 0"
    yield "shape", changed(files, "shape", **{first: wrong}), InvalidRequest, shapes
    yield "half", alone(files, "half", **{first: good[first]}), UnsupportedCheckpoint, r"has only A\.weight"
    yield "partly", changed(files, "part", **homeless), InvalidRequest, rf"only {total} of its {total + 2} .*somewhere"
    yield "nothing", alone(files, "nothing", **homeless), InvalidRequest, "none of its 2 tensors"
    yield "another model", [str(files["lora-sdxl"])], InvalidRequest, "made for another model"
    yield "another program", [str(files["lora-sdxl-kohya"])], KamadoError, "lora-sdxl-kohya"
    yield "unknown names", alone(files, "names", lora_unet_x=two), UnsupportedCheckpoint, "no form"
    yield "dora", changed(files, "dora", **{"unet.a.dora_scale": two}), UnsupportedCheckpoint, "is a DoRA"
    yield "loha", alone(files, "loha", **{"lora_unet_x.hada_w1_a": two}), UnsupportedCheckpoint, "is a LoHa"
    yield "neither", alone(files, "neither", a=two, b=two + 1), UnsupportedCheckpoint, "neither"
    yield "numbers", alone(files, "numbers", lora_99999=two), UnsupportedCheckpoint, "so many layers"
    yield "word", alone(files, "a b", emb_params=torch.ones(1, 32)), UnsupportedCheckpoint, "cannot stand in a prompt"
    yield "width", alone(files, "width", emb_params=torch.ones(1, 31)), InvalidRequest, "vectors of 31 numbers"
    yield "no vectors", alone(files, "empty", emb_params=empty), UnsupportedCheckpoint, "the shape"
    yield "bare ip-adapter", alone(files, "ip", **{"image_proj.a": two}), KamadoError, "another model"


def test_unusable_ones_are_told_in_a_line_and_hurt_nobody(files: Files, runtime: kamado.Runtime) -> None:
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    plain = model.generate(**request).pixels[0]
    job = model.submit(**request, adapters=[str(files["lora-sd15"])])
    for name, adapters, error, told in (*wrong_files(files), *wrong_requests(files), *wrong_tensors(files)):
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


def test_one_of_the_hub(files: Files, runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    there = {
        "pytorch_lora_weights.safetensors": files["lora-sd15"].read_bytes(),
        "checkpoint-500.safetensors": b"{}",
        "pytorch_lora_weights.bin": b"never asked for",
        "README.md": b"# A style",
    }
    request = {**tiny.arguments("sd15"), "seed": 1}
    model = runtime.load(files["sd15"])
    offline = runtime.load(files["sd15"], offline=True)
    wanted = model.generate(**request, adapters=[f"{files['lora-sd15']}:0.5"])
    with fake_hub(there) as hub:
        use_hub(monkeypatch, hub.url)
        with pytest.raises(kamado.ModelNotFound, match="the network is off"):
            offline.generate(**request, adapters=["org/name:0.5"])
        assert not hub.requests
        for loaded in (model, offline):
            result = loaded.generate(**request, adapters=["org/name:0.5"])
            assert numpy.array_equal(result.pixels[0], wanted.pixels[0])
            assert result.recipe["adapters"] == [{**wanted.recipe["adapters"][0], "reference": "org/name"}]
        assert [name for name, _ in hub.requests] == ["pytorch_lora_weights.safetensors"]
        with pytest.raises(kamado.ModelNotFound, match="org/other"):
            model.generate(**request, adapters=["org/other"])


@pytest.fixture(scope="module")
def small(files: Files) -> Iterator[kamado.Model]:
    with kamado.Runtime(device="cpu", memory="2GiB") as made:
        yield made.load(files["sd15"])


WORDS = (
    *("unet", "text_encoder", "lora_unet", "mid_block", "attentions", "0", "lora_A", "lora_B", "lora_down", "to_q"),
    *("weight", "bias", "alpha", "processor", "base_model", "transformer_blocks", "99999999", "lora.down"),
)
NAMES = st.lists(st.text(max_size=20) | st.sampled_from(WORDS), min_size=1, max_size=6).map(".".join)


@settings(max_examples=60)
@example(names=[("lora.alpha", [2])], metadata={}, mixed=False)
@given(
    names=st.lists(st.tuples(NAMES, st.lists(st.integers(0, 5), max_size=4)), min_size=1, max_size=4),
    metadata=st.dictionaries(st.sampled_from(["lora_adapter_metadata", "x"]), st.text(max_size=40), max_size=1),
    mixed=st.booleans(),
)
def test_files_from_strangers(
    small: kamado.Model, files: Files, names: list[tuple[str, list[int]]], metadata: dict[str, str], mixed: bool
) -> None:
    tensors = {name: torch.ones(shape) for name, shape in names if name.isprintable()}
    if mixed:
        tensors |= safetensors.torch.load_file(files["lora-sd15"])
    path = files.save("stranger.safetensors", tensors, metadata)
    for _ in range(2):
        try:
            small.loaded.prepare("r", {"prompt": "x", "adapters": [str(path)]}, 0.0)
        except KamadoError as error:
            assert "\n" not in str(error)


def test_a_batch_of_requests_fails_alone(files: Files, runtime: kamado.Runtime) -> None:
    model = runtime.load(files["sd15"])
    small = {**tiny.arguments("sd15"), "num_inference_steps": 1, "seed": 1}
    requests = [small, {**small, "adapters": ["./none.safetensors"]}, {**small, "adapters": [str(files["lora-sd15"])]}]
    outcomes = dict(model.map(requests))
    assert [isinstance(outcomes[index], KamadoError) for index in range(3)] == [False, True, False]
