"""The Merkle tree of RFC 9162 section 2.1.1 (as in RFC 6962), grown leaf by leaf, over SHA-256.

The hash of a leaf is made with a byte 00 in front, that of two nodes with a byte 01: no node passes for a leaf.
"""

from __future__ import annotations

import hashlib
from typing import Final

HASH_BYTES: Final = 32
LEAF: Final = b"\x00"
NODE: Final = b"\x01"


class Tree:
    """A tree that grows and states its root: it keeps one node a level, O(log n) in all.

    Attributes:
        size: the number of leaves.
    """

    __slots__ = ("_nodes", "size")

    def __init__(self) -> None:
        self.size = 0
        self._nodes: list[bytes] = []  # roots of complete subtrees, the largest first

    def append(self, leaf: bytes) -> None:
        """Add the hash of a leaf, 32 bytes."""
        nodes, size, node = self._nodes, self.size, leaf
        self.size = size + 1
        while size & 1:
            node = hashlib.sha256(NODE + nodes.pop() + node).digest()
            size >>= 1
        nodes.append(node)

    def root(self) -> bytes:
        """The tree's hash, 32 bytes; of an empty tree, SHA-256 of no bytes."""
        if not self._nodes:
            return hashlib.sha256().digest()
        node = self._nodes[-1]
        for left in reversed(self._nodes[:-1]):
            node = hashlib.sha256(NODE + left + node).digest()
        return node
