"""Meshes of Shap-E and maps of Marigold: what diffusers' own calls make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import kamado
from kamado.media.recipes import read_recipe
from kamado.outputs import Mesh
from tiny_pipelines.solids import marigold, shap_e
from tiny_pipelines.spec import picture


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 24 in place of 128 points a side."""
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    decode = ShapERenderer.decode_to_mesh
    monkeypatch.setattr(
        ShapERenderer, "decode_to_mesh", lambda self, latents, device: decode(self, latents, device, grid_size=24)
    )


def oracle(folder: Path, **arguments: Any) -> Any:
    """What diffusers makes by itself."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    seed = arguments.pop("seed")
    return pipeline(**arguments, generator=torch.Generator().manual_seed(seed))


def same_mesh(mesh: Any, wanted: Any) -> bool:
    """Vertices, faces and colours."""
    colors = torch.stack([wanted.vertex_channels[name] for name in "RGB"], dim=1).numpy()
    if mesh.vertices.shape != tuple(wanted.verts.shape):
        return False
    return (
        np.allclose(mesh.vertices, wanted.verts.numpy(), atol=1e-4)
        and np.array_equal(mesh.faces, wanted.faces.numpy())
        and bool(np.abs(mesh.colors[:, :3] - colors * 255).max() <= 1)
    )


def same_body(mesh: Any, wanted: Any) -> bool:
    """In shared forwards sums are rounded otherwise: where the surface just touches an edge of the grid, there may be a
    triangle more."""
    one = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    other = trimesh.Trimesh(wanted.verts.numpy(), wanted.faces.numpy(), process=False)
    return (
        bool(np.allclose([one.volume, one.area], [other.volume, other.area], rtol=1e-3))
        and abs(len(one.faces) - len(other.faces)) < len(other.faces) / 100
    )


def test_meshes_of_texts(tmp_path: Path) -> None:
    folder = shap_e(tmp_path / "shap")
    asked: list[dict[str, Any]] = [
        {"prompt": "a shark", "seed": 3},
        {"prompt": "a chair", "seed": 4},
        {"prompt": "a cup", "seed": 5},
    ]
    wanted = [oracle(folder, **each, num_inference_steps=2, output_type="mesh").images[0] for each in asked]
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder)
        assert (model.tasks, model.capabilities) == (("text-to-3d",), ("mesh",))
        plan = runtime.plan(folder)
        assert plan.activation_bytes > 1 << 30 and plan.notes[0] == "activations for one mesh"
        alone = model.generate(**asked[0], steps=2)
        crowd = model.generate_many([{**each, "steps": 2} for each in asked])
        several = model.generate("a shark", seed=3, steps=2, n=2)
    assert same_mesh(alone.mesh, wanted[0])
    assert all(same_body(result.mesh, each) for result, each in zip(crowd, wanted, strict=True))
    assert isinstance(several.outputs[1], Mesh) and len(several.outputs) == 2
    for suffix in ("glb", "ply", "obj"):
        [path] = alone.save(tmp_path / f"shark.{suffix}")
        found = trimesh.load_mesh(path)
        assert found.is_watertight and found.volume > 0 and len(found.faces) == len(wanted[0].faces)
        assert np.ptp(found.visual.vertex_colors[:, :3], axis=0).max() > 0
        assert read_recipe(path)["options"]["prompt"] == "a shark"


def test_a_mesh_of_a_picture(tmp_path: Path) -> None:
    folder = shap_e(tmp_path / "shap", image=True)
    wanted = oracle(folder, image=picture(64), seed=3, num_inference_steps=2, output_type="mesh").images[0]
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder)
        assert model.tasks == ("image-to-3d",)
        assert same_mesh(model.generate(image=picture(64), seed=3, steps=2).mesh, wanted)
        with pytest.raises(kamado.InvalidRequest, match="width"):
            model.generate(image=picture(64), width=64, height=64)


@pytest.mark.parametrize("name", ["Depth", "Normals", "Intrinsics"])
def test_maps(name: str, tmp_path: Path) -> None:
    folder = marigold(name, tmp_path / name)
    seen = picture(48)
    wanted = oracle(folder, image=seen, seed=3).prediction
    with kamado.Runtime(device="cpu", memory="2GiB") as runtime:
        model = runtime.load(folder)
        assert model.capabilities == ("image",)
        result = model.generate(image=seen, seed=3)
        crowd = model.generate_many([{"image": seen, "seed": seed} for seed in (1, 3, 5)])
        with pytest.raises(kamado.InvalidRequest, match="takes no output_uncertainty"):
            model.generate(image=seen, output_uncertainty=True, ensemble_size=3)
    pixels = result.pixels[0]
    if name == "Depth":
        assert np.allclose(pixels, wanted[0], atol=1e-4)
        assert model.tasks == ("depth-estimation",)
    elif name == "Normals":
        assert np.allclose(pixels * 2 - 1, wanted[0], atol=1e-4)
    else:
        assert np.allclose(pixels, np.concatenate(list(wanted), axis=1), atol=1e-4)
    assert np.allclose(crowd[1].pixels[0], pixels, atol=1e-4)
    [path] = result.save(tmp_path / "map.png")
    with Image.open(path) as found:
        assert found.mode == ("I;16" if name == "Depth" else "RGB")
        if name == "Depth":
            assert np.allclose(np.asarray(found) / 65535, wanted[0][..., 0], atol=1e-4)
    assert read_recipe(path)["pipeline"] == f"Marigold{name}Pipeline"
