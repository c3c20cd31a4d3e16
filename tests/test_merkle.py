"""The Merkle tree is that of RFC 9162 section 2.1.1."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tokenvault.audit.event import leaf_hash
from tokenvault.audit.merkle import Tree, subtrees
from tokenvault.audit.purge_note import Run


def leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def tree_hash(entries: list[bytes]) -> bytes:
    """MTH(D[n]), word by word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return leaf(entries[0])
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


@given(st.lists(st.binary(max_size=4), max_size=70))
def test_the_root_after_each_leaf_is_that_of_the_definition(entries: list[bytes]) -> None:
    tree = Tree()
    assert tree.root() == tree_hash([])
    for size, entry in enumerate(entries, 1):
        tree = tree.with_leaf(leaf(entry))
        assert tree.size == size
        assert tree.root() == tree_hash(entries[:size])


@given(st.integers(0, 70), st.integers(1, 70), st.integers(0, 9))
def test_a_tree_goes_on_from_the_roots_of_subtrees_as_from_their_leaves(
    before: int, gone: int, after: int
) -> None:
    leaves = [leaf(bytes((n,))) for n in range(before + gone + after)]
    taken = leaves[before : before + gone]
    expected = tree = Tree()
    for each in leaves:
        expected = expected.with_leaf(each)
    for each in leaves[:before]:
        tree = tree.with_leaf(each)
    roots = subtrees(before + 1, taken)
    tree = Run(before + 1, before + gone, roots).after(tree)
    for each in leaves[before + gone :]:
        tree = tree.with_leaf(each)
    assert tree == expected
    assert len(roots) <= min(gone, 2 * gone.bit_length())


def test_the_roots_are_those_of_published_vectors() -> None:
    """The leaves and roots by which implementations of Certificate Transparency test themselves."""
    entries = [bytes.fromhex(text) for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
    )]  # fmt: skip
    roots = {
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    tree = Tree()
    for size, entry in enumerate(entries, 1):
        tree = tree.with_leaf(leaf(entry))
        assert size not in roots or tree.root().hex() == roots[size]


def test_the_leaf_of_an_event_is_one_byte_00_and_all_that_a_store_keeps_of_it() -> None:
    stream = bytes(range(16))
    kept = stream + (7).to_bytes(8) + b"\x03abc" + b"body"
    assert leaf_hash(stream, 7, b"abc", b"body") == leaf(kept)
