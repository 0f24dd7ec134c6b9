"""A grid as typed, with the model that comes along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from kamado.media.pictures import open_picture

from .conftest import PROGRAM, Kamado, environment

ARGS = ("grid", "emoji-diffusion:64", "--offline", "--steps", "2", "--axis", "prompt=a red heart", "--axis")
AXES = ("prompt=a blue car", "--axis", "seed=1..2", "--axis", "guidance=1,5", "--cell", "64")


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_is_the_same(quick: Kamado, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = (*AXES, "--deterministic", "--concurrency", "1")
    done = quick(*ARGS, *options, "-o", whole, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["ok"] == 8
    with Image.open(whole / "sheet-001.png") as sheet:
        assert sheet.width > 2 * 64
    command = [PROGRAM, *ARGS, *options, "-o", cut]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(tmp_path / "home")
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and len(list((cut / "media").glob("[0-9]*"))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    again = quick(*ARGS, *options, "-o", cut, "--json")
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert document["ok"] == 8
    for name in ("results.jsonl", "index.json", "sheet-001.png"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    for path in (whole / "media").iterdir():
        assert open_picture(path).tobytes() == open_picture(cut / "media" / path.name).tobytes()
