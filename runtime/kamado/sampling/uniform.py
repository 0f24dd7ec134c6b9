"""Random numbers without state: what is drawn depends on seed, answer and position alone. No torch."""

from __future__ import annotations

import hashlib
import struct

_MASK = 2**64 - 1


def uniform(seed: int, index: int, position: int) -> float:
    """The number in [0, 1) for token `position` (0 is the first one made) of answer `index`, 53 bits of it random.

    The same three integers give the same number on every machine, in every batch and after any pre-emption, because
    it is a hash (BLAKE2b) of them rather than the next value of a generator.
    """
    message = struct.pack("<QQQ", seed & _MASK, index & _MASK, position & _MASK)
    digest = hashlib.blake2b(message, digest_size=8, person=b"kamado.draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
