"""One file over HTTP, by its address and SHA-256. What arrived before a kill or a broken line is kept and continued.

Nothing here shows the address: it may hold secrets.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from ..errors import HubUnreachable, UnsupportedCheckpoint
from .digest import hash_file
from .store import require_space

TIMEOUT_S = 15.0
"""Without a byte."""
MAX_ATTEMPTS = 4
"""In a row without a new byte."""
MAX_BYTES = 64 << 30
_PAUSE_S = 0.5
_CHUNK_BYTES = 1 << 20
_COMPLETE = re.compile(r"bytes\s+(?:(?P<start>\d+)-\d+|\*)/(?P<total>\d+|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How to reach a server, where it is not to be as the environment says."""

    certificates: str | None = None
    """File or folder of the certificates to trust; None: the system's, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    proxy: str | None = None


class NotServed(Exception):
    """The server gives not a byte of it to this client: its credentials, certificates or proxy may be special."""


class _Broken(Exception):
    """The transfer did not begin, or ended early; another attempt may go on."""


def fetch(
    url: str, part: Path, *, name: str, sha256: str, route: Route, report: Callable[[int, int], None] | None = None
) -> None:
    """Bring `part` to the whole file that has this SHA-256, going on from what is in it. `name` stands for the file in
    errors; `report` gets (bytes there, bytes in all, or 0 while that is not known).

    Raises NotServed; HubUnreachable if the transfer breaks off (`part` is kept), UnsupportedCheckpoint if the file has
    another hash (`part` is removed), OSError for the disk.
    """
    for _ in range(2):
        _transfer(url, part, name, route, report)
        if hash_file(part) == sha256:
            return
        part.unlink()
    raise UnsupportedCheckpoint(
        f"{name} arrived twice with another SHA-256 than the index says; nothing was kept, try later"
    )


def _transfer(url: str, part: Path, name: str, route: Route, report: Callable[[int, int], None] | None) -> None:
    opener = _opener(route)
    attempts, begun = 0, False
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _request(opener, url, part, before, name, report)
            return
        except _Broken as error:
            why = str(error)
        grew = part.exists() and part.stat().st_size > before
        begun = begun or grew
        attempts = 0 if grew else attempts + 1
        if attempts >= MAX_ATTEMPTS:
            if not begun:
                raise NotServed(why)
            raise HubUnreachable(f"the transfer of {name} broke off ({why}); pull again to go on")
        time.sleep(_PAUSE_S * 2**attempts if attempts else 0)


def _opener(route: Route) -> urllib.request.OpenerDirector:
    """HTTP and HTTPS, redirects between them, and nothing else: no files, no FTP."""
    trusted = route.certificates
    is_folder = trusted is not None and Path(trusted).is_dir()
    try:
        context = ssl.create_default_context(
            cafile=None if is_folder else trusted, capath=trusted if is_folder else None
        )
    except OSError as error:
        raise NotServed("the certificates of pip's configuration cannot be read") from error
    opener = urllib.request.OpenerDirector()
    proxies = {"http": route.proxy, "https": route.proxy} if route.proxy else None
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _request(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    start: int,
    name: str,
    report: Callable[[int, int], None] | None,
) -> None:
    """One answer, from byte `start` on if the server can do that. Raises _Broken unless the file is whole then."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "kamado"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            _judge(error.code, error.headers, part, start)
            return
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise NotServed("its certificate is not trusted") from error
        raise _Broken(type(error).__name__) from error
    with answer:
        total = _total(answer.status, answer.headers, start)
        have = start if answer.status == http.client.PARTIAL_CONTENT else 0
        require_space(part.parent, (total or 0) - have)
        with part.open("ab" if have else "wb") as out:
            while chunk := _read(answer):
                have += len(chunk)
                if have > min(total or MAX_BYTES, MAX_BYTES):
                    raise UnsupportedCheckpoint(f"{name} is longer than the server said, or than {MAX_BYTES} bytes")
                out.write(chunk)
                if report is not None:
                    report(have, total or 0)
    if total is not None and have < total:
        raise _Broken("it ended early")


def _judge(status: int, headers: Message, part: Path, start: int) -> None:
    """What a refusal means. Returns if it says that the file is whole already."""
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        said = _COMPLETE.fullmatch(headers.get("Content-Range") or "")
        if said is not None and said["total"] == str(start):
            return
        part.unlink(missing_ok=True)
        raise _Broken(f"status {status}")
    if status in (408, 429) or status >= 500:
        raise _Broken(f"status {status}")
    raise NotServed(f"status {status}")


def _total(status: int, headers: Message, start: int) -> int | None:
    """Bytes of the whole file, if the answer says so."""
    if status == http.client.PARTIAL_CONTENT:
        said = _COMPLETE.fullmatch(headers.get("Content-Range") or "")
        if said is None or said["start"] != str(start):
            raise NotServed("it answered for other bytes than those asked for")
        return int(said["total"]) if said["total"] != "*" else None
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdecimal() else None


def _read(answer: Any) -> bytes:
    try:
        chunk: bytes = answer.read1(_CHUNK_BYTES)  # what is there, so that a break loses nothing
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(type(error).__name__) from error
    return chunk
