"""Verifies records against events: each revision of a record stands in exactly one event, and no record falls back.

Memory: about 150 bytes for each token, and 60 for each change whose event is read before that of the change before
it, as happens to tokens that several processes use at once; some 500 for each record that is not the one which the
events told of, and was issued by no event of its own.

What such a record costs to look into again depends on its own events: those of batches that issued tokens are read
once, for all records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from tokenvault.audit.batch_event import BATCH, changes_of
from tokenvault.audit.verify.pages import pages_about
from tokenvault.audit.verify.purged import Purges
from tokenvault.audit.verify.report import FindingKind, Findings
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.errors import IntegrityError
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore

RECORD_PAGE: Final = 2_000

REPEATED_MAX: Final = 10_000
"""Revisions remembered that two events state, and that only events with an invalid MAC state."""

_SEEN: Final = -1
"""Replaces the run of a record once that record was read."""


class _Unexplained(NamedTuple):
    """A record that events tell of otherwise, or not at all: its revision, and those that events state."""

    revision: int
    stated: set[int]


class Revisions:
    """The revisions of each record that stand in events.

    Those from 1 on without a gap are kept as a run, by the number of the last one.
    """

    def __init__(self) -> None:
        self._runs: dict[bytes, int] = {}
        self._above: dict[bytes, set[int]] = {}  # revisions above the run
        self._repeated: list[tuple[bytes, int]] = []
        self._repeated_count = 0
        self._explained: set[tuple[bytes, int]] = set()
        self._unexplained: dict[bytes, _Unexplained] = {}
        self._purged: dict[bytes, int] = {}  # by reference, the revision of a record that a purge deleted

    def add(self, reference: bytes, revision: int, *, again: bool = False) -> None:
        """Note that a revision stands in an event; `again` where it may have been noted of the same event."""
        run = self._runs.setdefault(reference, 0)
        above = self._above.get(reference, set())
        if revision <= run or revision in above:
            if again:
                return
            self._repeated_count += 1
            if len(self._repeated) < REPEATED_MAX:
                self._repeated.append((reference, revision))
        elif revision > run + 1:
            self._above.setdefault(reference, above).add(revision)
        else:
            while revision + 1 in above:
                revision += 1
                above.remove(revision)
            self._runs[reference] = revision
            if not above:
                self._above.pop(reference, None)

    def add_purged(self, reference: bytes, revision: int) -> None:
        """Note that a purge deleted a record, which had this revision."""
        self._purged[reference] = max(revision, self._purged.get(reference, 0))

    def explain(self, row: SealedEvent) -> None:
        """Note the revisions that an event with an invalid MAC states: that they are missing is no finding then."""
        for change in changes_of(row):
            if len(self._explained) < REPEATED_MAX:
                self._explained.add(change)

    def check(self, store: TokenStore, trusted: TrustedKeys, findings: Findings, purges: Purges) -> int:
        """Read all records and note what is wrong. Returns how many there are."""
        for (reference, revision), again in Counter(self._repeated).items():
            findings.add(
                FindingKind.REVISION_FELL,
                "two events tell of this revision: the record was put back to an older one and changed again",
                number=again + 1,
                reference=reference,
                revision=revision,
            )
        findings.omitted += self._repeated_count - len(self._repeated)
        count, after = 0, ""
        while True:
            page = _record_page(store, after)
            if page is None:
                findings.add(
                    FindingKind.EDITED,
                    "a record has another shape than was written: it and the records behind it were not read",
                )
                self._explain_by_batches(store, trusted, findings)
                return count
            for record in page:
                self._check_record(record, store, trusted, findings)
            count += len(page)
            if not page:
                break
            after = page[-1].token
        self._explain_by_batches(store, trusted, findings)
        for reference, run in self._runs.items():
            if run != _SEEN and not self._is_gone(reference, run, purges):
                message = "events tell of this token, and its record is not there"
                findings.add(FindingKind.RECORD_REMOVED, message, reference=reference)
        return count

    def _is_gone(self, reference: bytes, run: int, purges: Purges) -> bool:
        """Whether a purge deleted a record as it was last."""
        newest = max({run, *self._above.get(reference, ())})
        return newest <= self._purged.get(reference, 0) or purges.record_is_gone(reference, newest)

    def _check_record(
        self, record: SealedRecord, store: TokenStore, trusted: TrustedKeys, findings: Findings
    ) -> None:
        reference, revision = record.reference, record.revision
        run = self._runs.get(reference, 0)
        if run == _SEEN:
            message = "two records have this reference"
            findings.add(FindingKind.INSERTED, message, reference=reference, revision=revision)
            return
        self._runs[reference] = _SEEN
        above = self._above.get(reference, set())
        newest = max({run, *above})
        if newest > revision:
            findings.add(
                FindingKind.REVISION_FELL,
                f"the record has revision {revision}, and an event tells of {newest}: an older row was put back",
                number=run + len(above) + sum(reference == each for each, _ in self._repeated),
                reference=reference,
                revision=revision,
            )
        if run == revision:
            return
        # Some may have been written since the streams were read.
        stated = {*range(1, run + 1), *above} | _stated_now(store, trusted, reference)
        unexplained = _Unexplained(revision, stated)
        if 1 in stated:
            self._note_missing(reference, unexplained, findings)
        else:
            self._unexplained[reference] = unexplained

    def _explain_by_batches(self, store: TokenStore, trusted: TrustedKeys, findings: Findings) -> None:
        """Look for records that no event of their own issued among those that batches issued, and note the rest."""
        for page in pages_about(store, BATCH) if self._unexplained else ():
            for row, _, genuine in trusted.check(page):
                for reference, revision in changes_of(row) if genuine is not False else ():
                    if reference in self._unexplained:
                        self._unexplained[reference].stated.add(revision)
        for reference, unexplained in self._unexplained.items():
            self._note_missing(reference, unexplained, findings)

    def _note_missing(self, reference: bytes, record: _Unexplained, findings: Findings) -> None:
        """Note the revisions of a record that no event states."""
        if not record.stated:
            message = "no event tells of this record: they were removed, or the record was planted"
            newest = record.revision
            findings.add(FindingKind.REMOVED, message, None, 1, newest, reference=reference, revision=newest)
            return
        for first, last in self._missing_runs(reference, record):
            up_to = f" up to {last}" if last > first else ""
            message = f"no event tells of the change to revision {first}{up_to}"
            findings.add(FindingKind.REMOVED, message, None, first, last, reference=reference, revision=first)

    def _missing_runs(self, reference: bytes, record: _Unexplained) -> Iterator[tuple[int, int]]:
        """The first and the last of the revisions, run by run, that no event states."""
        first, last = 0, min(record.revision, len(record.stated) + REPEATED_MAX)
        for number in range(1, last + 2):  # one more, which ends the last run
            stated = number in record.stated or (reference, number) in self._explained
            if number <= last and not stated:
                first = first or number
            elif first:
                yield first, number - 1
                first = 0


def _stated_now(store: TokenStore, trusted: TrustedKeys, reference: bytes) -> set[int]:
    """The revisions of a record that its own events state, read again."""
    found = set()
    for page in pages_about(store, reference):
        for row, _, genuine in trusted.check(page):
            if genuine is not False:
                found |= {revision for _, revision in changes_of(row, reference)}
    return found


def _record_page(store: TokenStore, after: str) -> list[SealedRecord] | None:
    """The next records; None where the first of them is malformed."""
    size = RECORD_PAGE
    while size:
        try:
            return store.scan(after=after, limit=size)
        except IntegrityError:
            size //= 2
    return None
