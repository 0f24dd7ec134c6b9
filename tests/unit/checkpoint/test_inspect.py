"""What a checkpoint is, told from names and headers: layouts, refusals, and what is missing."""

from __future__ import annotations

import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint_files import gguf_bytes, safetensors_bytes, write_transformers
from kamado.checkpoint.inspect import inspect, require_tokenizer
from kamado.checkpoint.strict_json import MAX_CONFIG_BYTES, parse_json_object
from kamado.errors import KamadoError, ModelNotFound, UnsafeCheckpoint, UnsupportedCheckpoint

WEIGHTS = safetensors_bytes({"a": ("F32", (2, 3), 24)})
OTHER = safetensors_bytes({"b": ("F32", (4,), 16)})


def write(root: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return root


def sharded(weight_map: dict[str, Any]) -> dict[str, Any]:
    return {
        "config.json": {},
        "model-00001-of-00002.safetensors": WEIGHTS,
        "model-00002-of-00002.safetensors": OTHER,
        "model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map},
    }


MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
PIPELINE: dict[str, Any] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42", "requires_safety_checker": False,
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None],
    },
    "unet/config.json": {"_class_name": "UNet2DConditionModel"},
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "vae/config.json": {"_class_name": "AutoencoderKL"},
    "vae/diffusion_pytorch_model.fp16.safetensors": OTHER,
    "scheduler/scheduler_config.json": {},
}  # fmt: skip


def test_transformers(tmp_path: Path) -> None:
    root = write_transformers(tmp_path / "m")
    write(root, {"evil.py": b"", "training_args.bin": b"\x80\x02", ".hidden.json": {}, "sub/extra.json": {}})
    checkpoint = inspect(root, reference="my model")
    assert (checkpoint.layout, checkpoint.reference, checkpoint.root) == ("transformers", "my model", root)
    assert checkpoint.config["model_type"] == "llama"
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == {"a": (2, 3), "b": (4,)}
    assert sorted(checkpoint.files) == ["config.json", "sub/extra.json", "tokenizer.json", "tokenizer_config.json"]
    assert (checkpoint.weight_bytes, checkpoint.parameters, dict(checkpoint.metadata)) == (32, 10, {})
    assert inspect(str(root)).root == root


def test_sharded(tmp_path: Path) -> None:
    checkpoint = inspect(write(tmp_path, sharded(MAP)))
    assert {name: entry.file.name for name, entry in checkpoint.tensors.items()} == MAP


def test_diffusers(tmp_path: Path) -> None:
    checkpoint = inspect(write(tmp_path, PIPELINE))
    assert checkpoint.layout == "diffusers"
    assert sorted(checkpoint.tensors) == ["unet/a", "vae/b"]
    assert checkpoint.metadata == {
        "components": {"unet": {"_class_name": "UNet2DConditionModel"}, "vae": {"_class_name": "AutoencoderKL"}}
    }
    assert "scheduler/scheduler_config.json" in checkpoint.files


def test_single_files(tmp_path: Path) -> None:
    write(tmp_path, {"x.safetensors": safetensors_bytes({"a": ("U8", (1,), 1)}, {"k": "v"}), "y.GGUF": gguf_bytes()})
    one = inspect(tmp_path / "x.safetensors")
    assert (one.layout, one.metadata, list(one.tensors), dict(one.files)) == ("safetensors", {"k": "v"}, ["a"], {})
    two = inspect(tmp_path / "y.GGUF")
    assert (two.layout, two.metadata["general.architecture"]) == ("gguf", "llama")


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    checkpoint = inspect(write(tmp_path, {"m.gguf": gguf_bytes(), "config.json": {}}))
    assert (checkpoint.layout, checkpoint.root) == ("gguf", tmp_path / "m.gguf")


def test_a_folder_with_one_file_of_a_name_of_its_own_is_that_file(tmp_path: Path) -> None:
    checkpoint = inspect(write(tmp_path, {"dreamer_8.safetensors": WEIGHTS, "README.md": b"x", "x.json": {}}))
    assert (checkpoint.layout, checkpoint.root) == ("safetensors", tmp_path / "dreamer_8.safetensors")


INCOMPLETE: dict[str, tuple[dict[str, Any], str]] = {
    "empty folder": ({}, "neither config.json"),
    "only a readme": ({"README.md": b"x"}, "neither config.json"),
    "no weights": ({"config.json": {}}, "weights are missing"),
    "no config": ({"model.safetensors": WEIGHTS}, "config.json is missing"),
    "an adapter": ({"adapter_config.json": {}, "adapter_model.safetensors": WEIGHTS}, "adapter"),
    "an adapter of diffusers": ({"pytorch_lora_weights.safetensors": WEIGHTS}, "adapter"),
    "no tensors": ({"config.json": {}, "model.safetensors": safetensors_bytes({})}, "weights are missing"),
    "several GGUF files": ({"a.gguf": gguf_bytes(), "b.gguf": gguf_bytes()}, "several GGUF"),
    "unclear weights": ({"config.json": {}, "x.safetensors": WEIGHTS, "y.safetensors": OTHER}, "unclear"),
    "no index": ({k: v for k, v in sharded(MAP).items() if "index" not in k}, "index of its shards"),
    "a shard is missing": (
        {k: v for k, v in sharded(MAP).items() if "00002-of" not in k}, "model-00002-of-00002.safetensors is named",
    ),
    "tensor not in its shard": (sharded({**MAP, "c": MAP["a"]}), "'c' lies in"),
    "index without a map": ({**sharded(MAP), "model.safetensors.index.json": {}}, "weight_map"),
    "index with a list": ({**sharded(MAP), "model.safetensors.index.json": {"weight_map": []}}, "weight_map"),
    "config is a list": ({"config.json": [], "model.safetensors": WEIGHTS}, "not an object"),
    "config is damaged": ({"config.json": b"{", "model.safetensors": WEIGHTS}, "not valid JSON"),
    "config is not text": ({"config.json": b"\xff\xfe{}", "model.safetensors": WEIGHTS}, "not valid JSON"),
    "config has a key twice": ({"config.json": b'{"a":1,"a":2}', "model.safetensors": WEIGHTS}, "'a' is there twice"),
    "config is deep": ({"config.json": b'{"a":' * 999 + b"1" + b"}" * 999, "model.safetensors": WEIGHTS}, "deep"),
    "config is huge": ({"config.json": b" " * (MAX_CONFIG_BYTES + 1), "model.safetensors": WEIGHTS}, "larger than"),
    "component is missing": ({k: v for k, v in PIPELINE.items() if not k.startswith("scheduler")}, "'scheduler'"),
    "component without weights": (
        {k: v for k, v in PIPELINE.items() if "diffusion_pytorch_model.safe" not in k}, "weights are missing: .* unet",
    ),
    "component without config": (
        {k: v for k, v in PIPELINE.items() if k != "vae/config.json"}, "config.json of the component 'vae'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_checkpoint_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    files, text = INCOMPLETE[name]
    with pytest.raises(UnsupportedCheckpoint, match=text):
        inspect(write(tmp_path, files))


PICKLE = pickle.dumps({"a": 1}, protocol=2)
UNSAFE: dict[str, tuple[dict[str, Any], str]] = {
    "bin": ({"config.json": {}, "pytorch_model.bin": PICKLE}, "pytorch_model.bin"),
    "ckpt without config": ({"model.ckpt": PICKLE}, "model.ckpt"),
    "component": (
        {**{k: v for k, v in PIPELINE.items() if "unet/diff" not in k}, "unet/diffusion_pytorch_model.bin": PICKLE},
        "unet/diffusion_pytorch_model.bin",
    ),
    "pickle named safetensors": ({"config.json": {}, "model.safetensors": PICKLE + bytes(99)}, "model.safetensors"),
    "zip named safetensors": ({"config.json": {}, "model.safetensors": b"PK\x03\x04" + bytes(99)}, "model.safetensors"),
    "pickle named gguf": ({"m.gguf": PICKLE + bytes(99)}, "m.gguf"),
    "shards that are pickles": (sharded({**MAP, "c": "pytorch_model-1.bin"}), "pytorch_model-1.bin"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_pickles_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    files, text = UNSAFE[name]
    with pytest.raises(UnsafeCheckpoint, match=text) as caught:
        inspect(write(tmp_path, files))
    assert "kamado convert-pickle" in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickled_single_file(suffix: str, tmp_path: Path) -> None:
    write(tmp_path, {f"m{suffix}": PICKLE})
    with pytest.raises(UnsafeCheckpoint, match="convert-pickle"):
        inspect(tmp_path / f"m{suffix}")


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "C:x.safetensors", 3, None]
)
def test_shard_names_stay_in_the_folder(name: object, tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint):
        inspect(write(tmp_path / "m", sharded({**MAP, "c": name})))


@pytest.mark.parametrize("name", ["..", "../unet", "/etc", "a\\b", "C:"])
def test_component_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    index = {**PIPELINE["model_index.json"], name: ["diffusers", "UNet2DConditionModel"]}
    with pytest.raises(UnsafeCheckpoint):
        inspect(write(tmp_path / "m", {**PIPELINE, "model_index.json": index}))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_links_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    root = write_transformers(tmp_path / "m")
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeCheckpoint, match="leaves"):
        inspect(root)


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    root = write_transformers(tmp_path / "m")
    write(tmp_path / "outside", {"secret.json": {}})
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(tmp_path / "outside")
    assert not [name for name in inspect(root).files if "/" in name]


WANTS: dict[str, dict[str, Any]] = {
    "config": {"config.json": {"auto_map": {"AutoModel": "modeling_x.Model"}}},
    "nested": {"config.json": {"text_config": {"auto_map": {"AutoModel": "modeling_x.Model"}}}},
    "in a list": {"config.json": {"parts": [{"auto_map": {"AutoModel": "m.M"}}]}},
    "tokenizer": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["t.T", None]}}},
    "processor": {"processor_config.json": {"auto_map": {"AutoProcessor": "p.P"}}},
    "custom pipeline": {"config.json": {"custom_pipelines": {"x": {"impl": "x.X"}}}},
    "trust": {"config.json": {"vision_config": {"trust_remote_code": True}}},
    "kernel": {"config.json": {"_attn_implementation_internal": "org/kernel"}},
}


@pytest.mark.parametrize("name", WANTS)
def test_own_code_is_flagged(name: str, tmp_path: Path) -> None:
    root = write(write_transformers(tmp_path / "m"), WANTS[name])
    (place,) = inspect(root).metadata["wants_code"]
    assert place.startswith(next(iter(WANTS[name])))


def test_own_code_of_a_pipeline_is_flagged(tmp_path: Path) -> None:
    index = {**PIPELINE["model_index.json"], "unet": ["my_unet", "MyUnet"]}
    root = write(tmp_path, {**PIPELINE, "model_index.json": index, "unet/my_unet.py": b"raise SystemExit"})
    assert inspect(root).metadata["wants_code"] == ["model_index.json: unet = my_unet.py"]
    write(tmp_path, {"unet/config.json": {"auto_map": {"AutoModel": "x.Y"}}})
    assert len(inspect(root).metadata["wants_code"]) == 2


@pytest.mark.parametrize("quiet", [{"auto_map": None}, {"trust_remote_code": False}, {"_attn_implementation": "sdpa"}])
def test_harmless_keys_are_not_flagged(quiet: dict[str, Any], tmp_path: Path) -> None:
    root = write(write_transformers(tmp_path / "m"), {"config.json": quiet})
    assert "wants_code" not in inspect(root).metadata


def test_tokenizer_is_required_by_those_who_need_it(tmp_path: Path) -> None:
    require_tokenizer(inspect(write_transformers(tmp_path / "with")))
    without = inspect(write_transformers(tmp_path / "without", tokenizer=False))
    with pytest.raises(UnsupportedCheckpoint, match="no tokenizer"):
        require_tokenizer(without)
    write(tmp_path, {"m.gguf": gguf_bytes(), "t.gguf": gguf_bytes([("tokenizer.ggml.tokens", ["a"])])})
    require_tokenizer(inspect(tmp_path / "t.gguf"))
    with pytest.raises(UnsupportedCheckpoint, match="no tokenizer"):
        require_tokenizer(inspect(tmp_path / "m.gguf"))


def test_other_paths(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        inspect(tmp_path / "missing")
    write(tmp_path, {"x.onnx": b"x"})
    with pytest.raises(UnsupportedCheckpoint, match="not a checkpoint"):
        inspect(tmp_path / "x.onnx")


def test_nothing_of_a_checkpoint_runs_or_is_opened_elsewhere(tmp_path: Path) -> None:
    """The oracle of the hostile corpus: no import, no program, no socket, nothing opened outside of the folder."""
    root = write(tmp_path / "m", {**PIPELINE, **WANTS["config"], "my_unet.py": b"raise SystemExit", "x.pkl": PICKLE})
    inspect(root)
    seen: list[tuple[str, Any]] = []
    armed = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if armed and event.startswith(("open", "import", "socket", "subprocess", "os.", "exec", "compile", "pickle")):
            seen.append((event, args[0] if args else None))

    sys.addaudithook(hook)
    inspect(root)
    armed = False
    home = tmp_path / "home"
    inside = (str(root), str(home))
    outside = [(event, what) for event, what in seen if not str(what).startswith(inside) or event not in _READS]
    assert outside == []
    assert any(event == "open" for event, _ in seen)


_READS = ("open", "os.scandir", "os.listdir")

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=20,
)


@given(value=st.dictionaries(st.text(max_size=8), _JSON, max_size=5), ascii_only=st.booleans())
def test_any_json_object_is_read(value: dict[str, Any], ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert parse_json_object(data, what="x") == value


@given(data=st.one_of(st.binary(), st.text(alphabet='{}[]",:\\ a1').map(str.encode)))
def test_any_bytes_give_an_object_or_a_typed_error(data: bytes) -> None:
    try:
        assert isinstance(parse_json_object(data, what="x"), dict)
    except UnsupportedCheckpoint:
        return


@pytest.mark.parametrize("unit", [b"[", b"{", b'{"a":[', b'["', b'\\"', b'"[', b"[],", b'"\\"'], ids=repr)
def test_json_bombs_are_refused(unit: bytes) -> None:
    with pytest.raises(UnsupportedCheckpoint):
        parse_json_object(b'{"a":[' + unit * (MAX_CONFIG_BYTES // len(unit)), what="x")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), file=st.sampled_from(sorted({*PIPELINE, *sharded(MAP)})))
def test_mutated_folders_give_only_typed_errors(seed: int, file: str, tmp_path: Path) -> None:
    files = PIPELINE if file in PIPELINE else sharded(MAP)
    root = write(tmp_path / f"m{seed}", files)
    content = bytearray((root / file).read_bytes())
    draw = random.Random(seed)
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.choice(b'{}[]",:\\./\0\xff0a~')
    (root / file).write_bytes(bytes(content))
    try:
        checkpoint = inspect(root)
    except KamadoError:
        return
    assert all(entry.file.resolve().is_relative_to(root.resolve()) for entry in checkpoint.tensors.values())
