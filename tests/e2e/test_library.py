"""Kamado inside somebody else's program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import kamado
print(kamado.generate(sys.argv[1], prompt_tokens=[5, 6, 7], max_tokens=4).usage.completion_tokens)
runtime = kamado.Runtime(device="cpu", memory="1GiB")
job = runtime.load(sys.argv[1]).submit(prompt_tokens=[5, 6, 7], ignore_eos=True)
next(event for event in job.events() if isinstance(event, kamado.Token))
"""


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "raise RuntimeError('the host fails')"])
def test_a_program_that_ends_while_a_request_runs_ends_as_it_says(ending: str, tmp_path: Path) -> None:
    import tiny

    folder = tiny.build("llama", tmp_path / "llama")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + ending, folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "4\n"
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3}.get(ending, 1)
    assert ("the host fails" in done.stderr) == ("host" in ending)
    assert "terminate" not in done.stderr
