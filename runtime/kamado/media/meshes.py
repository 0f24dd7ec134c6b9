"""Files of meshes: saved with their recipe, read from strangers. trimesh does the formats."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import GenerationFailed, InvalidRequest, KamadoError
from ..files import replacing
from ..outputs import Mesh
from .opening import check_target, library, opened_source, shown
from .recipe import recipe_json
from .tags import tagged_lines, untagged_lines

WRITE_FORMATS = (".glb", ".ply", ".obj")
MAX_FILE_BYTES = 1 << 29
MAX_HEADER_BYTES = 1 << 26
"""Of the JSON in a GLB file, and of the comments that begin a PLY or OBJ file."""
_KEY = "kamado"
_LINE = 200
"""Characters of a comment: there are readers that take no more than 255."""
_OBJ_DIGITS = 9
_INSTALL = "pip install trimesh"


def check_mesh_path(path: str | os.PathLike[str]) -> str:
    """The suffix of a path to save a mesh to, in lower case. Raises InvalidRequest; worth asking before it is made."""
    return check_target(path, WRITE_FORMATS, "mesh")


def save_mesh(mesh: Mesh, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None) -> None:
    """Write `mesh` to `path`, whole or not at all, with its colours and the recipe inside; a file that is there is
    replaced.

    .glb: the recipe is `asset.extras.kamado`; .ply (binary) and .obj: in comments. OBJ has colours behind coordinates,
    as most programs read them, and no opacity. Raises GenerationFailed for a mesh that is empty or broken,
    InvalidRequest for a path that cannot be written, OSError when the disk fails.
    """
    suffix = check_mesh_path(path)
    solid = _solid(mesh)
    lines = [] if recipe is None else tagged_lines(recipe, _LINE)
    if suffix == ".glb":
        extras = None if recipe is None else json.loads(recipe_json(recipe))
        data = solid.export(file_type="glb", tree_postprocessor=lambda tree: _add_extras(tree, extras))
    elif suffix == ".ply":
        data = solid.export(file_type="ply", encoding="binary")
        first, second, rest = data.split(b"\n", 2)
        comments = "".join(f"comment {line}\n" for line in lines).replace("end_header", "end\\u005fheader").encode()
        data = first + b"\n" + second + b"\n" + comments + rest
    else:
        header = "\n# ".join(lines) if lines else "Kamado"
        data = solid.export(file_type="obj", digits=_OBJ_DIGITS, include_normals=False, header=header).encode()
    try:
        with replacing(Path(path)) as file:
            file.write(data)
    except (PermissionError, ValueError) as error:
        raise InvalidRequest(f"{shown(path)} cannot be written: {error}") from error


def open_mesh(source: Any) -> Mesh:
    """A mesh from a path, the bytes of a GLB, PLY, OBJ or STL file, a `data:` URL, or a Mesh. All parts of a scene are
    one mesh. Raises InvalidRequest. Files that it names (textures, materials) are not opened."""
    if isinstance(source, Mesh):
        return source
    with opened_source(source, "mesh", "meshes", MAX_FILE_BYTES) as opened:
        if opened is None:
            raise InvalidRequest(f"a mesh must be a path, bytes or a data URL, not {type(source).__name__}")
        file, name = opened
        suffix = Path(source).suffix if isinstance(source, (str, os.PathLike)) else ""
        return _read(file, name, suffix.lower())


def read_mesh_recipe(file: BinaryIO) -> str | None:
    """The JSON text of the recipe in a GLB, PLY or OBJ file; None if there is none. Nothing of it is checked yet."""
    head = file.read(20)
    if head[:4] == b"glTF":
        size = int.from_bytes(head[12:16], "little")
        if head[16:20] != b"JSON" or size > MAX_HEADER_BYTES:
            return None
        try:
            found = json.loads(file.read(size))
        except (ValueError, RecursionError):
            return None
        for key in ("asset", "extras", _KEY):
            found = found.get(key) if isinstance(found, dict) else None
        return json.dumps(found, ensure_ascii=False) if isinstance(found, dict) else None
    file.seek(0)
    text = file.read(MAX_HEADER_BYTES).partition(b"\nend_header")[0].decode("ascii", "replace")
    lines = (line.split(" ", 1) for line in text.splitlines())
    return untagged_lines(parts[1] for parts in lines if len(parts) == 2 and parts[0] in ("comment", "#"))


def _add_extras(tree: dict[str, Any], extras: Any) -> None:
    tree["asset"]["generator"] = "Kamado"
    if extras is not None:
        tree["asset"]["extras"] = {_KEY: extras}


def _solid(mesh: Mesh) -> Any:
    import numpy as np

    trimesh = library("trimesh", "a file of a mesh", _INSTALL)
    vertices, faces, colors = (None if part is None else np.asarray(part) for part in _parts(mesh))
    if vertices is None or faces is None or not len(vertices) or not len(faces):
        raise GenerationFailed("the mesh has no vertices or no faces, so there is nothing to write")
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,) or not np.isfinite(vertices).all():
        raise GenerationFailed("the mesh is broken: vertices and faces must be rows of three, without NaN or infinity")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise GenerationFailed(f"the mesh is broken: a face names a vertex beyond the {len(vertices)} there are")
    if colors is not None and colors.shape != (len(vertices), 4):
        raise GenerationFailed(f"the mesh is broken: colours are {list(colors.shape)}, not [{len(vertices)}, 4]")
    return trimesh.Trimesh(vertices=vertices, faces=faces, vertex_colors=colors, process=False)


def _parts(mesh: Mesh) -> tuple[Any, Any, Any]:
    return mesh.vertices, mesh.faces, mesh.colors


def _read(file: BinaryIO, name: str, suffix: str) -> Mesh:
    import numpy as np

    trimesh = library("trimesh", "reading a mesh", _INSTALL)
    data = file.read()
    kind = _kind(data, suffix)
    if kind is None:
        raise InvalidRequest(f"{name} is no mesh of a kind that is read (GLB, PLY, OBJ, STL)")
    try:
        loaded = trimesh.load_mesh(io.BytesIO(data), file_type=kind, process=False, maintain_order=True)
        vertices, faces = np.asarray(loaded.vertices, np.float32), np.asarray(loaded.faces, np.int64)
        has_colors = loaded.visual.kind == "vertex"
        colors = np.asarray(loaded.visual.vertex_colors, np.uint8) if has_colors else None
    except KamadoError:
        raise
    except Exception as error:  # whatever the readers make of damaged files
        raise InvalidRequest(f"{name} is damaged, or no mesh: {type(error).__name__}: {error}"[:240]) from error
    if not len(vertices) or not len(faces) or faces.shape[1:] != (3,):
        raise InvalidRequest(f"{name} has no vertices or no faces")
    if not np.isfinite(vertices).all() or faces.min() < 0 or faces.max() >= len(vertices):
        raise InvalidRequest(f"{name} is damaged: it holds NaN, or names vertices that are not there")
    return Mesh(vertices=vertices, faces=faces, colors=colors)


def _kind(data: bytes, suffix: str) -> str | None:
    if data[:4] == b"glTF":
        return "glb"
    if data[:4] in (b"ply\n", b"ply\r"):
        return "ply"
    if suffix == ".stl":
        return "stl"
    is_text = b"\0" not in data[:4096] and any(line[:2] == b"v " for line in data[: 1 << 22].splitlines())
    return "obj" if is_text else None
