"""The Merkle tree of RFC 9162 section 2.1.1 (as in RFC 6962), grown leaf by leaf, over SHA-256.

The hash of a leaf is made with a byte 00 in front, that of two nodes with a byte 01: no node passes for a leaf.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

HASH_BYTES: Final = 32
LEAF: Final = b"\x00"
NODE: Final = b"\x01"


class Tree(NamedTuple):
    """A tree that states its root, and is never changed: a leaf more makes another tree.

    Attributes:
        size: the number of leaves.
        peaks: the roots of its complete subtrees, the largest first: O(log n) in all.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def with_leaf(self, leaf: bytes) -> Tree:
        """The tree that has the hash of one leaf more, 32 bytes."""
        peaks, size, node = list(self.peaks), self.size, leaf
        while size & 1:
            node = hashlib.sha256(NODE + peaks.pop() + node).digest()
            size >>= 1
        return Tree(self.size + 1, (*peaks, node))

    def root(self) -> bytes:
        """The tree's hash, 32 bytes; of an empty tree, SHA-256 of no bytes."""
        if not self.peaks:
            return hashlib.sha256().digest()
        node = self.peaks[-1]
        for left in reversed(self.peaks[:-1]):
            node = hashlib.sha256(NODE + left + node).digest()
        return node
