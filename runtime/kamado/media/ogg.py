"""Ogg files without chance: the same sound makes the same file (RFC 3533)."""

from __future__ import annotations

import struct
import zlib

SERIAL = 0x4B414D41
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def with_fixed_serial(data: bytes) -> bytes:
    """An Ogg file of one stream whose serial number, which encoders draw by chance, is SERIAL. A file that is not made
    of whole pages stays as it is."""
    out, position = bytearray(data), 0
    while position < len(out):
        if out[position : position + 4] != b"OggS" or position + 27 > len(out):
            return data
        header = 27 + out[position + 26]
        end = position + header + sum(out[position + 27 : position + header])
        if end > len(out):
            return data
        struct.pack_into("<II", out, position + 14, SERIAL, struct.unpack_from("<I", out, position + 18)[0])
        struct.pack_into("<I", out, position + 22, 0)
        struct.pack_into("<I", out, position + 22, _checksum(out[position:end]))
        position = end
    return bytes(out)


def _checksum(page: bytes | bytearray) -> int:
    """Ogg's CRC: that of zlib with the bits of each byte, and of the sum, in the other order, and nothing inverted."""
    inverted = zlib.crc32(bytes(page).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(inverted.to_bytes(4, "big").translate(_REVERSED), "little")
