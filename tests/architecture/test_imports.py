"""Imports point one way, and what answers at once loads nothing heavy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from source import ROOT, module_name, source_files

HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "diffusers", "accelerate", "gguf", "safetensors")
# These work on tensors, and are imported when a model is loaded.
MAY_BE_HEAVY = (
    "kamado.kernels",
    "kamado.weights",
    "kamado.sampling",
    "kamado.tasks.library",
    "kamado_models",
)
AREAS = (
    *("adversarial", "autoencoders", "diffusion", "hearing", "language", "library", "music", "speech", "vectors"),
    "vision",
)
LEAN_ALL_THE_SAME = (
    "kamado_models",
    "kamado_models.library.kinds",
    *(f"kamado_models.{area}" for area in AREAS),
    *(f"kamado_models.{area}.family" for area in AREAS),
)
MAX_START_S = 0.5


def _is_lean(name: str) -> bool:
    heavy = any(name == package or name.startswith(f"{package}.") for package in MAY_BE_HEAVY)
    return name in LEAN_ALL_THE_SAME or not heavy


def _python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, away from the repository."""
    command = [sys.executable, "-c", code, *arguments]
    elsewhere = Path(sys.executable).parent
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=elsewhere, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers() -> None:
    linter = Path(sysconfig.get_path("scripts"), "lint-imports")
    command = [linter, "--no-cache", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lean_modules_load_nothing_heavy() -> None:
    lean = [name for path in source_files() if _is_lean(name := module_name(path)) and not name.endswith("__main__")]
    assert {"kamado", "kamado.api", "kamado.cli.main", "kamado.memory.plan", "kamado_models.language.family"} <= {*lean}
    code = """
import importlib, json, sys
heavy, *names = json.loads(sys.argv[1])
found = {}
for name in names:
    importlib.import_module(name)
    if loaded := [module for module in heavy if module in sys.modules]:
        print(json.dumps([name, loaded]))
        break
"""
    assert _python(code, json.dumps([HEAVY, *lean])) == "", "a module that must be lean loads something heavy"


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--json"], ["devices", "--help"], ["run", "--help"]])
def test_commands_that_answer_at_once_load_nothing_heavy(arguments: list[str]) -> None:
    code = """
import json, sys
from kamado.cli.main import main
heavy, sys.argv = json.loads(sys.argv[1])
try:
    status = main()
except SystemExit as end:
    status = end.code
assert not status, status
assert not (loaded := [module for module in heavy if module in sys.modules]), loaded
"""
    assert _python(code, json.dumps([HEAVY, ["kamado", *arguments]]))


@pytest.mark.parametrize("command", [[sys.executable, "-c", "import kamado"], ["kamado", "--help"]])
def test_start_is_quick(command: list[str]) -> None:
    script = shutil.which(command[0], path=sysconfig.get_path("scripts")) or command[0]
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([script, *command[1:]], check=True, stdout=subprocess.DEVNULL, timeout=60)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < MAX_START_S, seconds


@pytest.mark.parametrize("folder", ["runtime", "models"])
def test_source_roots_are_no_packages(folder: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import {folder}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert f"No module named '{folder}'" in done.stderr
