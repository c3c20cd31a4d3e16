"""The Merkle tree of RFC 9162 section 2.1.1 (as in RFC 6962), grown leaf by leaf, over SHA-256.

The hash of a leaf is made with a byte 00 in front, that of two nodes with a byte 01: no node passes for a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
        return self.with_subtree(leaf, 0)

    def with_subtree(self, node: bytes, level: int) -> Tree:
        """The tree that has 2**level leaves more, given their root; its size is a multiple of so many."""
        peaks, size = list(self.peaks), self.size >> level
        while size & 1:
            node = hashlib.sha256(NODE + peaks.pop() + node).digest()
            size >>= 1
        return Tree(self.size + (1 << level), (*peaks, node))

    def root(self) -> bytes:
        """The tree's hash, 32 bytes; of an empty tree, SHA-256 of no bytes."""
        if not self.peaks:
            return hashlib.sha256().digest()
        node = self.peaks[-1]
        for left in reversed(self.peaks[:-1]):
            node = hashlib.sha256(NODE + left + node).digest()
        return node


def levels(first: int, last: int) -> Iterator[int]:
    """Of the complete subtrees that the leaves from first to last make up, counted from 1: O(log n) in all."""
    size = first - 1
    while size < last:
        level = (last - size).bit_length() - 1
        if size:
            level = min(level, (size & -size).bit_length() - 1)
        yield level
        size += 1 << level


def subtrees(first: int, leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """The roots of the subtrees that leaves make up, the first of which has this number: see `levels`."""
    roots, at = [], 0
    for level in levels(first, first + len(leaves) - 1):
        tree = Tree()
        for leaf in leaves[at : at + (1 << level)]:
            tree = tree.with_leaf(leaf)
        roots.append(tree.root())
        at += 1 << level
    return tuple(roots)
