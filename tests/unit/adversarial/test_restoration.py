"""Pictures that are restored or enlarged: equal to spandrel's own call, whole and in tiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kamado
from kamado.checkpoint.convert import convert_pickles
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.types import Checkpoint, TensorEntry
from kamado_models.adversarial import restore_answers, restore_spandrel
from kamado_models.adversarial.family import FAMILY
from kamado_models.adversarial.restore_layouts import ARCHITECTURES, architecture
from kamado_models.adversarial.tiles import Canvas, Span, spans

from .restorers import library, oracle, photo, restorer, shaken
from .weights import saved


@pytest.mark.parametrize("name", ["ESRGAN", "Compact", "SwinIR"])
def test_names_with_a_prefix_and_odd_sizes(runtime: kamado.Runtime, tmp_path: Path, name: str) -> None:
    state = restorer(name)
    model = runtime.load(
        saved({f"params_ema.{key}": value for key, value in state.items()}, tmp_path / "up.safetensors")
    )
    for size in ((24, 16), (1, 1), (7, 19)):
        found = model.generate(image=photo(*size))
        expected = oracle(state, photo(*size))
        assert found.pixels[0].shape == expected.shape
        assert numpy.abs(found.pixels[0] - expected).max() < 1e-4
    assert found.images[0].width == 7 * (4 if name == "ESRGAN" else 2)
    assert "times as large" in found.notes[0] and model.tasks == ("image-to-image",)


def test_tiles_are_the_whole_picture(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors"))
    image = photo(90, 61)
    whole = model.generate(image=image, tile=0).pixels[0]
    # The network sees 4 pixels around each one, a quarter of the overlap; with less, it differs near seams.
    tiled = model.generate(image=image, tile=32, overlap=16)
    assert numpy.abs(tiled.pixels[0] - whole).max() < 1e-4
    assert "tiles of 32 x 32" in tiled.notes[0]
    seams = numpy.abs(model.generate(image=image, tile=32, overlap=4).pixels[0] - whole)
    good = [numpy.ones(length * 2, dtype=bool) for length in (61, 90)]
    for inside, length in zip(good, (61, 90), strict=True):
        for span in spans(length, 32, 4):
            for edge in (span.start, span.end):
                inside[max(edge - 8, 0) * 2 : (edge + 8) * 2] &= not 0 < edge < length
    apart = seams[good[0]][:, good[1]]
    assert apart.size > 1000 and apart.max() < 1e-4 < seams.max()
    progress = [event for event in model.stream(image=image, tile=32) if isinstance(event, kamado.Progress)]
    assert progress[-1].step == progress[-1].total > 4


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 32))
def test_spans_cover_everything(length: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size // 2)
    canvas = Canvas(length, 1, 1, 2)
    for span in spans(length, size, overlap):
        assert span.end - span.start == min(size, length)
        tile = numpy.ones((2 * (span.end - span.start), 2, 1), dtype=numpy.float32)
        canvas.put(span, Span(start=0, end=1, before=0, behind=0), tile)
    assert numpy.allclose(canvas.picture(), 1.0)


def test_transparency_stays(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors"))
    image = photo(12, 10, "RGBA")
    found = model.generate(image=image).images[0]
    assert found.mode == "RGBA" and found.size == (24, 20)
    assert found.getchannel("A") == image.getchannel("A").resize((24, 20), Image.Resampling.LANCZOS)
    opaque = model.generate(image=image.convert("RGB")).images[0]
    assert numpy.array_equal(numpy.asarray(found)[..., :3], numpy.asarray(opaque))


def test_beside_others_and_cancelled(runtime: kamado.Runtime, tmp_path: Path) -> None:
    model = runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors"))
    alone = [model.generate(image=photo(16, size)).pixels[0] for size in (12, 16, 16)]
    crowd = model.generate_many([{"image": photo(16, size)} for size in (12, 16, 16)])
    assert all(numpy.abs(one - two.pixels[0]).max() < 1e-4 for one, two in zip(alone, crowd, strict=True))
    job = model.submit(image=photo(256, 256), tile=16)
    for event in job.events():
        if isinstance(event, kamado.Progress):
            job.cancel()
    with pytest.raises(kamado.Cancelled):
        job.result()


def test_inpainting_takes_a_mask_of_the_pictures_size(runtime: kamado.Runtime, tmp_path: Path) -> None:
    from spandrel.architectures.LaMa import LaMa

    state = {
        name.replace("model.model", "generator.model"): value for name, value in shaken(LaMa(in_nc=4, out_nc=3)).items()
    }
    model = runtime.load(saved(state, tmp_path / "lama.safetensors"))
    image, mask = photo(20, 24), Image.new("L", (20, 24))
    mask.paste(255, (5, 5, 12, 14))
    found = model.generate(image=image, mask=mask).pixels[0]
    hole = torch.zeros(1, 1, 24, 20)
    hole[..., 5:14, 5:12] = 1
    assert numpy.abs(found - oracle(state, image, hole)).max() < 1e-4
    crowd = model.generate_many([{"image": image, "mask": mask}] * 3)
    assert all(numpy.abs(each.pixels[0] - found).max() < 1e-4 for each in crowd)
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"LaMa networks cannot run in torch\.bfloat16"):
        restore_answers.network(state, torch.bfloat16)
    with pytest.raises(kamado.InvalidRequest, match="mask is 3 x 3 and the image 20 x 24"):
        model.generate(image=image, mask=Image.new("L", (3, 3)))
    with pytest.raises(kamado.InvalidRequest, match="mask is missing"):
        model.generate(image=image)
    with pytest.raises(kamado.InvalidRequest, match="takes no tile"):
        model.generate(image=image, mask=mask, tile=16)
    model.unload()
    (tmp_path / "lama.safetensors").unlink()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give .* image"),
        ({"image": "missing.png"}, "missing.png does not exist"),
        ({"image": numpy.zeros((0, 4, 3))}, "no pixels"),
        ({"image": photo(8, 8), "mask": photo(8, 8)}, "takes no mask"),
        ({"image": photo(8, 8), "prompt": "sharper"}, "takes no prompt"),
        ({"image": photo(8, 8), "tile": 0, "overlap": 3}, "asks for none"),
        ({"image": photo(8, 8), "tile": 8, "overlap": 5}, "at most half"),
        ({"image": [photo(8, 8), photo(8, 8)]}, "give one image"),
    ],
)
def test_bad_requests(runtime: kamado.Runtime, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(kamado.InvalidRequest, match=says):
        runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors"), request=options).generate(**options)


def test_a_network_that_makes_no_numbers(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = restorer("Compact")
    state["body.0.bias"] += torch.nan
    with pytest.raises(kamado.GenerationFailed, match="made NaN or infinity; try --dtype float32"):
        runtime.load(saved(state, tmp_path / "up.safetensors")).generate(image=photo(8, 8))


def test_text_that_is_called_a_picture(runtime: kamado.Runtime, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(kamado.InvalidRequest, match=r"note\.png is no picture"):
        runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors")).generate(image=tmp_path / "note.png")


def test_what_is_too_large_is_refused_before_it_is_tried(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = runtime.load(saved(restorer("Compact"), tmp_path / "up.safetensors"))
    with pytest.raises(kamado.InvalidRequest, match="20000 x 20000"):
        model.generate(image=Image.new("L", (1, 1)).resize((20_000, 20_000)))
    with pytest.raises(kamado.DoesNotFit, match=r"8000 x 8000 .* needs about .* tile=512"):
        model.generate(image=Image.new("RGB", (8000, 8000)), tile=0)
    monkeypatch.setattr(restore_answers, "host_memory", lambda: type("M", (), {"available_bytes": 1 << 20}))
    with pytest.raises(kamado.DoesNotFit, match=r"600 x 600 .* 1200 x 1200 needs .* are free"):
        model.generate(image=Image.new("RGB", (600, 600)))


def test_a_converted_pickle_runs(runtime: kamado.Runtime, tmp_path: Path) -> None:
    state = restorer("ESRGAN")
    torch.save({"params_ema": state, "params": state}, tmp_path / "RealESRGAN.pth")
    with pytest.raises(kamado.UnsafeCheckpoint, match="convert-pickle"):
        runtime.load(tmp_path / "RealESRGAN.pth")
    convert_pickles(tmp_path / "RealESRGAN.pth", tmp_path / "converted")
    found = runtime.load(tmp_path / "converted").generate(image=photo(8, 8)).pixels[0]
    assert numpy.abs(found - oracle(state, photo(8, 8))).max() < 1e-4


def test_damaged_networks_and_missing_libraries(
    runtime: kamado.Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = restorer("ESRGAN")
    del state["model.1.sub.0.RDB1.conv3.0.weight"]
    with pytest.raises(
        kamado.UnsupportedCheckpoint, match=r"its network cannot be built: .*Missing key.* .*RDB1.conv3"
    ):
        runtime.load(saved(state, tmp_path / "damaged.safetensors"))
    path = saved(restorer("Compact"), tmp_path / "up.safetensors")
    for ask in (runtime.plan, runtime.load):
        with pytest.raises(kamado.InvalidRequest, match="such networks cannot be held quantized; leave that out"):
            ask(path, quant="int8")
    with pytest.raises(kamado.InvalidRequest, match="has no component vae"):
        runtime.plan(path, components={"vae": str(path)})
    whole = runtime.plan(path)
    with kamado.Runtime(device="cpu", memory=whole.minimum_bytes - 1) as small:
        plan = small.plan(path)
        assert (plan.outside_bytes, plan.minimum_bytes) == (0, whole.minimum_bytes)
        assert not any("quant" in each for each in plan.options)
        with pytest.raises(kamado.DoesNotFit):
            small.load(path)
    monkeypatch.setattr(restore_spandrel, "_is_absent", lambda name: True)
    monkeypatch.delitem(sys.modules, "einops")
    with pytest.raises(kamado.UnsupportedCheckpoint, match=r"need einops, .* --no-deps 'spandrel"):
        runtime.load(path)


def names_of(condition: Any) -> list[str]:
    """Names that satisfy a condition of spandrel's."""
    chosen = condition._keys if condition._kind == "all" else condition._keys[:1]
    return [name for key in chosen for name in ([key] if isinstance(key, str) else names_of(key))]


def test_networks_are_known_by_the_names_that_the_library_goes_by() -> None:
    known = {"Compact": "Compact (SRVGG)"}
    for support in library.MAIN_REGISTRY.architectures():
        found = support.architecture
        names = names_of(found._detect)
        if found.id == "RestoreFormer":
            names.append("decoder.mid.attn_1.norm1.weight")
        if found.id == "Swin2SR":
            names.append("layers.0.residual_group.blocks.0.attn.logit_scale")
        if found.id == "Compact":
            names.append("body.2.weight")
        tensors = {name: TensorEntry(name, "F32", (1, 1, 1, 1), Path("x"), 0, 4) for name in names}
        checkpoint = Checkpoint(
            reference="x", root=Path("x"), layout="safetensors", config={}, metadata={}, tensors=tensors, files={}
        )
        assert architecture(checkpoint) == known.get(found.id, found.id)
    assert len(ARCHITECTURES) == len(list(library.MAIN_REGISTRY.architectures()))


def test_other_files_are_not_claimed(tmp_path: Path) -> None:
    for number, state in enumerate(({"body.0.weight": torch.zeros(1)}, {"model.0.weight": torch.zeros(1, 1, 3, 3)})):
        assert not FAMILY.claims(inspect(saved(state, tmp_path / f"{number}.safetensors")))


def test_the_host_programs_modules_are_as_they_were() -> None:
    code = (
        "import sys, torch; path = list(sys.meta_path);"
        "from kamado_models.adversarial.restore_spandrel import spandrel;"
        "found = spandrel(); assert spandrel() is found; assert sys.meta_path == path;"
        "assert not [name for name in sys.modules if name.startswith('torchvision')];"
        "from spandrel.architectures import RestoreFormer, LaMa;"
        "import torch; x = torch.rand(1, 3, 2, 2);"
        "assert torch.allclose(RestoreFormer.tv_normalize(x, [.5]*3, [.5]*3), 2*x-1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
