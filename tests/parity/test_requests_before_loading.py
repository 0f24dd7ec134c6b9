"""What is wrong with a request is found before weights are read, in the words in which a loaded model would say it."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kamado
import tiny
import tiny_media
from kamado.cli.main import main
from kamado.errors import ContextOverflow, InvalidRequest, KamadoError, ModelNotFound, UnsupportedCheckpoint
from kamado.requests import TEXT_OPTION_NAMES

PICTURE = Image.new("RGB", (64, 64), "red")
SMALL = Image.new("RGB", (32, 32))
TEXT = {"prompt": "a red heart"}
BAD: Mapping[str, list[tuple[dict[str, Any], str]]] = {
    "sd15": [
        ({}, "give a prompt"),
        (TEXT | {"num_frames": 8}, "frames cannot be used: .* makes pictures"),
        (TEXT | {"num_waves": 8}, "takes no num_waves"),
        (TEXT | {"max_tokens": 8}, "max_tokens is for text models, and this model makes pictures"),
        (TEXT | {"eta": "x"}, "eta must be a number, not 'x'"),
        (TEXT | {"steps": 0}, "steps must be"),
        (TEXT | {"scheduler": "magic"}, "no scheduler is called 'magic'"),
        (TEXT | {"scheduler": "flow-euler"}, "'flow-euler' does not work with this model"),
        (TEXT | {"scheduler": "lcm", "steps": 1001}, "steps 1001"),
        (TEXT | {"width": 60}, "the nearest are 56 and 64"),
        (TEXT | {"height": 60}, "height 60"),
        (TEXT | {"width": 65_536, "height": 65_536}, "65536 x 65536 needs about"),
        (TEXT | {"width": 100_000}, "width must be"),
        (TEXT | {"image": "absent.png"}, "absent.png does not exist"),
        (TEXT | {"image": []}, "empty list"),
        (TEXT | {"image": [PICTURE, PICTURE]}, "takes 1 picture, not 2"),
        (TEXT | {"image": Image.new("RGBA", (1, 1))}, "at least 8 x 8"),
        (TEXT | {"image": PICTURE, "strength": 0.02, "steps": 25}, r"at least 0\.04; or .*steps=50"),
        (TEXT | {"image": PICTURE, "steps": 1}, r"1 x 0\.8 is less than one"),
        (TEXT | {"image": PICTURE, "width": 60, "height": 64}, "the nearest are 56 and 64"),
        (TEXT | {"strength": 0.5}, "needs a picture"),
        (TEXT | {"mask": PICTURE}, "give image too"),
        (TEXT | {"image": PICTURE, "mask": SMALL}, "the mask has 32 x 32 pixels"),
        (TEXT | {"control": PICTURE}, "without a ControlNet"),
        (TEXT | {"outpaint": {"left": 8}}, "give it as image"),
        (TEXT | {"hires_steps": 4}, "give hires too"),
        (TEXT | {"hires": 2.0, "steps": 1}, "less than one"),
        (TEXT | {"weighting": "webui"}, "weighting must be"),
        (TEXT | {"ip_adapter_image": PICTURE}, "needs an IP-Adapter"),
        (TEXT | {"cross_attention_kwargs": {"scale": 0.5}}, "scale cannot be used"),
        (TEXT | {"adapters": ["no/such.safetensors"]}, "does not exist"),
    ],
    "sd15-inpaint": [
        (TEXT, "give StableDiffusionInpaintPipeline image and mask"),
        (TEXT | {"image": PICTURE}, "give StableDiffusionInpaintPipeline mask"),
        (TEXT | {"mask": PICTURE}, "give image too"),
    ],
    "flux": [
        ({}, "give a prompt"),
        (TEXT | {"width": 72}, "the nearest are 64 and 80"),
        (TEXT | {"scheduler": "ddim"}, "'ddim' does not work with this model"),
        (TEXT | {"weighting": "a1111"}, "weighting is for models"),
    ],
    "dit": [(TEXT | {"class_labels": [1]}, "takes no prompt"), ({"class_labels": [1], "width": 64}, "takes no width")],
    "ddpm": [
        (TEXT, "takes no prompt"),
        ({"tiling": True}, "no autoencoder"),
        ({"image": PICTURE}, "takes no picture"),
    ],
    "kandinsky22": [({}, "give a prompt"), (TEXT | {"waves": 8}, "takes no waves")],
}


def _no_reading(done: int, total: int) -> None:
    pytest.fail("weights are read")


def _broken(folder: Path, copy: Path) -> Path:
    """A copy whose denoiser lacks a tensor, which loading finds out."""
    shutil.copytree(folder, copy)
    (path,) = copy.glob("unet/*.safetensors")
    whole = path.read_bytes()
    assert whole.count(b'"conv_in.bias"') == 1
    path.write_bytes(whole.replace(b'"conv_in.bias"', b'"conv_in.bios"'))
    return copy


@pytest.mark.parametrize("name", BAD)
def test_early_and_late_are_the_same(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    early: list[KamadoError] = []
    for request, words in BAD[name]:
        with pytest.raises((InvalidRequest, ModelNotFound), match=words) as raised:
            runtime.load(folders[name], request=request, progress=_no_reading)
        early.append(raised.value)
    assert runtime.ledger.held() == 0 and runtime.stats()["models"] == {}
    model = runtime.load(folders[name])
    for (request, _), error in zip(BAD[name], early, strict=True):
        with pytest.raises(type(error)) as raised:
            model.submit(**request)
        assert str(raised.value) == str(error)
        for check in (model.check, functools.partial(runtime.check, folders[name])):
            with pytest.raises(type(error)) as raised:
                check([request])
            assert str(raised.value) == str(error)
    assert model.jobs() == []


def test_cells_of_a_grid_are_judged_before_the_first_is_made(
    folders: dict[str, Path], runtime: kamado.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(folders["sd15"])
    monkeypatch.setattr(kamado.Model, "submit", lambda *args, **options: pytest.fail("a cell is made"))
    axes: dict[str, Any] = {"prompt": ["a cat", "a dog"], "scheduler": ["euler", "magic"]}
    with pytest.raises(InvalidRequest, match=r"^the cell with prompt a cat, scheduler magic: no scheduler is called"):
        kamado.grid(model, axes, steps=2)


def test_a_good_request_changes_nothing(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    request = TEXT | {"steps": 2, "seed": 5, "scheduler": "euler", "image": PICTURE, "hires": 1.5}
    plain = runtime.load(folders["sd15"]).generate(**request)
    announced = runtime.load(folders["sd15"], request=request).generate(**request)
    assert [image.tobytes() for image in announced.images] == [image.tobytes() for image in plain.images]


def test_the_request_comes_before_the_weights(
    folders: dict[str, Path], runtime: kamado.Runtime, tmp_path: Path
) -> None:
    broken = _broken(folders["sd15"], tmp_path / "broken")
    with pytest.raises(InvalidRequest, match="give a prompt"):
        runtime.load(broken, request={})
    for request in (None, TEXT):
        with pytest.raises(UnsupportedCheckpoint, match=r"unet lacks conv_in\.bias"):
            runtime.load(broken, request=request)
    assert runtime.ledger.held() == 0


def test_the_request_comes_before_others_leave(folders: dict[str, Path], tmp_path: Path) -> None:
    small = tiny.build("llama", tmp_path / "llama")
    with kamado.Runtime(device="cpu", memory="1GiB") as roomy:
        plan = roomy.plan(folders["sd15"])
    with kamado.Runtime(device="cpu", memory=plan.total_bytes + 1000) as runtime:
        first = runtime.load(small, kv_tokens=128)
        for reference, request, words in (
            (folders["sd15"], {}, "give a prompt"),
            (folders["sd15"], TEXT | {"adapters": ["no/such.safetensors"]}, "does not exist"),
        ):
            with pytest.raises((InvalidRequest, ModelNotFound), match=words):
                runtime.load(reference, request=request, offload="never", progress=_no_reading)
            assert first.in_memory
        picture = runtime.load(folders["sd15"], request=TEXT | {"steps": 1})
        assert not first.in_memory and picture.in_memory
        with pytest.raises(InvalidRequest, match="exactly one of prompt"):
            runtime.load(small, kv_tokens=128, request={}, progress=_no_reading)
        assert picture.in_memory


def test_with_a_controlnet(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    components = {"controlnet": [folders["controlnet-sd15"]]}

    def load(**request: Any) -> None:
        runtime.load(folders["sd15"], components=components, request=TEXT | request, progress=_no_reading)

    with pytest.raises(InvalidRequest, match="takes 1 picture, not 2"):
        load(control=[PICTURE, PICTURE])
    with pytest.raises(InvalidRequest, match="control is 4 x 4 pixels"):
        load(control=Image.new("RGB", (4, 4)))
    with pytest.raises(InvalidRequest, match=r"strength .* needs a picture"):
        load(control=PICTURE, strength=0.5)
    with pytest.raises(InvalidRequest, match="StableDiffusionControlNetInpaintPipeline takes no waves"):
        load(control=PICTURE, image=PICTURE, mask=PICTURE, waves=1)


def test_adapters_by_their_headers(folders: dict[str, Path], runtime: kamado.Runtime) -> None:
    adapter = folders["ip-adapter-sd15"] / "models" / "ip-adapter_sd15.safetensors"
    with pytest.raises(InvalidRequest, match="give ip_adapter_image too"):
        runtime.load(folders["sd15"], request=TEXT | {"adapters": [adapter]}, progress=_no_reading)
    with pytest.raises(UnsupportedCheckpoint, match="is a whole model"):
        runtime.load(folders["sd15"], request=TEXT | {"adapters": [folders["dit"]]}, progress=_no_reading)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_texts(name: str, runtime: kamado.Runtime, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path / name)
    plan = runtime.plan(folder)
    bad: list[tuple[dict[str, Any], type[KamadoError], str]] = [
        ({}, InvalidRequest, "exactly one of prompt"),
        (TEXT | {"width": 64}, InvalidRequest, "width"),
        (TEXT | {"logit_bias": {10**6: 1.0}}, InvalidRequest, "names token 1000000"),
        ({"prompt_tokens": [10**6]}, InvalidRequest, "1000000 is no token"),
        ({"prompt_tokens": [5] * (plan.context_tokens + 1)}, ContextOverflow, "shorten the prompt"),
    ]
    early = []
    for request, kind, words in bad:
        with pytest.raises(kind, match=words) as raised:
            runtime.load(folder, request=request, progress=_no_reading)
        early.append(str(raised.value))
    assert runtime.ledger.held() == 0
    request = TEXT | {"max_tokens": 4, "temperature": 0.0, "chat": False}
    model = runtime.load(folder, request=request)
    for (wrong, kind, _), words in zip(bad, early, strict=True):
        with pytest.raises(kind) as raised:
            model.submit(**wrong)
        assert str(raised.value) == words
    assert len(model.generate(**request).tokens) == 4


@pytest.mark.parametrize("name", ["sd15", "flux", "dit"])
def test_what_show_says_is_what_the_model_takes(
    name: str, folders: dict[str, Path], runtime: kamado.Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidRequest, match="takes no num_waves; it takes ") as raised:
        runtime.check(
            folders[name], [{"num_waves": 8, "class_labels": [1]} if name == "dit" else TEXT | {"num_waves": 8}]
        )
    taken = str(raised.value).partition("it takes ")[2].split(", ")
    assert main(["show", str(folders[name]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["takes"].split(", ") == sorted(taken)
    if name == "sd15":
        assert {"outpaint", "hires_strength", "hires_steps"} < {*taken}
    assert not any(each.endswith("attention_kwargs") for each in taken)  # all that their `scale` would do is refused


@pytest.mark.parametrize("name", ["llama", "t5", "llava"])
def test_what_show_says_a_text_model_takes(
    name: str, runtime: kamado.Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    if name == "llava":
        tiny_media.KINDS[name].make(folder)
    else:
        tiny.build(name, folder)
    assert main(["show", str(folder), "--json"]) == 0
    shown = set(json.loads(capsys.readouterr().out)["takes"].split(", "))
    assert {"prompt", "messages", "max_tokens", "seed"} < shown and shown <= TEXT_OPTION_NAMES
    assert ("image" in shown, "suffix" in shown) == (name == "llava", name != "t5")
    more = {"image": PICTURE, "suffix": "x"}
    for option in more.keys() - shown:
        with pytest.raises(InvalidRequest, match=r"takes text alone|continues no text"):
            runtime.check(folder, [TEXT | {option: more[option]}])
