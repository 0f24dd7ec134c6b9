"""Tensors side by side in blocks that go when the last tensor in them is gone."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kamado.weights import large_pages
from kamado.weights.large_pages import LargePages, empty_bytes

DTYPES = (torch.int8, torch.uint8, torch.float16, torch.float32)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 70), st.integers(1, 9)), max_size=12))
def test_copies(shapes: list[tuple[torch.dtype, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_pages, "BLOCK_BYTES", 512)  # some tensors are larger
        pages = LargePages()
        given = [(torch.arange(rows * columns) % 100).view(rows, columns).to(dtype) for dtype, rows, columns in shapes]
        copies = [pages.copy(tensor) for tensor in given]
    for tensor, copy in zip(given, copies, strict=True):
        assert copy.dtype == tensor.dtype and torch.equal(copy, tensor) and copy.is_contiguous()
        if tensor.numel():
            assert copy.data_ptr() % 64 == 0 and copy.data_ptr() != tensor.data_ptr()
            assert copy.untyped_storage().nbytes() == tensor.nbytes  # what counts held bytes sees no neighbours


def test_a_turned_tensor_is_copied_in_its_own_order() -> None:
    turned = torch.arange(12.0).view(3, 4).t()
    copy = LargePages().copy(turned)
    assert copy.is_contiguous() and torch.equal(copy, turned)


def test_a_block_goes_with_its_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []

    def watched(size: int) -> object:
        made = empty_bytes(size)
        blocks.append(weakref.ref(made.base))
        return made

    monkeypatch.setattr(large_pages, "empty_bytes", watched)
    pages = LargePages()
    one, other = pages.copy(torch.ones(5)), pages.copy(torch.ones(5))
    del pages, one
    gc.collect()
    assert blocks[-1]() is not None and torch.equal(other, torch.ones(5))
    del other
    gc.collect()
    assert blocks[-1]() is None


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
def test_linux_is_asked_for_large_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this system gives none")
    block = empty_bytes(16 << 20)
    block[:] = 1
    regions = Path("/proc/self/smaps").read_text().split("VmFlags:")
    address = block.ctypes.data + len(block) // 2
    for region, flags in zip(regions, (each.splitlines()[0] for each in regions[1:]), strict=False):
        ranges = [line.split()[0] for line in region.splitlines() if "-" in line.split(" ")[0]]
        if ranges and int(ranges[0].split("-")[0], 16) <= address < int(ranges[0].split("-")[1], 16):
            assert "hg" in flags.split()
            return
    pytest.fail("the block is not among this process's regions")
