"""What a result was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import kamado
from kamado.errors import KamadoError
from kamado.memory.devices import resolve_device

ROOT = Path(__file__).parents[1]


def description(device: str = "cpu") -> dict[str, Any]:
    """Machine, versions, commit and load, for every result line."""
    facts = resolve_device(device)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "commit": _commit(),
        "device": facts.model,
        "threads": torch.get_num_threads(),
        "features": list(facts.features),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kamado": kamado.__version__,
    }


def counting(text: str) -> int:
    """A whole number from 1, for argparse. Raises ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run_program(main: Callable[[], None]) -> None:
    """What Kamado refuses is said in a line, and the exit status is as `kamado` has it, also when it is interrupted."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except KamadoError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_status) from None


def model_name(reference: str) -> str:
    """What results call the model: of a path, which means something on this machine alone, the last name."""
    path = Path(reference)
    return path.resolve().name if path.exists() else reference


def write(name: str, rows: list[dict[str, Any]], machine: dict[str, Any]) -> Path:
    """Append the rows to `benchmarks/results/NAME.jsonl`, each with the machine."""
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"machine": machine}) + "\n")
    return path


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
