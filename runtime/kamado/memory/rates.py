"""How fast a device is: measured once, and kept in `KAMADO_HOME/rates.json`. Reading what is kept needs no torch.

A figure holds for one product with one driver, one version of torch and one number of threads; what was measured with
others stays beside it. The file is nothing but a cache: a damaged one counts as empty, and one that cannot be written
costs another measurement.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoint.home import default_home
from ..files import write_json

if TYPE_CHECKING:
    from .devices import DeviceFacts

FILE = "rates.json"
MATRIX_FORMS = ("float32", "tf32", "bfloat16", "float16", "int8", "fp8")
DiskRead = Literal["direct", "dropped", "cached"]
_FORMAT = 1
_MAX_BYTES = 1 << 20
_MAX_ENTRIES = 64
_DRIVER_FILES: Mapping[str, tuple[str, ...]] = {
    "cuda": ("/proc/driver/nvidia/version", "/sys/module/nvidia/version", "/sys/module/amdgpu/version"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured on one device."""

    read_bytes_per_s: float
    """Reading memory, far more than the caches hold."""
    copy_bytes_per_s: float
    """Copying within it: bytes read and bytes written, both counted."""
    operations_per_s: Mapping[str, float] = field(default_factory=dict)
    """In products of large square matrices, an addition and a multiplication being two operations, by
    form: one of MATRIX_FORMS; `tf32` in place of `float32` where torch is set to that."""
    to_device_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """Of a GPU, from RAM that is `pinned` and that is `pageable`."""
    disk_bytes_per_s: float | None = None
    """Of the CPU's entry: reading a file of the disk that holds `KAMADO_HOME`, from its begin to its end."""
    disk_read: DiskRead | None = None
    """How that was read: past the page cache (`direct`), after it was emptied of the file (`dropped`), or possibly out
    of it (`cached`), so that the disk may be slower."""
    threads: int = 0
    """torch's, of a CPU."""
    torch: str = ""
    measured_s: float = 0.0
    """When, in seconds since 1970."""
    notes: tuple[str, ...] = ()
    """What could not be measured, as sentences."""

    def matrix_rate(self, dtype: str) -> float | None:
        """Operations a second in a form; for float32 also what torch takes in its place."""
        return self.operations_per_s.get(dtype) or (self.operations_per_s.get("tf32") if dtype == "float32" else None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def kept_rates(facts: DeviceFacts, home: Path | None = None) -> Rates | None:
    """What was measured on this device before, under the same circumstances; None if nothing was.

    How many threads torch would use is known only once it is there. Until then `OMP_NUM_THREADS` is taken for it, and
    without that the newest figures that fit otherwise.
    """
    entries = _read(_path(home))
    if not entries:
        return None
    wanted, threads = _circumstances(facts), _threads(facts)
    found = [
        rates
        for entry in entries
        if entry.get("circumstances") == wanted and (rates := parse_rates(entry.get("rates"))) is not None
    ]
    found = [rates for rates in found if threads is None or rates.threads == threads]
    return max(found, key=lambda rates: rates.measured_s, default=None)


def keep_rates(facts: DeviceFacts, rates: Rates, home: Path | None = None) -> bool:
    """Keep them in place of earlier ones. False where nothing can be written."""
    path = _path(home)
    circumstances = _circumstances(facts)
    others = [
        entry
        for entry in _read(path)
        if entry.get("circumstances") != circumstances or _threads_of(entry) != rates.threads
    ]
    entries = [*others, {"circumstances": circumstances, "rates": rates.as_dict()}][-_MAX_ENTRIES:]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": _FORMAT, "devices": entries})
    except OSError:
        return False
    return True


def measure_rates(
    facts: DeviceFacts, *, home: Path | None = None, progress: Callable[[str], None] | None = None
) -> Rates:
    """Measure now, which takes some seconds and an eighth of the free memory at most, and keep what was found.

    `progress` is told what comes next. Raises DoesNotFit where too little memory is free to say anything."""
    from .measuring import measure

    rates = measure(facts, home=home or default_home(), progress=progress or (lambda _: None))
    keep_rates(facts, rates, home)
    return rates


def rates_of(facts: DeviceFacts, *, home: Path | None = None, progress: Callable[[str], None] | None = None) -> Rates:
    """What is kept, else what is measured now."""
    return kept_rates(facts, home) or measure_rates(facts, home=home, progress=progress)


def parse_rates(value: object) -> Rates | None:
    """What `Rates.as_dict` gave, read back; None for anything else. Unknown names are left out."""
    if not isinstance(value, Mapping):
        return None
    known = {name.name: value[name.name] for name in fields(Rates) if name.name in value}
    numbers = ["read_bytes_per_s", "copy_bytes_per_s", "measured_s"]
    if known.get("disk_bytes_per_s") is not None:
        numbers.append("disk_bytes_per_s")
    if not all(_is_rate(known.get(name)) for name in numbers):
        return None
    for name in ("operations_per_s", "to_device_bytes_per_s"):
        table = known.setdefault(name, {})
        if not isinstance(table, Mapping) or not all(_is_rate(rate) for rate in table.values()):
            return None
        known[name] = dict(table)
    if known.get("disk_read") not in ("direct", "dropped", "cached", None):
        return None
    if type(known.get("threads", 0)) is not int or not isinstance(known.get("torch", ""), str):
        return None
    notes = known.get("notes", ())
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        return None
    return Rates(**known | {"notes": tuple(notes)})


def torch_version() -> str:
    """Of the installed torch, without importing it; "" if there is none. (Packages' metadata takes longer to read.)"""
    try:
        spec = find_spec("torch")
        folders = spec.submodule_search_locations if spec is not None else None
        text = Path(next(iter(folders or ())), "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError, StopIteration):
        return ""
    found = re.search(r"""^__version__ = ['"]([^'"]{1,80})['"]""", text, re.MULTILINE)
    return found.group(1) if found is not None else ""


def driver_version(kind: str) -> str:
    """Of the driver of GPUs of this kind, as far as the system tells."""
    if kind == "mps":
        return platform.mac_ver()[0]
    for name in _DRIVER_FILES.get(kind, ()):
        try:
            text = Path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        words = [word for word in text.split() if word[:1].isdigit() and "." in word]
        if words:
            return words[0][:40]
    return ""


def now_s() -> float:
    """For `Rates.measured_s`."""
    return round(time.time(), 0)


def _path(home: Path | None) -> Path:
    return (home or default_home()) / FILE


def _circumstances(facts: DeviceFacts) -> dict[str, str]:
    """What else than the number of threads decides. The index of a GPU does not: equal ones are equally fast."""
    return {
        "device": f"{facts.kind}: {facts.model}",
        "driver": facts.driver,
        "torch": torch_version(),
    }


def _threads(facts: DeviceFacts) -> int | None:
    """torch's threads if that is known; 0 for a GPU."""
    if facts.kind != "cpu":
        return 0
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isascii() and told.isdecimal() and int(told) else None


def _threads_of(entry: Mapping[str, Any]) -> Any:
    rates = entry.get("rates")
    return rates.get("threads") if isinstance(rates, Mapping) else None


def _read(path: Path) -> list[Mapping[str, Any]]:
    """The entries of the file; none where it is missing, damaged or of another format."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(document, Mapping) or document.get("format") != _FORMAT:
        return []
    entries = document.get("devices")
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []


def _is_rate(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 < value < 1e18
