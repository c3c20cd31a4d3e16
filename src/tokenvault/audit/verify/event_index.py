"""Verifies the index of events against the events: it leads to each of them by every name that the event states.

What the events state and what the index has is compared by sums, so that memory does not grow with the rows: of each
BLOCK numbers of a stream, the sum of a keyed hash of each row: some 4 bytes for each event. Where the two differ, the
block's events are compared one by one; some may have been written since, which is no finding.

Rows that lead to no event, or to one that is not genuine, are left to the other checks: the vault passes them over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from tokenvault.audit.batch_event import parse
from tokenvault.audit.verify.pages import stream_pages
from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError
from tokenvault.stores.index_rows import IndexPlace
from tokenvault.stores.new_records import IndexColumns
from tokenvault.stores.port import SealedEvent, TokenStore

BLOCK: Final = 64
"""Numbers of a stream whose rows of the index have one sum."""

BLOCKS_AT_ONCE: Final = 2_000
"""Blocks whose events are compared one by one after one reading of the index."""

INDEX_PAGE: Final = 10_000
_HASH_BYTES: Final = 16

Place: TypeAlias = tuple[bytes, int]
"""A stream, and a number in it or of one of its blocks."""


class IndexAudit:
    """The index, against the events that were read: first `add` for each of these, then `check`."""

    def __init__(self) -> None:
        self._key = os.urandom(_HASH_BYTES)  # nobody can choose rows that add up to those of others
        self._blocks: dict[Place, int] = {}  # what the events state, less what the index has

    def add(self, row: SealedEvent) -> None:
        """Note the rows of the index that a genuine event states."""
        block = row.stream, row.number // BLOCK
        self._blocks[block] = self._blocks.get(block, 0) + self._stated(row)

    def check(
        self, store: TokenStore, trusted: TrustedKeys, last: Mapping[bytes, int], findings: Findings
    ) -> None:
        """Read the index and note the events that it does not lead to as they state.

        Args:
            store: the database.
            trusted: tells which events are genuine.
            last: by stream, the number of the last event that was read: what came later is not looked at.
            findings: where it is noted.
        """
        try:
            self._subtract(store, last)
            suspects = sorted(block for block, rest in self._blocks.items() if rest)
            for start in range(0, len(suspects), BLOCKS_AT_ONCE):
                self._compare(store, trusted, last, findings, suspects[start : start + BLOCKS_AT_ONCE])
        except IntegrityError:
            findings.add(
                FindingKind.EDITED,
                "a row of the index has another shape than was written: it was not verified",
            )

    def _subtract(self, store: TokenStore, last: Mapping[bytes, int]) -> None:
        for place in _places(store):
            block = place.stream, place.number // BLOCK
            if block in self._blocks and place.number <= last[place.stream]:
                self._blocks[block] -= self._hash(place)

    def _compare(
        self,
        store: TokenStore,
        trusted: TrustedKeys,
        last: Mapping[bytes, int],
        findings: Findings,
        blocks: Sequence[Place],
    ) -> None:
        before = self._stated_now(store, trusted, blocks)
        wanted, found = set(blocks), dict[Place, int]()
        for place in _places(store):
            if (place.stream, place.number // BLOCK) in wanted:
                event = place.stream, place.number
                found[event] = found.get(event, 0) + self._hash(place)
        # An event that was missing before may have been written before the index was read, or since.
        after = self._stated_now(store, trusted, blocks)
        for (stream, number), stated in after.items():
            if number <= last[stream] and found.get((stream, number), 0) not in (
                stated,
                before.get((stream, number), 0),
            ):
                findings.add(
                    FindingKind.EDITED,
                    "the index does not lead to this event as was written: a row is missing, or was added",
                    stream,
                    number,
                )

    def _stated_now(
        self, store: TokenStore, trusted: TrustedKeys, blocks: Sequence[Place]
    ) -> dict[Place, int]:
        """The sums of the genuine events of some blocks."""
        sums = {}
        for stream, block in blocks:
            for page in stream_pages(store, stream, after=max(block * BLOCK - 1, 0), size=BLOCK):
                rows = [] if isinstance(page, int) else [row for row in page if row.number // BLOCK == block]
                sums.update(
                    {
                        (stream, row.number): self._stated(row)
                        for row, _, genuine in trusted.check(rows)
                        if genuine is not False
                    }
                )
                if (page if isinstance(page, int) else page[-1].number) // BLOCK > block:
                    break
        return sums

    def _stated(self, row: SealedEvent) -> int:
        """The sum of the rows of the index that an event states; of one that can not be read, of none."""
        try:
            rows = parse(row).index_rows()
        except IntegrityError:
            return 0
        names = rows.names() if isinstance(rows, IndexColumns) else rows
        return sum(self._hash(IndexPlace(*name, row.stream, row.number)) for name in names)

    def _hash(self, place: IndexPlace) -> int:
        reference, use_id, stream, number = place
        text = reference + use_id + stream + number.to_bytes(8)
        return int.from_bytes(hashlib.blake2b(text, digest_size=_HASH_BYTES, key=self._key).digest())


def _places(store: TokenStore) -> Iterator[IndexPlace]:
    """The rows of the index, in its order. Raises IntegrityError for rows that were not written so."""
    after: IndexPlace | None = None
    while page := store.index_rows(after=after, limit=INDEX_PAGE):
        yield from page
        after = page[-1]  # it only grows: the guard of stores sees to it
