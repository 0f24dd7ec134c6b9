"""Every byte that Kamado holds on a device, by owner and kind."""

from __future__ import annotations

import threading
from collections import defaultdict

from ..errors import DoesNotFit
from ..units import format_bytes

RAM = "ram"
"""Where weights are that are not on their GPU."""


class Ledger:
    """Entries (device, owner, kind) -> bytes, under one budget a device. Thread safe."""

    def __init__(self, budgets: dict[str, int]) -> None:
        self._budgets = {RAM: 0, **budgets}
        self._entries: dict[tuple[str, str, str], int] = defaultdict(int)
        self._lock = threading.Lock()

    def budget(self, device: str) -> int:
        """Bytes that may be held on the device in all."""
        return self._budgets[device]

    def held(self, device: str | None = None, owner: str | None = None, kind: str | None = None) -> int:
        """Bytes held, of one device, owner and kind or of all."""
        with self._lock:
            return sum(
                size
                for (entry_device, entry_owner, entry_kind), size in self._entries.items()
                if device in (None, entry_device) and owner in (None, entry_owner) and kind in (None, entry_kind)
            )

    def free(self, device: str) -> int:
        """Bytes of the budget that nobody holds."""
        return self.budget(device) - self.held(device)

    def enter(self, device: str, owner: str, kind: str, size: int) -> None:
        """Record `size` more bytes. Raises DoesNotFit beyond the budget, and then records nothing."""
        with self._lock:
            held = sum(bytes_ for (entry_device, _, _), bytes_ in self._entries.items() if entry_device == device)
            left = self._budgets[device] - held
            if size > left:
                raise DoesNotFit(
                    f"{owner}: {kind} need {format_bytes(size)} on {device}, "
                    f"but only {format_bytes(left)} of the budget are free",
                    needed_bytes=size,
                    available_bytes=left,
                    place=device,
                )
            self._entries[device, owner, kind] += size

    def leave(self, device: str, owner: str, kind: str, size: int) -> None:
        """Record `size` bytes fewer."""
        with self._lock:
            left = self._entries[device, owner, kind] - size
            assert left >= 0, f"{owner}: more {kind} bytes left {device} than were entered"
            if left:
                self._entries[device, owner, kind] = left
            else:
                del self._entries[device, owner, kind]

    def drop(self, owner: str, device: str | None = None) -> None:
        """Remove everything that the owner holds, on one device or on all."""
        with self._lock:
            for entry in [entry for entry in self._entries if entry[1] == owner and device in (None, entry[0])]:
                del self._entries[entry]

    def snapshot(self) -> dict[str, dict[str, dict[str, int]]]:
        """{device: {owner: {kind: bytes}}}"""
        tree: dict[str, dict[str, dict[str, int]]] = {}
        with self._lock:
            for (device, owner, kind), size in sorted(self._entries.items()):
                tree.setdefault(device, {}).setdefault(owner, {})[kind] = size
        return tree
