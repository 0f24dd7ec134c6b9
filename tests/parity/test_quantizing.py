"""Quantized checkpoints: written, compared, and read again as the same model that quantizing while loading makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import kamado
import tiny
import tiny_pipelines
from kamado.errors import GenerationFailed, InvalidRequest, UnsupportedCheckpoint
from kamado.quality import FILE, read_quality
from kamado.quant import Quant

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


@pytest.mark.parametrize("quant", ["int8", "int4", Quant(scheme="int4", group_size=64, skip=("*.down_proj.*",))])
def test_the_written_model_is_the_one_that_was_quantized(llama: Path, tmp_path: Path, quant: Any) -> None:
    done = kamado.quantize(llama, tmp_path / "out", quant, device="cpu", accept_loss=True)
    assert done.stored_bytes < done.source_bytes / 2
    assert answer(done.path) == answer(llama, quant)
    assert done.quality is not None
    assert read_quality(done.path / FILE) == done.quality
    assert done.quality.figures["kl_divergence"] < (0.05 if quant == "int8" else 2.0)


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
    with pytest.raises(GenerationFailed, match=r"int8 breaks .*agreement.*--accept-loss"):
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


def test_a_gguf_file_becomes_a_folder(tmp_path: Path, smollm2: Path) -> None:
    done = kamado.quantize(smollm2, tmp_path / "out", "int8", device="cpu", compare=False)
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(done.path)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in model.generate(messages=messages, max_tokens=12).text


def test_a_pipeline(folders: tiny_pipelines.Folders, tmp_path: Path) -> None:
    done = kamado.quantize(folders["sd15"], tmp_path / "out", "int8", device="cpu")
    assert done.quality is not None
    assert done.quality.figures["psnr_db"] > 30
    assert done.quality.figures["ssim"] > 0.95
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        assert runtime.load(done.path).generate("a tree", steps=2, seed=1).images


def test_what_a_catalog_recommends_holds_for_both(tmp_path: Path) -> None:
    """Without its guidance the written folder would draw other pictures."""
    done = kamado.quantize("emoji-diffusion:64", tmp_path / "out", "int8", device="cpu")
    assert done.quality is not None
    assert done.quality.figures["psnr_db"] > 40
