"""Parts from elsewhere: how they are named, what is found there, and tokenizers without their model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_files import safetensors_bytes, write_transformers
from fake_hub import FakeHub
from kamado.checkpoint import resolve
from kamado.checkpoint.inspect import inspect
from kamado.checkpoint.parts import inspect_part, split_reference, with_parts
from kamado.checkpoint.store import Store
from kamado.cli.main import main
from kamado.errors import HubUnreachable, InvalidRequest, KamadoError, UnsafeCheckpoint, UnsupportedCheckpoint

WEIGHTS = safetensors_bytes({"a": ("F32", (2, 3), 24)})
NET = {"config.json": {"_class_name": "ControlNetModel"}, "diffusion_pytorch_model.safetensors": WEIGHTS}
PIPELINE: dict[str, Any] = {
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"], "controlnet": ["diffusers", "ControlNetModel"],
        "safety_checker": [None, None],
    },
    "vae/config.json": {"_class_name": "AutoencoderKL"},
    "vae/diffusion_pytorch_model.safetensors": WEIGHTS,
    "vae_2/config.json": {"_class_name": "AutoencoderTiny"},
    "vae_2/diffusion_pytorch_model.safetensors": WEIGHTS,
    "text_encoder/config.json": {"architectures": ["CLIPModel"]},
    "text_encoder/model.safetensors": WEIGHTS,
    "tokenizer/vocab.json": {}, "tokenizer/merges.txt": b"x",
    "tokenizer_2/spiece.model": b"x", "tokenizer_2/deep/x.json": {},
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"},
    **{f"controlnet/{name}": content for name, content in NET.items()},
}  # fmt: skip


def encoded(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: c if isinstance(c, bytes) else json.dumps(c).encode() for name, c in files.items()}


def write(root: Path, files: Mapping[str, Any]) -> Path:
    for name, content in encoded(files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write(tmp_path / "pipeline", PIPELINE)


def test_a_model_by_itself(tmp_path: Path) -> None:
    root = write(tmp_path / "net", {**NET, "README.md": b"x", "x.py": b"x"})
    alone = inspect(root)
    assert (alone.layout, sorted(alone.tensors), alone.config) == ("component", ["a"], NET["config.json"])
    part = inspect_part(str(root), "controlnet")
    assert part.layout == "component" and part.metadata == {"class": ["diffusers", "ControlNetModel"]}
    assert sorted(part.files) == ["README.md", "config.json"]


@pytest.mark.parametrize(
    ("name", "folder", "home", "kind"),
    [
        ("vae", "", "vae", ["diffusers", "AutoencoderKL"]),
        ("vae", "#vae_2", "vae_2", ["diffusers", "AutoencoderTiny"]),
        ("text_encoder", "", "text_encoder", ["transformers", "CLIPTextModel"]),
        ("controlnet_2", "", "controlnet", ["diffusers", "ControlNetModel"]),
        ("scheduler", "", "scheduler", ["diffusers", "DDIMScheduler"]),
        ("tokenizer", "#tokenizer_2", "tokenizer_2", None),
    ],
)
def test_parts_of_a_pipeline(name: str, folder: str, home: str, kind: Any, pipeline: Path) -> None:
    part = inspect_part(f"{pipeline}{folder}", name)
    assert (part.root, part.reference) == (pipeline / home, f"{pipeline}{folder}")
    assert part.metadata.get("class") == kind
    assert bool(part.tensors) == (not name.startswith(("tokenizer", "scheduler")))
    assert all(path.parent == pipeline / home for path in part.files.values())


def test_classes_that_files_name_themselves(tmp_path: Path) -> None:
    encoder = write_transformers(tmp_path / "m")
    assert inspect_part(str(encoder), "text_encoder").metadata == {"class": ["transformers", "LlamaForCausalLM"]}
    words = inspect_part(str(encoder), "tokenizer_2")
    assert words.metadata == {} and words.tensors == {} and "tokenizer.json" in words.files
    scheduler = write(tmp_path / "s", {"scheduler_config.json": {"_class_name": "DDIMScheduler"}})
    assert inspect_part(str(scheduler), "scheduler").metadata == {"class": ["diffusers", "DDIMScheduler"]}


def test_a_folder_whose_name_has_the_separator(tmp_path: Path) -> None:
    root = write(tmp_path / "a#b", NET)
    assert split_reference(str(root)) == (str(root), "")
    assert inspect_part(str(root), "controlnet").root == root
    assert split_reference("org/name@v1#sub/folder") == ("org/name@v1", "sub/folder")


@given(st.text(max_size=40))
def test_any_reference_is_split_or_refused(text: str) -> None:
    try:
        whole, folder = split_reference(text)
    except KamadoError:
        return
    assert text in (whole, f"{whole}#{folder}")


BAD: dict[str, tuple[str, str, type[KamadoError], str]] = {
    "not in the pipeline": ("unet", "", UnsupportedCheckpoint, "a pipeline without a unet; name the folder.*#vae"),
    "left out there": ("safety_checker", "", UnsupportedCheckpoint, "a pipeline without a safety_checker"),
    "no folder": ("vae", "#nothing", UnsupportedCheckpoint, "no folder 'nothing'"),
    "no model": ("vae", "#tokenizer", UnsupportedCheckpoint, "can be the vae: no config.json"),
    "no weights": ("vae", "#scheduler", UnsupportedCheckpoint, "can be the vae: no config.json"),
    "nothing to read": ("tokenizer", "#empty", UnsupportedCheckpoint, "holds nothing that can be the tokenizer"),
    "above": ("vae", "#../x", UnsafeCheckpoint, "'..' parts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_a_part(case: str, pipeline: Path) -> None:
    name, folder, error, text = BAD[case]
    (pipeline / "empty").mkdir()
    with pytest.raises(error, match=text):
        inspect_part(f"{pipeline}{folder}", name)


def test_a_file_has_no_folders(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(WEIGHTS)
    assert inspect_part(str(path), "vae").layout == "safetensors"
    assert inspect_part(str(tmp_path), "vae").root == path, "a folder with that file alone"
    with pytest.raises(InvalidRequest, match="is a file, so there is no 'vae' in it"):
        inspect_part(f"{path}#vae", "vae")


def test_links_that_leave_are_refused(tmp_path: Path, pipeline: Path) -> None:
    (pipeline / "vae" / "config.json").unlink()
    write(tmp_path / "outside", NET)
    (pipeline / "vae" / "config.json").symlink_to(tmp_path / "outside" / "config.json")
    with pytest.raises(UnsafeCheckpoint, match="leaves"):
        inspect_part(str(pipeline), "vae")


def test_parts_of_a_checkpoint(pipeline: Path, tmp_path: Path) -> None:
    checkpoint = inspect(pipeline)
    net = write(tmp_path / "net", NET)
    found = with_parts(checkpoint, {"controlnet": [net, str(net)], "vae": pipeline, "safety_checker": None})
    assert sorted(found.parts) == ["controlnet", "controlnet_2", "safety_checker", "vae"]
    assert found.parts["safety_checker"] is None
    assert with_parts(checkpoint, None) is with_parts(checkpoint, {}) is checkpoint
    for bad, text in (
        ({"vae": [net, net]}, "vae takes one"), ({"vae": []}, "takes one"), ({"vae": 3}, "a reference, not int"),
        ({"controlnet": [net, None]}, "takes one"), ({"": net}, "not the name"), ({"_x": net}, "not the name"),
        ({"controlnet": [net, net], "controlnet_2": net}, "controlnet_2 is given twice"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest, match=text):
            with_parts(checkpoint, bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="is one model"):
        with_parts(inspect(write_transformers(tmp_path / "m")), {"vae": net})
    with pytest.raises(InvalidRequest, match="is no single file"):
        with_parts(checkpoint, None, pipeline)


def test_parts_from_a_hub(hub: FakeHub, store: Store) -> None:
    hub.files = encoded({**NET, "diffusion_pytorch_model.fp16.safetensors": WEIGHTS, "x.bin": b"\x80\x02"})
    part = inspect_part("org/name", "controlnet")
    assert part.revision == hub.commit and sorted(part.tensors) == ["a"]
    assert {name for name, _ in hub.requests} == {"config.json", "diffusion_pytorch_model.safetensors"}
    with pytest.raises(HubUnreachable):
        inspect_part("org/other#vae", "vae", offline=True)


def test_tokenizers_without_their_model(hub: FakeHub, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    hub.files = encoded(PIPELINE)
    with pytest.raises(HubUnreachable, match="not on this machine"):
        resolve.resolve_tokenizers("org/name", ("tokenizer",), offline=True)
    found = resolve.resolve_tokenizers("org/name", ("tokenizer",))
    assert sorted(found.files) == ["tokenizer/merges.txt", "tokenizer/vocab.json"]
    assert found.revision == hub.commit
    assert {name for name, _ in hub.requests} == {*found.files, "tokenizer_2/spiece.model"}, "all of them, nothing else"
    asked = len(hub.requests)
    both = resolve.resolve_tokenizers("Org/Name", ("tokenizer", "tokenizer_2"), offline=True)
    assert sorted(both.files) == [*sorted(found.files), "tokenizer_2/spiece.model"] and len(hub.requests) == asked
    (entry,) = store.entries()
    assert entry.reference == "org/name (tokenizers)"
    with pytest.raises(HubUnreachable):  # they are not the model
        resolve.resolve("org/name", offline=True)
    assert main(["list"]) == 0 and "org/name (tokenizers)" in capsys.readouterr().out
    whole = resolve.resolve("org/name")
    assert resolve.resolve_tokenizers("org/name", ("tokenizer",)).root == whole
    assert main(["rm", entry.id]) == 0 and len(store.entries()) == 1
    with pytest.raises(UnsupportedCheckpoint, match="org/name has no tokenizer_3"):
        resolve.resolve_tokenizers("org/name", ("tokenizer_3",))
