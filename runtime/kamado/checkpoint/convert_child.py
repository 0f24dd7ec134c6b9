"""Runs alone, as `python -I convert_child.py SOURCE TARGET MAX_BYTES`: one pickle of tensors to one safetensors file.

Never imported by Kamado. torch's restricted unpickler does the reading; limits and an audit hook are there for the
day that it has a hole. The answer is one line of JSON on stdout: `{"tensors", "dropped"}` or `{"error", "unsafe"}`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

_FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir",
    "os.link", "os.symlink", "os.chmod", "os.chown", "os.kill", "os.putenv", "ctypes.", "shutil.", "webbrowser.",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NESTS = ("state_dict", "model", "params_ema", "params", "g_ema", "generator", "model_state_dict", "weights")


def main(source: str, target: str, max_bytes: int) -> dict[str, Any]:
    """Convert; the answer as a dictionary."""
    _limit(max_bytes)
    import argparse

    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    # What programs for training keep their settings in: names and values, and no code of its own.
    torch.serialization.add_safe_globals([argparse.Namespace])
    _watch(target)
    try:
        found = _load(torch, source)
    except Exception as error:  # noqa: BLE001 whatever the file made torch raise is the answer
        wants = re.search(r"GLOBAL ([\w.]+)|forbidden: .{0,80}", str(error))
        if wants is not None or "Unpickling" in type(error).__name__:
            return {
                "error": f"it holds more than tensors ({wants[0] if wants else 'an unknown opcode'})",
                "unsafe": True,
            }
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return {"error": f"it is damaged, or not one that torch.save wrote ({reason})", "unsafe": False}
    tensors, dropped = _tensors(torch, found)
    if not tensors:
        return {"error": "it holds no dictionary of tensors", "unsafe": False}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > max_bytes:  # shapes cost nothing to claim: one number may be said to fill a tensor of any size
        return {"error": f"its tensors would take {size} bytes, and the file has far fewer", "unsafe": False}
    safetensors.torch.save_file(_apart(tensors), target)
    return {"tensors": len(tensors), "dropped": dropped[:20]}


def _limit(max_bytes: int) -> None:
    if os.name != "posix":
        return
    import resource

    def lower(kind: int, value: int) -> None:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, max_bytes)
    lower(resource.RLIMIT_CPU, 3600)
    # Importing torch alone maps several GiB.
    lower(resource.RLIMIT_AS, 24 * 2**30 + 4 * max_bytes)


def _watch(target: str) -> None:
    """From here on: no network, no programs, no new imports, no writing but to `target`."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int) and str(path) != target:
                raise PermissionError(f"forbidden: writing {str(path)[:80]}")
        elif event == "import":
            if args[0] not in sys.modules and not str(args[0]).startswith(("torch", "numpy", "encodings")):
                raise PermissionError(f"forbidden: import of {args[0]}")
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"forbidden: {event}")

    sys.addaudithook(hook)


def _load(torch: Any, source: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:  # the older format, which is no zip, cannot be mapped
        if "mmap" not in str(error):
            raise
        return torch.load(source, map_location="cpu", weights_only=True)


def _tensors(torch: Any, found: Any) -> tuple[dict[str, Any], list[str]]:
    """The dictionary of tensors in what was loaded, and tensors beside it (a mean of styles, for one); and the names of
    what else is in it."""
    beside: dict[str, Any] = {}
    for _ in range(3):
        nests = found if isinstance(found, dict) else {}
        nested = next((nests[name] for name in _NESTS if isinstance(nests.get(name), dict)), None)
        if nested is None:
            break
        beside |= {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
        found = nested
    if not isinstance(found, dict):
        return {}, []
    found = {**beside, **found}
    tensors: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            dropped.append(str(name)[:80])
        else:
            tensors[name] = value.detach()
    return tensors, dropped


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors, contiguous, each with memory of its own."""
    found: dict[str, Any] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        address = plain.untyped_storage().data_ptr()
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        found[name] = plain if whole and address not in storages else plain.clone()
        storages.add(address)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))) + "\n")
