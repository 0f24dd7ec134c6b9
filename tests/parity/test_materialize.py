"""Models built on the meta device, against transformers' own loading of the same folder."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

import tiny
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.checkpoint.types import TensorEntry
from kamado.errors import UnsupportedCheckpoint
from kamado.weights.stream import lazy_tensors
from kamado_models.language.materialize import materialize

# Importing the modelling code sets an environment variable of torch's compiler: not within a test.
transformers.LlamaForCausalLM  # noqa: B018


def entries_of(folder: Path) -> dict[str, TensorEntry]:
    entries: dict[str, TensorEntry] = {}
    for file in sorted(folder.glob("*.safetensors")):
        entries |= read_safetensors_header(file).tensors
    return entries


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("llama"))


def load(folder: Path, tensors: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    lazy = lazy_tensors(entries_of(folder)) if tensors is None else tensors
    return materialize(model_class, config, lazy, **({"dtype": torch.float32, "device": "cpu"} | options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen3_moe", "mixtral", "gpt2", "t5", "mamba2", "gpt_oss"])
def test_same_weights_and_logits_as_from_pretrained(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.build(name, tmp_path)
    model, report = load(folder, dtype=dtype)
    reference = type(model).from_pretrained(folder, dtype=dtype).requires_grad_(False)

    for tensors in ("state_dict", "named_buffers"):
        expected, got = dict(getattr(reference, tensors)()), dict(getattr(model, tensors)())
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value), key
    ids = torch.tensor([[5, 6, 7, 9, 200, 33]])
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    assert torch.equal(model(ids, **inputs).logits, reference(ids, **inputs).logits)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    stored = sum(entry.nbytes for entry in entries_of(folder).values())
    assert report.stored_bytes == stored and report.tensors == len(entries_of(folder))
    if name == "llama":
        assert report.weight_bytes >= stored * dtype.itemsize // 4


def test_tied_weights_are_one_tensor_and_count_once(tmp_path: Path) -> None:
    model, report = load(tiny.build("llama_tied", tmp_path))
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert report.weight_bytes == report.stored_bytes + sum(b.nbytes for b in model.buffers())


def test_missing_unexpected_and_misshapen_weights_are_all_named(llama: Path) -> None:
    entries = entries_of(llama)
    tensors: dict[str, Any] = dict(lazy_tensors(entries))
    for i in range(3):
        for part in "qkv":
            del tensors[f"model.layers.{i}.self_attn.{part}_proj.weight"]
    tensors["model.layers.7.extra.weight"] = tensors["model.norm.weight"]
    tensors["model.norm.weight"] = tensors["lm_head.weight"]
    random_state = torch.random.get_rng_state()
    with pytest.raises(UnsupportedCheckpoint) as caught:
        load(llama, tensors)
    message = str(caught.value)
    assert "LlamaForCausalLM" in message
    assert "9 missing: model.layers.0.self_attn.k_proj.weight" in message and "and 4 more" in message
    assert "1 that the model has no place for: model.layers.7.extra.weight" in message
    assert "1 of another shape: model.norm.weight ([264, 64], the model has [64])" in message
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_a_file_that_ends_early_keeps_its_own_message(llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    entries = entries_of(llama)
    short.write_bytes(next(iter(entries.values())).file.read_bytes()[:-2000])
    moved = {n: TensorEntry(n, e.dtype, e.shape, short, e.offset, e.nbytes) for n, e in entries.items()}
    with pytest.raises(UnsupportedCheckpoint, match=r"short\.safetensors ends inside tensor"):
        load(llama, dict(lazy_tensors(moved)))


def test_no_read_outlives_a_load_that_fails(llama: Path) -> None:
    """transformers leaves the threads that read for it to themselves when one of them raises."""
    running, begun = [], []

    class Slow:
        def __init__(self, tensor: Any) -> None:
            self._tensor = tensor

        def __getattr__(self, name: str) -> Any:
            return getattr(self._tensor, name)

        def __getitem__(self, index: object) -> torch.Tensor:
            begun.append(self)
            if len(begun) == 1:
                raise UnsupportedCheckpoint("the first read fails")
            running.append(self)
            time.sleep(0.2)
            running.remove(self)
            return self._tensor[index]

    tensors = {name: Slow(tensor) for name, tensor in lazy_tensors(entries_of(llama)).items()}
    for _ in range(5):
        begun.clear()
        with pytest.raises(UnsupportedCheckpoint, match="the first read fails"):
            load(llama, tensors)
        assert not running
        count = len(begun)
        time.sleep(0.05)
        assert len(begun) == count


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_printed_and_nothing_stays_changed(
    fails: bool, llama: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def host_hook(factory: Any, args: Any, kwargs: Any) -> Any:
        calls.append(threading.current_thread().name)
        return factory(*args, **kwargs)

    tensors: dict[str, Any] = dict(lazy_tensors(entries_of(llama)))
    if fails:
        tensors["surplus"] = tensors["model.norm.weight"]
    previous = transformers_logging.set_tqdm_hook(host_hook)
    logger = logging.getLogger("transformers.modeling_utils")
    filters, level = list(logger.filters), logger.level
    bars, dtype = transformers_logging.is_progress_bar_enabled(), torch.get_default_dtype()
    try:
        if fails:
            with pytest.raises(UnsupportedCheckpoint):
                load(llama, tensors, dtype=torch.bfloat16)
        else:
            load(llama, tensors, dtype=torch.bfloat16)
        assert transformers_logging.set_tqdm_hook(host_hook) is host_hook
    finally:
        transformers_logging.set_tqdm_hook(previous)
    assert calls == []
    assert (list(logger.filters), logger.level) == (filters, level)
    assert (transformers_logging.is_progress_bar_enabled(), torch.get_default_dtype()) == (bars, dtype)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_progress_counts_every_stored_byte(llama: Path) -> None:
    seen: list[tuple[int, int]] = []
    _, report = load(llama, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.stored_bytes, report.stored_bytes)


def test_loading_opens_no_socket_and_starts_no_process(llama: Path) -> None:
    """In a process of its own, because an audit hook cannot be taken off."""
    program = f"""
import sys, json, torch, transformers
from pathlib import Path
transformers.LlamaForCausalLM
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.weights.stream import lazy_tensors
from kamado_models.language.materialize import materialize
folder = Path({str(llama)!r})
config = transformers.AutoConfig.from_pretrained(folder)
tensors = lazy_tensors(read_safetensors_header(folder / "model.safetensors").tensors)
seen = []
watched = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
    "pickle.find_class")
sys.addaudithook(lambda event, args: seen.append(event) if event in watched else None)
materialize(transformers.LlamaForCausalLM, config, tensors, dtype=torch.float32, device="cpu")
print(json.dumps(seen))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(answer.stdout) == []


def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path) -> None:
    """240 MiB of weights in 30 MiB tensors: a second copy, or all of a file mapped, would show."""
    pytest.importorskip("resource")
    config = transformers.LlamaConfig(
        hidden_size=1024, intermediate_size=7680, num_hidden_layers=2, num_attention_heads=8, vocab_size=7680
    )
    with torch.random.fork_rng(devices=[]):
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    program = f"""
import threading, time, torch, transformers
from pathlib import Path
transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1, vocab_size=8))
from kamado.checkpoint.safetensors_header import read_safetensors_header
from kamado.weights.stream import lazy_tensors
from kamado_models.language.materialize import materialize
folder = Path({str(tmp_path)!r})
config = transformers.AutoConfig.from_pretrained(folder)
tensors = lazy_tensors(read_safetensors_header(folder / "model.safetensors").tensors)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before, peak, done = resident(), [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], resident())
thread = threading.Thread(target=watch); thread.start()
model, report = materialize(transformers.LlamaForCausalLM, config, tensors, dtype=torch.float32, device="cpu")
done.set(); thread.join()
print(max(peak[0], resident()) - before, report.weight_bytes)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory use is read from /proc")
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    grown, weights = map(int, answer.stdout.split())
    assert weights > 200 << 20
    assert grown < weights + (100 << 20)


def test_config_is_not_changed(llama: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llama)
    before = config.to_dict()
    lazy = lazy_tensors(entries_of(llama))
    materialize(transformers.LlamaForCausalLM, config, lazy, dtype=torch.bfloat16, device="cpu")
    assert config.to_dict() == before


def test_attention_implementation_is_passed_on(llama: Path) -> None:
    model, _ = load(llama, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "values", [{"num_attention_heads": 0}, {"hidden_size": -1}, {"vocab_size": 2**60}, {"num_attention_heads": 7}]
)
def test_impossible_sizes_are_refused(values: dict[str, int], llama: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llama)
    for key, value in values.items():
        setattr(config, key, value)
    with pytest.raises(UnsupportedCheckpoint, match="LlamaForCausalLM"):
        lazy = lazy_tensors(entries_of(llama))
        materialize(transformers.LlamaForCausalLM, config, lazy, dtype=torch.float32, device="cpu")
