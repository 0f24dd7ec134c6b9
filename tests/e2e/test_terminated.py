"""SIGTERM: a command tidies up on its way out."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from .conftest import PROGRAM, environment


def test_quantize_leaves_nothing_half_written(tmp_path: Path) -> None:
    command = [PROGRAM, "quantize", "emoji-diffusion:64", "--quant", "int8", "-o", tmp_path / "out", "--device", "cpu"]
    process = subprocess.Popen(command, env=environment(tmp_path / "home"), stderr=subprocess.PIPE, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert not list(tmp_path.glob(".out.*")) and not (tmp_path / "out").exists()
    assert b"Traceback" not in said
