"""The wheel holds everything, and nothing else; installed in a fresh environment it works without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from source import ROOT, module_name, relative, source_files


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _build(tmp_path_factory: pytest.TempPathFactory, **environment: str) -> Path:
    """From a copy: a build leaves files behind in the source tree, and takes up those of earlier ones."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("runtime", "models", "configs"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, copy]
    _run(*command, cwd=copy, **environment)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of an environment that has the wheel, and the running one's packages for its dependencies."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(_run(python, "-c", where, cwd=folder).strip())
    # A .pth file adds these folders, but not what their own .pth files add: the editable kamado stays out of sight.
    shared = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site_packages / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    _run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder / "bin"


def _libraries(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("kamado/kernels/_native.")}


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"kamado", "kamado_models", "kamado-0.1.0.dist-info"}
    assert {name for name in names if name.endswith(".py")} == {
        relative(path).partition("/")[2] for path in source_files()
    }
    assert {f"kamado/configs/{path.name}" for path in (ROOT / "configs").glob("*.toml")} <= names
    assert {"kamado/py.typed", "kamado_models/py.typed", "kamado-0.1.0.dist-info/licenses/LICENSE"} <= names
    assert {relative(path).partition("/")[2] for path in (ROOT / "models").rglob("*.toml")} <= names


def test_the_kernels_are_built_where_there_is_a_compiler(wheel: Path) -> None:
    compilers = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    assert len(_libraries(wheel)) == (1 if compilers else 0)


@pytest.mark.slow
def test_without_a_compiler_there_is_all_but_the_kernels(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    without = _build(tmp_path_factory, PATH=str(tmp_path), CC="no-such-compiler")
    assert _libraries(without) == set()
    with zipfile.ZipFile(wheel) as full, zipfile.ZipFile(without) as archive:
        assert set(full.namelist()) - set(archive.namelist()) == _libraries(wheel)


def test_every_module_is_installed(installed: Path, tmp_path: Path) -> None:
    names = [module_name(path) for path in source_files()]
    code = """
import importlib.util, json, sys
for name in json.loads(sys.argv[1]):
    origin = importlib.util.find_spec(name).origin
    assert origin.startswith(sys.prefix), (name, origin)
"""
    _run(installed / "python", "-c", code, json.dumps(names), cwd=tmp_path)


def test_families_catalog_and_presets_are_found(installed: Path, tmp_path: Path) -> None:
    code = """
import json
from importlib.metadata import entry_points
import kamado, kamado.presets
families = {entry.name: entry.load().name for entry in entry_points(group="kamado.families")}
catalogs = [entry.value for entry in entry_points(group="kamado.catalogs")]
print(json.dumps([kamado.__version__, families, catalogs, kamado.presets.preset_names()]))
"""
    version, families, catalogs, presets = json.loads(_run(installed / "python", "-c", code, cwd=tmp_path))
    assert version == "0.1.0"
    areas = ("adversarial", "autoencoders", "diffusion", "hearing", "language", "music", "speech", "vectors", "vision")
    assert families == {name: name for name in areas}
    assert catalogs == ["kamado_models"]
    assert presets == sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))


def test_the_command_works(installed: Path, tmp_path: Path) -> None:
    kamado = installed / "kamado"
    assert "run" in _run(kamado, "--help", cwd=tmp_path)
    home = str(tmp_path / "home")
    models = json.loads(_run(kamado, "list", "--json", cwd=tmp_path, KAMADO_HOME=home))
    assert isinstance(models, list | dict)


@pytest.mark.parametrize("folder", ["runtime", "models"])
def test_source_roots_are_not_installed(installed: Path, folder: str, tmp_path: Path) -> None:
    code = f"import importlib.util; assert importlib.util.find_spec({folder!r}) is None"
    _run(installed / "python", "-c", code, cwd=tmp_path)
