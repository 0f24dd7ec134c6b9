"""Quantized checkpoints: written, compared, and read again as the same model that quantizing while loading makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

import kamado
import original_files
import tiny
import tiny_pipelines
from kamado.checkpoint.inspect import inspect
from kamado.errors import GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.quality import FILE, read_quality
from kamado.quant import SCHEMES, Quant, parse_quant
from kamado.weights.quantized.saving import LAYOUTS
from kamado.weights.quantized.tensor import QuantTensor
from kamado_models.language.family import configured
from kamado_models.language.loading import read_model

SIZES = {"hidden_size": 128, "intermediate_size": 256}
"""Smaller matrices are not quantized."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"), **SIZES)


def answer(reference: Path, quant: Any = None) -> tuple[tuple[int, ...], int]:
    """Tokens, and bytes of weights."""
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(reference, quant=quant)
        result = model.generate(prompt_tokens=[3, 1, 4, 1, 5, 9, 2, 6], max_tokens=12, temperature=0.0, ignore_eos=True)
        return result.tokens, runtime.ledger.snapshot()["cpu"][model.owner]["weights"]


FORMS: list[Any] = [
    "int8", "int8-weight-only", "int8-dynamic", "int4", "fp8", Quant(scheme="int8-dynamic", group_size=64),
    Quant(scheme="int4", group_size=64, skip=("*.down_proj.*",)),
    Quant(scheme="int8", overrides=(("*.up_proj.*", "fp8"), ("*.layers.1.*", "int4"), ("*.layers.0.*", "int8"))),
    Quant(scheme="nf4", embeddings=None), Quant(scheme="fp4", embeddings=None),
    Quant(scheme="bnb-int8", embeddings=None),
    Quant(scheme="nf4", embeddings=None, group_size=32, overrides=(("*.up_proj.*", "fp4"),)),
]  # fmt: skip


def test_every_scheme_can_be_written() -> None:
    assert LAYOUTS.keys() == SCHEMES.keys()


@pytest.mark.parametrize("quant", FORMS, ids=str)
def test_the_written_model_is_the_one_that_was_quantized(llama: Path, tmp_path: Path, quant: Any) -> None:
    done = kamado.quantize(llama, tmp_path / "out", quant, device="cpu", accept_loss=True)
    assert done.stored_bytes < done.source_bytes / 1.8
    assert done.kept == {}
    assert same_model(done.path, llama, quant)
    assert answer(done.path) == answer(llama, quant)
    assert done.quality is not None
    assert read_quality(done.path / FILE) == done.quality
    assert done.quality.figures["kl_divergence"] < (0.05 if quant in ("int8", "int8-weight-only") else 2.0)


def same_model(written: Path, source: Path, quant: Any) -> bool:
    """Whether reading the one gives, bit for bit, what quantizing the other while reading does."""
    found, _ = read_model(configured(inspect(written)), dtype="float32", device="cpu")
    form = parse_quant(quant)
    assert form is not None
    wanted, _ = read_model(configured(inspect(source)), dtype="float32", device="cpu", quant=form.on("cpu"))
    for name, weight in wanted.named_parameters():
        its = found.get_parameter(name).data
        if not isinstance(weight.data, QuantTensor):
            assert torch.equal(weight, its), name
            continue
        one, other = weight.data.packed, its.packed
        assert type(one) is type(other) and one.settings == other.settings and one.parts.keys() == other.parts.keys()
        for part, value in one.parts.items():
            assert value.dtype == other.parts[part].dtype
            assert torch.equal(value.view(torch.uint8), other.parts[part].view(torch.uint8)), (name, part)
    return True


@pytest.mark.parametrize(("name", "quant"), [("qwen3_moe", "int8"), ("mixtral", Quant(scheme="nf4", embeddings=None))])
def test_mixtures(name: str, quant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 64)
    folder = tiny.build(name, tmp_path / name, intermediate_size=128)
    done = kamado.quantize(folder, tmp_path / "out", quant, device="cpu", accept_loss=True)
    assert same_model(done.path, folder, quant)
    assert done.kept == {}


def test_what_has_no_place_in_a_file_is_told(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = 4 * 264 * 128
    kept = kamado.quantize(llama, tmp_path / "nf4", "nf4", compare=False).kept
    assert kept == {"token tables": 2 * table}
    monkeypatch.setattr("kamado.quant._MIN_VALUES", 64)
    stacked = tiny.build("gpt_oss", tmp_path / "gpt_oss")
    done = kamado.quantize(stacked, tmp_path / "stacked", "int8", device="cpu")
    assert done.kept.keys() == {"stacks of experts"} and done.kept["stacks of experts"] > 100_000
    assert done.quality is not None and done.quality.figures["kl_divergence"] < 0.05


def test_what_is_skipped_keeps_its_precision(llama: Path, tmp_path: Path) -> None:
    quant = Quant(scheme="int8", skip=("*.down_proj.*",), embeddings=None)
    done = kamado.quantize(llama, tmp_path / "out", quant, compare=False)
    tensors = load_file(done.path / "model.safetensors")
    assert done.quality is None
    assert str(tensors["model.layers.0.mlp.down_proj.weight"].dtype) == "torch.float32"
    assert str(tensors["model.embed_tokens.weight"].dtype) == "torch.float32"
    assert str(tensors["model.layers.0.mlp.up_proj.weight"].dtype) == "torch.int8"


def test_a_broken_result_is_not_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kamado.quality.FLOORS", {"text": {"agreement": ("least", 1.1)}, "image": {}})
    with pytest.raises(GenerationFailed, match=r"int8-dynamic breaks .*agreement.*--accept-loss"):
        kamado.quantize(llama, tmp_path / "out", "int8", device="cpu")
    assert list(tmp_path.iterdir()) == []
    assert kamado.quantize(llama, tmp_path / "out", "int8", device="cpu", accept_loss=True).path.is_dir()


def test_a_reference_that_does_not_fit_is_not_compared(llama: Path, tmp_path: Path) -> None:
    done = kamado.quantize(llama, tmp_path / "out", "int8", device="cpu", memory="100KB")
    assert done.quality is None
    assert "not compared" in done.note


def test_what_cannot_be_written(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--quant"):
        kamado.quantize(llama, tmp_path / "out", "none")
    with pytest.raises(InvalidRequest, match="there already"):
        kamado.quantize(llama, tmp_path, "int8")
    made = kamado.quantize(llama, tmp_path / "out", "int8", compare=False)
    with pytest.raises(UnsupportedCheckpoint, match="quantized already"):
        kamado.quantize(made.path, tmp_path / "again", "int4")
    for other in ("nf4", "bnb-int8"):
        with pytest.raises(UnsupportedCheckpoint, match=f"int8-dynamic and {other} .* are of two layouts"):
            kamado.quantize(llama, tmp_path / "again", Quant(scheme="int8", overrides=(("*.up_proj.*", other),)))
    with pytest.raises(UnsupportedCheckpoint, match="no blocks of 16 values; it has those of 32, 64"):
        kamado.quantize(llama, tmp_path / "again", Quant(scheme="nf4", group_size=16))
    with pytest.raises(UnsupportedCheckpoint, match=r"nf4 and int8-weight-only \(\*\.up_proj\.\*\) are of two"):
        kamado.quantize(llama, tmp_path / "again", Quant(scheme="nf4", overrides=(("*.up_proj.*", "int8"),)))
    gpt2 = tiny.build("gpt2", tmp_path / "gpt2", n_embd=128)
    with pytest.raises(UnsupportedCheckpoint, match="quantized gpt2 models cannot be loaded"):
        kamado.quantize(gpt2, tmp_path / "again", "int8")
    assert not (tmp_path / "again").exists()


def test_a_gguf_file_becomes_a_folder(tmp_path: Path, smollm2: Path) -> None:
    done = kamado.quantize(smollm2, tmp_path / "out", "int8", device="cpu", compare=False)
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        messages = [{"role": "user", "content": "Which country is Paris the capital of?"}]
        written, loaded = runtime.load(done.path), runtime.load(smollm2, quant="int8")
        texts = [model.generate(messages=messages, max_tokens=12).text for model in (written, loaded)]
        assert texts[0] == texts[1] and "France" in texts[0]


@pytest.mark.parametrize("scheme", ["int8", "fp8", "nf4"])
def test_a_pipeline(folders: tiny_pipelines.Folders, tmp_path: Path, scheme: str) -> None:
    done = kamado.quantize(folders["sd15"], tmp_path / "out", scheme, device="cpu")
    assert done.quality is not None
    assert done.quality.figures["psnr_db"] > 30
    assert done.quality.figures["ssim"] > 0.95
    assert done.kept["convolutions"] > 0
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        assert runtime.load(done.path).generate("a tree", steps=2, seed=1).images


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_single_file_becomes_a_folder(folders: tiny_pipelines.Folders, tmp_path: Path, name: str) -> None:
    pipeline = tiny_pipelines.load(folders[name])
    file = original_files.single_file(pipeline, name, tmp_path / "x.safetensors")
    quant = Quant(scheme="int8", convolutions=None)
    done = kamado.quantize(file, tmp_path / "out", quant, base=folders[name], device="cpu")
    assert done.quality is not None
    assert done.quality.figures["psnr_db"] > 35
    request: Any = {**tiny_pipelines.arguments(name), "seed": 3}
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        wanted = runtime.load(file, base=folders[name], quant=quant).generate(**request).pixels[0]
        assert numpy.abs(runtime.load(done.path).generate(**request).pixels[0] - wanted).max() < 1e-4


def test_what_a_catalog_recommends_stays_with_the_folder(tmp_path: Path) -> None:
    """Without its guidance the written folder would draw other pictures."""
    done = kamado.quantize("emoji-diffusion:64", tmp_path / "out", "int8", device="cpu")
    assert done.quality is not None
    assert done.quality.figures["psnr_db"] > 40
    wanted = inspect("emoji-diffusion:64").defaults
    assert wanted and inspect(done.path).defaults == inspect(str(done.path)).defaults == wanted
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        recipe = runtime.load(done.path).generate("a red heart", seed=1).recipe
    assert recipe["options"]["steps"] == wanted["steps"] and recipe["options"]["guidance"] == wanted["guidance"]
