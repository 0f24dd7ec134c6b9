"""Kernels for GPUs, on a CPU: run by Triton's interpreter, and compiled for GPUs that are not here.

Both in processes of their own: Triton asks once, when it is imported, whether it is to interpret.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton, which torch for GPUs has, is not here"
)
GPUS = ("80", "90")


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_kernels_as_the_interpreter_runs_them() -> None:
    if tuple(map(int, metadata.version("triton").split(".")[:2])) < (3, 7):
        pytest.skip("its interpreter takes no loop bounds from today's numpy")
    tests = Path(__file__).with_name("interpreted_gpu.py")
    said = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES=""
    )
    assert " passed" in said and "skipped" not in said.splitlines()[-1]


@pytest.mark.slow
def test_kernels_compile(tmp_path: Path) -> None:
    said = run(str(Path(__file__).with_name("compiled_gpu.py")), *GPUS, TRITON_CACHE_DIR=str(tmp_path))
    assert len(said.splitlines()) >= 12 and all(f" {gpu} " in said for gpu in GPUS)
