"""Who holds which block of the KV pool, and which blocks hold a prefix worth keeping. Pure Python: ids, no tensors.

A block is held by any number of requests (its reference count), or free. A full block whose contents are known by a
digest stays findable after its last holder left, until its space is needed: least recently used goes first. The digest
covers the whole prefix up to the block's end, so equal digests mean equal keys and values.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

ROOT_DIGEST = b""
"""What the first block of a sequence has for a parent."""


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a block's contents: 16 bytes from the prefix before it and its own tokens (BLAKE2b).

    Not Python's hash(): a collision would put another prompt's keys under this one, and nobody would see it.
    """
    return blake2b(parent + array("i", token_ids).tobytes(), digest_size=16).digest()


class BlockAllocator:
    """Reference-counted blocks 0..num_blocks-1 with a prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}: give at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._num_holders = [0] * num_blocks
        self._digest_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # Popped from the end, so that low ids go first.
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Blocks that allocate() can hand out: blank ones and cached ones that nobody holds."""
        return len(self._blank) + len(self._cached)

    def allocate(self) -> int:
        """A block with one holder. There must be a free one."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            digest = self._digest_of[block]
            assert digest is not None
            del self._block_of[digest]
            self._digest_of[block] = None
        self._num_holders[block] = 1
        return block

    def find_prefix(self, digests: Sequence[bytes]) -> tuple[list[int], int]:
        """The longest cached prefix: its blocks (not held yet), and how many of them are free at this moment."""
        blocks: list[int] = []
        num_free = 0
        if self.prefix_caching:
            for digest in digests:
                block = self._block_of.get(digest)
                if block is None:
                    break
                blocks.append(block)
                num_free += self._num_holders[block] == 0
        return blocks, num_free

    def hold(self, blocks: Iterable[int]) -> None:
        """Add a holder to blocks that find_prefix named."""
        for block in blocks:
            if self._num_holders[block] == 0:
                del self._cached[block]
            self._num_holders[block] += 1

    def name_block(self, block: int, digest: bytes) -> None:
        """Make a full, computed, held block findable. The first block of a digest stays the one that is found."""
        if self.prefix_caching and self._digest_of[block] is None and digest not in self._block_of:
            self._digest_of[block] = digest
            self._block_of[digest] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder from each block of a sequence.

        Its end goes first, so that the cache loses the ends of prefixes before their beginnings.
        """
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                if self._digest_of[block] is None:
                    self._blank.append(block)
                else:
                    self._cached[block] = None

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless every block is accounted for exactly once. held: each holder's blocks."""
        counts = [0] * self.num_blocks
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a holder has a block twice: {blocks}"
            for block in blocks:
                counts[block] += 1
        assert counts == self._num_holders, "reference counts differ from the holders"
        free = [*self._blank, *self._cached]
        assert len(set(free)) == len(free), "a block is free twice"
        assert set(free) == {b for b, n in enumerate(counts) if n == 0}, "free blocks are not those nobody holds"
        assert all(self._digest_of[b] is None for b in self._blank), "a blank block has a name"
        assert all(self._digest_of[b] is not None for b in self._cached), "a cached block has no name"
        named = {digest: b for b, digest in enumerate(self._digest_of) if digest is not None}
        assert named == self._block_of, "names and blocks disagree"
