"""The library in C, built of the sources as they are: what is installed may be older."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kamado.kernels import native as loader
from kamado.kernels.native import Native, implementations

SOURCE = Path(loader.__file__).parent / "source"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Native]:
    """What it can do on this CPU, the best first."""
    if COMPILER is None:
        pytest.skip("there is no C compiler")
    target = tmp_path_factory.mktemp("kernels") / "kernels.so"
    flags = ["-std=c11", "-O3", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
    sources = sorted(map(str, SOURCE.glob("*.c")))
    command = [COMPILER, *flags, *sources, "-lm", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = implementations(target)
    assert found[-1].name == "portable" and not found[-1].is_fast
    assert len({each.name for each in found}) == len(found)
    return found
