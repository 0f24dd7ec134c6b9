"""Pages of a KV cache: who holds which, and which known prefix lies where. Plain integers, no tensors.

page:   free --take--> held (references > 0) --release--> free
a full page may be published under the hash of everything up to its end; it stays findable while free, until
`take` hands it out again (least recently released first).
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from ..sequence import TokenSequence


class BlockPool:
    """`num_blocks` pages, reference counted. Not thread safe: the loop's thread owns it."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a block pool needs at least one block, not {num_blocks}")
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._name: list[bytes | None] = [None] * num_blocks
        self._named: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """A free page, its old content forgotten. The caller has made sure that there is one."""
        block, _ = self._free.popitem(last=False)
        name = self._name[block]
        if name is not None:
            del self._named[name]
            self._name[block] = None
        self._references[block] = 1
        return block

    def retain(self, block: int) -> None:
        """One more holder."""
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def release(self, block: int) -> None:
        """One holder less; the last one frees it."""
        assert self._references[block] > 0, f"block {block} was released more often than held"
        self._references[block] -= 1
        if self._references[block] == 0:
            self._free[block] = None
            if self._name[block] is None:
                self._free.move_to_end(block, last=False)

    def publish(self, block: int, name: bytes) -> None:
        """Make a held page findable. Where another page has that name already, that one stays the known one."""
        if self._name[block] is None and name not in self._named:
            self._name[block] = name
            self._named[name] = block

    def find(self, name: bytes) -> int | None:
        """The page published under that name. Modifies nothing."""
        return self._named.get(name)

    def num_holders(self, block: int) -> int:
        """How many hold it."""
        return self._references[block]

    def forget(self, block: int) -> None:
        """Make a page unfindable: its content is about to change."""
        name = self._name[block]
        if name is not None:
            del self._named[name]
            self._name[block] = None

    def check_integrity(self) -> None:
        """Assert that free and held pages together are all pages, and that names are consistent."""
        free = set(self._free)
        held = {b for b, count in enumerate(self._references) if count > 0}
        assert free.isdisjoint(held) and len(free) + len(held) == self.num_blocks
        assert all(count >= 0 for count in self._references)
        assert all(self._name[block] == name for name, block in self._named.items())
        assert sum(name is not None for name in self._name) == len(self._named)


_NOT_HELD = -1


@dataclass(slots=True)
class BlockTable:
    """Pages of one sequence, in order, and the hashes of its full pages as far as they are known."""

    blocks: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    num_past: int = 0
    """Leading pages that no token to come looks back to: not held any more, `_NOT_HELD` in `blocks`."""
    num_ahead: int = 0
    """Pages are kept for so many tokens, also while there are fewer."""

    @property
    def held(self) -> list[int]:
        return self.blocks[self.num_past :]


class PagedMemory:
    """`SequenceMemory` over a block pool, with a prefix cache keyed by content.

    The name of a page is SHA-256 over the salt (weights and adapter), the name of the page before it, its own tokens
    and what these stand for (`TokenSequence.contents`), so equal names mean equal state.
    """

    chunked = True

    restart_tokens = None

    def __init__(
        self,
        pool: BlockPool,
        block_tokens: int,
        *,
        salt: bytes,
        share_prefixes: bool = True,
        window_tokens: int | None = None,
    ) -> None:
        """`window_tokens`: the furthest that any layer looks back, the token itself included; None: to the beginning.
        Pages that lie before that for every token to come are given back."""
        self.window_tokens = window_tokens
        self.pool = pool
        self.block_tokens = block_tokens
        self.share_prefixes = share_prefixes
        self._salt = sha256(salt).digest()

    def key(self, sequence: TokenSequence, num_new: int) -> Hashable:
        """All packed tokens may go into one forward."""
        return "tokens"

    def attach(self, sequence: TokenSequence) -> int:
        """See SequenceMemory. At least one token is always left to compute, for its logits."""
        table = sequence.state = BlockTable()
        if not self.share_prefixes:
            return 0
        known, last_unknown = 0, -1
        for page in range((len(sequence.tokens) - 1) // self.block_tokens):
            table.names.append(self._page_name(table, sequence, page))
            block = self.pool.find(table.names[page])
            if block is None:
                last_unknown = page
                if self.window_tokens is None:
                    break
            table.blocks.append(_NOT_HELD if block is None else block)
            if self._num_past((page + 1) * self.block_tokens) > last_unknown:
                known = page + 1
        del table.blocks[known:], table.names[known:]
        table.num_past = self._num_past(known * self.block_tokens)
        table.blocks[: table.num_past] = [_NOT_HELD] * table.num_past
        for block in table.held:
            self.pool.retain(block)
        return known * self.block_tokens

    def acquire(self, sequence: TokenSequence, num_tokens: int) -> bool:
        """See SequenceMemory."""
        table: BlockTable = sequence.state
        missing = -(-num_tokens // self.block_tokens) - len(table.blocks)
        if missing > self.pool.num_free:
            return False
        table.blocks.extend(self.pool.take() for _ in range(missing))
        return True

    def acquire_ahead(self, sequence: TokenSequence, *, spare_pages: int) -> int | None:
        """While the sequence's last token is computed: make room for the next one, of which nobody knows yet what it
        will be, if more than `spare_pages` are free for that. Returns the leading pages that it will not hold any more
        when that one is computed; None: no room, and nothing was changed."""
        table: BlockTable = sequence.state
        num_tokens = len(sequence.tokens) + 1
        if num_tokens > len(table.blocks) * self.block_tokens:
            if self.pool.num_free <= spare_pages or not self.acquire(sequence, num_tokens):
                return None
            table.num_ahead = num_tokens
        return max(table.num_past, self._num_past(len(sequence.tokens)))

    def victims_needed(self, sequence: TokenSequence, num_tokens: int, others: Sequence[TokenSequence]) -> int | None:
        """See SequenceMemory. A page that several hold is free once the last of them has gone."""
        table: BlockTable = sequence.state
        missing = -(-num_tokens // self.block_tokens) - len(table.blocks) - self.pool.num_free
        holders: Counter[int] = Counter()
        for count, other in enumerate(others):
            if missing <= 0:
                return count
            for block in other.state.held if other.state is not None else ():
                holders[block] += 1
                missing -= holders[block] == self.pool.num_holders(block)
        return len(others) if missing <= 0 else None

    def committed(self, sequence: TokenSequence) -> None:
        """See SequenceMemory: publishes the pages that became full, and gives back those that nothing looks back to."""
        table: BlockTable = sequence.state
        num_tokens = max(len(sequence.tokens), table.num_ahead)
        for _ in range(len(table.blocks) - -(-num_tokens // self.block_tokens)):
            self.pool.release(table.blocks.pop())
        full = sequence.num_computed // self.block_tokens if self.share_prefixes else 0
        for page in range(len(table.names), full):
            name = self._page_name(table, sequence, page)
            table.names.append(name)
            self.pool.publish(table.blocks[page], name)
        for page in range(table.num_past, self._num_past(sequence.num_computed)):
            self.pool.release(table.blocks[page])
            table.blocks[page] = _NOT_HELD
            table.num_past = page + 1

    def release(self, sequence: TokenSequence) -> None:
        """See SequenceMemory. The last pages are freed first, so that they are also forgotten first."""
        table: BlockTable | None = sequence.state
        sequence.state = None
        if table is not None:
            # `take` hands out the least recently released page: the tail of a prefix must go before its head.
            for block in reversed(table.held):
                self.pool.release(block)

    def spoil(self, sequence: TokenSequence) -> list[int]:
        """The sequence's state is not fit for use: pages that it alone holds, which nobody will find any more."""
        table: BlockTable = sequence.state
        own = [block for block in table.held if self.pool.num_holders(block) == 1]
        for block in own:
            self.pool.forget(block)
        return own

    def fits(self, num_tokens: int, num_source: int) -> bool:
        """See SequenceMemory."""
        return num_tokens <= self.capacity_tokens()

    def capacity_tokens(self) -> int:
        """See SequenceMemory."""
        return self.pool.num_blocks * self.block_tokens

    def check_integrity(self) -> None:
        """See BlockPool."""
        self.pool.check_integrity()

    def usage(self) -> dict[str, int]:
        """Figures for `Runtime.stats`."""
        return {
            "kv_tokens_total": self.capacity_tokens(),
            "kv_tokens_free": self.pool.num_free * self.block_tokens,
        }

    def _num_past(self, num_computed: int) -> int:
        """Leading pages that no token from position `num_computed` on looks back to."""
        if self.window_tokens is None:
            return 0
        return max(num_computed + 1 - self.window_tokens, 0) // self.block_tokens

    def _page_name(self, table: BlockTable, sequence: TokenSequence, page: int) -> bytes:
        start = page * self.block_tokens
        end = start + self.block_tokens
        name = sha256(table.names[page - 1] if page else self._salt)
        name.update(array("q", sequence.tokens[start:end]).tobytes())
        for first, last, content in sequence.contents:
            if first < end and start < last:
                name.update(array("q", (first - start, last - start)).tobytes() + content)
        return name.digest()
