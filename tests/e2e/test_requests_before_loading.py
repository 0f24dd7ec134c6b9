"""What is wrong with a request is told although the weights of the model are no good: they are not read."""

from __future__ import annotations

from pathlib import Path

import tiny_pipelines

from .conftest import Kamado


def test_run_finds_the_bad_request_first(quick: Kamado, tmp_path: Path) -> None:
    model = tiny_pipelines.build("sd15", tmp_path / "model")
    (weights,) = model.glob("unet/*.safetensors")
    weights.write_bytes(weights.read_bytes().replace(b'"conv_in.bias"', b'"conv_in.bios"'))
    target = tmp_path / "x.png"
    silent = quick("run", model, "--offline", "-o", target)
    assert silent.returncode == 2 and b"give a prompt" in silent.stderr
    odd = quick("run", model, "a red heart", "--scheduler", "magic", "--offline", "-o", target)
    assert odd.returncode == 2 and b"no scheduler is called 'magic'" in odd.stderr
    cells = quick(
        "grid", model, "a red heart", "--axis", "scheduler=euler,magic", "--offline", "-o", tmp_path / "cells"
    )
    assert cells.returncode == 2 and b"the cell with scheduler magic: no scheduler is called" in cells.stderr
    assert not (tmp_path / "cells").exists()
    good = quick("run", model, "a red heart", "--offline", "-o", target)
    assert good.returncode not in (0, 2) and b"unet lacks conv_in.bias" in good.stderr
    assert not target.exists()
