"""Verifying records against events: each revision of a record came with one event, and no record falls back.

Memory: about 150 bytes for each token, and 60 for each change whose event is read before that of the change before
it, as happens to tokens that several processes use at once.
"""

from __future__ import annotations

import itertools
from typing import Final

from tokenvault.audit.batch_event import BATCH, changes_of
from tokenvault.audit.event import leaf_of
from tokenvault.audit.verify.pages import about_pages
from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.trusted_keys import Proof
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore

RECORD_PAGE: Final = 2_000
TWICE_MAX: Final = 10_000
_SEEN: Final = -1


class Revisions:
    """Which revisions of each record events tell of."""

    def __init__(self) -> None:
        self._runs: dict[bytes, int] = {}  # 1 to n are told of
        self._above: dict[bytes, set[int]] = {}
        self.twice: list[tuple[bytes, int]] = []
        self.twice_count = 0
        self._explained: set[tuple[bytes, int]] = set()

    def add(self, reference: bytes, revision: int) -> None:
        """An event tells of a revision."""
        run = self._runs.get(reference, 0)
        above = self._above.get(reference)
        if revision == run + 1:
            run = revision
            if above is not None:
                while run + 1 in above:
                    run += 1
                    above.remove(run)
                if not above:
                    del self._above[reference]
            self._runs[reference] = run
        elif revision <= run or (above is not None and revision in above):
            self.twice_count += 1
            if len(self.twice) < TWICE_MAX:
                self.twice.append((reference, revision))
        else:
            self._runs.setdefault(reference, 0)
            self._above.setdefault(reference, set()).add(revision)

    def explain(self, row: SealedEvent) -> None:
        """An event that is not genuine claims a revision: that this one is missing need not be said as well."""
        for change in changes_of(row):
            if len(self._explained) < TWICE_MAX:
                self._explained.add(change)

    def check(self, store: TokenStore, proof: Proof, findings: Findings) -> int:
        """Read all records and note what is wrong. Returns how many there are."""
        for reference, revision in self.twice:
            findings.add(
                FindingKind.REVISION_FELL,
                "two events tell of this revision: the record was put back to an older one and changed again",
                reference=reference,
                revision=revision,
            )
        findings.omitted += self.twice_count - len(self.twice)
        count, after = 0, ""
        while True:
            page = _record_page(store, after, findings)
            if page is None:
                return count  # of the records behind nothing can be said
            for record in page:
                self._check(record, store, proof, findings)
            count += len(page)
            if not page:
                break
            after = page[-1].token
        for reference, run in self._runs.items():
            if run != _SEEN:
                findings.add(
                    FindingKind.RECORD_REMOVED,
                    "events tell of this token, and its record is not there",
                    reference=reference,
                )
        return count

    def _check(self, record: SealedRecord, store: TokenStore, proof: Proof, findings: Findings) -> None:
        reference, revision = record.reference, record.revision
        run = self._runs.get(reference)
        if run == _SEEN:
            findings.add(
                FindingKind.INSERTED,
                "two records have this reference",
                reference=reference,
                revision=revision,
            )
            return
        above = self._above.get(reference, set())
        self._runs[reference] = _SEEN
        newest = max(run or 0, max(above, default=0))
        if newest > revision:
            findings.add(
                FindingKind.REVISION_FELL,
                f"the record has revision {revision}, and an event tells of {newest}: an older row was put back",
                reference=reference,
                revision=revision,
            )
        if run == revision:
            return
        # Some may have been written since the streams were read.
        told = {*range(1, (run or 0) + 1), *above} | _changes(store, proof, reference)
        if not told:
            findings.add(
                FindingKind.REMOVED,
                "no event tells of this record: they were removed, or the record was planted",
                reference=reference,
                revision=revision,
            )
            return
        first, last = 0, min(revision, len(told) + TWICE_MAX)
        for number in range(1, last + 2):  # one more, which ends the last run
            missing = number <= last and number not in told and (reference, number) not in self._explained
            if missing:
                first = first or number
            elif first:
                findings.add(
                    FindingKind.REMOVED,
                    f"no event tells of the change to revision {first}"
                    + (f" up to {number - 1}" if number - 1 > first else ""),
                    reference=reference,
                    revision=first,
                )
                first = 0


def _changes(store: TokenStore, proof: Proof, reference: bytes) -> set[int]:
    found = set()
    for page in itertools.chain(about_pages(store, reference), about_pages(store, BATCH)):
        genuine = proof.genuine(page, [leaf_of(row) for row in page])
        for row, right in zip(page, genuine, strict=True):
            if right is not False:
                found |= {revision for about, revision in changes_of(row) if about == reference}
    return found


def _record_page(store: TokenStore, after: str, findings: Findings) -> list[SealedRecord] | None:
    size = RECORD_PAGE
    while size:
        try:
            return store.scan(after=after, limit=size)
        except IntegrityError:
            size //= 2
    findings.add(
        FindingKind.EDITED,
        "a record has another shape than was written: it and the records behind it were not looked at",
    )
    return None
