"""What loading a model imports, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tiny_autoencoders

PROGRAM = """
import importlib.abc, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bitsandbytes.backends.cpu":
            seen.append(sys.modules.get("kernels", "could be imported"))

seen = []
sys.meta_path.insert(0, Watch())
import kamado
with kamado.Runtime(device="cpu", memory="1GiB") as runtime:
    runtime.load(sys.argv[1])
assert "kernels" not in sys.modules or sys.modules["kernels"] is not None
print(seen)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pipeline", "autoencoder"])
def test_bitsandbytes_finds_no_package_that_asks_a_hub(what: str, tmp_path: Path) -> None:
    """diffusers imports it, and on some CPUs it would load kernels from a hub while it is imported."""
    pytest.importorskip("bitsandbytes")
    path = "emoji-diffusion:64" if what == "pipeline" else str(tiny_autoencoders.saved("AutoencoderKL", tmp_path)[0])
    command = [sys.executable, "-c", PROGRAM, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[None]"
    assert done.stderr == ""
