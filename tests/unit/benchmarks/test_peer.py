"""The process that a peer runs in, with a peer that only does as it is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Program = Callable[[str], ModuleType]

PEER = """
import json, os, sys, time
print(json.dumps({"version": "1", "threads": os.environ.get("OMP_NUM_THREADS")}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "end":
        raise SystemExit(3)
    if request["do"] == "work":
        begin = time.process_time()
        while time.process_time() - begin < request["seconds"]:
            pass
    print(json.dumps({"error": "it cannot"} if request["do"] == "fail" else {"got": request}), flush=True)
"""


def test_a_peer_is_asked_and_answers(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    peers = program("peer_process")
    with peers.Peer([sys.executable, "-c", PEER]) as peer:
        assert peer.hello == {"version": "1", "threads": None}, "settings of this program's threads are not for it"
        assert peer.ask("decode", tokens=3, name="\u00fc") == {"got": {"do": "decode", "tokens": 3, "name": "\u00fc"}}
        with pytest.raises(peers.PeerFailed, match="fail: it cannot"):
            peer.ask("fail")
        assert peer.ask("x")["got"]["do"] == "x", "it goes on"
        with pytest.raises(peers.PeerFailed, match="ended with status 3 when it was to end"):
            peer.ask("end")
        with pytest.raises(peers.PeerFailed):
            peer.ask("x")
    with pytest.raises(peers.PeerFailed, match="cannot be run"):
        peers.Peer([Path("/absent/python")])


def test_a_peer_that_waits_is_seen_to_be_idle(program: Program) -> None:
    peers = program("peer_process")
    with peers.Peer([sys.executable, "-c", PEER]) as peer:
        watch = peers.IdleWatch(peer.pid)
        assert watch.most() == 0.0
        with watch.watching():
            time.sleep(0.2)
        assert watch.most() < 0.2
        with watch.watching():
            peer.ask("work", seconds=0.2)
        assert watch.most() > 0.05, "on a machine where it gets as little as a tenth of a CPU"
        assert len(watch.shares) == 2
