"""Adapters of a token store that keep a part of a value, take one text for another, or have an order of their own."""

from __future__ import annotations

from collections.abc import Sequence

from tests.own_token_store import OwnTokenStore
from tokenvault.stores.index_rows import IndexPlace
from tokenvault.stores.port import EventPage, Fence, SealedEvent, SealedRecord, TokenGroup

CUT = 4_096


class CutsRecords(OwnTokenStore):
    """Keeps the bodies of records in a column that takes so many bytes, and cuts what is longer."""

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        return super()._insert([each._replace(body=each.body[:CUT]) for each in records], events, document)


class CutsReplacements(OwnTokenStore):
    """Does so where it replaces."""

    def _replace(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
    ) -> list[str]:
        return super()._replace([each._replace(body=each.body[:CUT]) for each in records], events, fence)


class CutsEvents(OwnTokenStore):
    """Keeps the first 64 KiB of the bodies of events that come with a record."""

    cut = 65_535

    def _insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None
    ) -> list[str]:
        return super()._insert(
            records, [each._replace(body=each.body[: self.cut]) for each in events], document
        )


class CutsEventsThatItFinds(OwnTokenStore):
    """Has the bodies of events in its index too, which takes 4,096 bytes of them."""

    def _events_about(self, reference: bytes, after: bytes, limit: int) -> EventPage:
        page = super()._events_about(reference, after, limit)
        return page._replace(events=[each._replace(body=each.body[:CUT]) for each in page.events])


class CutsEventsOfUses(OwnTokenStore):
    """Does so where it looks for uses."""

    def _uses(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[SealedEvent]:
        return [each._replace(body=each.body[:CUT]) for each in super()._uses(pairs)]


class CutsRecordsOfAScan(OwnTokenStore):
    """Cuts what is long where it reads many records."""

    def _scan(self, after: str, limit: int, key_version: int | None) -> list[SealedRecord]:
        return [each._replace(body=each.body[:CUT]) for each in super()._scan(after, limit, key_version)]


class FindsProgramsInAnyCase(OwnTokenStore):
    """Compares programs as its database compares texts, without regard to case, where it finds by fingerprint."""

    def _find(
        self, pan_fingerprints: Sequence[bytes], requestor: str | None, program: str | None, after: str, limit: int
    ) -> list[SealedRecord]:  # fmt: skip
        found = super()._find(pan_fingerprints, requestor, None, after, 10_000)
        return [each for each in found if program is None or each.program.lower() == program.lower()][:limit]


class StripsPrograms(OwnTokenStore):
    """Compares programs as CHAR columns do, without the blanks at their end, where it lists and counts."""

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        sql = (
            "SELECT * FROM tokens WHERE requestor = ? AND program = ? COLLATE RTRIM AND status = ?"
            " AND (created_ms, token) > (?, ?) ORDER BY created_ms, token LIMIT ?"
        )
        return [SealedRecord(*row) for row in self._read(sql, requestor, program, status, *after, limit)]


class CountsProgramsInAnyCase(OwnTokenStore):
    """Counts by programs without regard to case."""

    def _count(self, requestor: str, program: str, status: int) -> int:
        sql = "SELECT count(*) FROM tokens WHERE requestor = ? AND program = ? COLLATE NOCASE AND status = ?"
        count: int = self._read(sql, requestor, program, status)[0][0]
        return count


class GroupsProgramsInAnyCase(OwnTokenStore):
    """Gives the groups in the order of a dictionary, where 'a' comes before 'B'."""

    def _groups(self) -> list[TokenGroup]:
        return sorted(super()._groups(), key=lambda group: (group.requestor, group.program.lower()))


class StripsCustomers(OwnTokenStore):
    """Compares customers without the blanks at their end."""

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE customer = ? COLLATE RTRIM AND token > ? ORDER BY token LIMIT ?"
        return [SealedRecord(*row) for row in self._read(sql, customer, after, limit)]


class TakesCustomersForNumbers(OwnTokenStore):
    """Compares customers that look like numbers as numbers: '007' is '7'."""

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        if not customer.isdigit():
            return super()._find_customer(customer, after, limit)
        sql = "SELECT * FROM tokens WHERE customer GLOB '[0-9]*' AND CAST(customer AS INTEGER) = ? AND token > ?"
        rows = self._read(f"{sql} ORDER BY token LIMIT ?", int(customer), after, limit)
        return [SealedRecord(*row) for row in rows]


class StripsNames(OwnTokenStore):
    """Keeps named values under their name without the blanks at its end."""

    def _get_meta(self, name: str) -> bytes | None:
        return super()._get_meta(name.rstrip())

    def _put_meta(self, name: str, value: bytes) -> bytes:
        return super()._put_meta(name.rstrip(), value)


class CutsProgramsAtZero(OwnTokenStore):
    """Compares programs as C does: up to the first zero byte."""

    def _find(
        self, pan_fingerprints: Sequence[bytes], requestor: str | None, program: str | None, after: str, limit: int
    ) -> list[SealedRecord]:  # fmt: skip
        found = super()._find(pan_fingerprints, requestor, None, after, 10_000)
        cut = None if program is None else program.partition("\0")[0]
        return [each for each in found if cut is None or each.program.partition("\0")[0] == cut][:limit]


class OrdersEventsAsTexts(OwnTokenStore):
    """Keeps the numbers of events as texts: the tenth comes before the second."""

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        found = super()._events_of_stream(stream, first, 10_000)
        return sorted(found, key=lambda event: str(event.number))[:limit]


class OrdersCustomersAsIntegers(OwnTokenStore):
    """Takes tokens for numbers where it finds those of a customer."""

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        sql = "SELECT * FROM tokens WHERE customer = ? AND CAST(token AS INTEGER) > ? ORDER BY CAST(token AS INTEGER)"
        rows = self._read(f"{sql}, token LIMIT ?", customer, int(after or "-1"), limit)
        return [SealedRecord(*row) for row in rows]


class OrdersLastFourAsIntegers(OwnTokenStore):
    """Takes tokens for numbers where it finds those of a last4 key."""

    def _find_last4(self, last4_keys: Sequence[bytes], after: str, limit: int) -> list[SealedRecord]:
        found = super()._find_last4(last4_keys, "", 10_000)
        behind = [each for each in found if int(each.token) > int(after or "-1")]
        return sorted(behind, key=lambda each: (int(each.token), each.token))[:limit]


class ListsTokensAsIntegers(OwnTokenStore):
    """Takes tokens for numbers where it lists those of one millisecond."""

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        found = super()._list_tokens(requestor, program, status, (-1, ""), 10_000)
        place = (after[0], int(after[1] or "-1"))
        behind = [each for each in found if (each.created_ms, int(each.token)) > place]
        return sorted(behind, key=lambda each: (each.created_ms, int(each.token), each.token))[:limit]


class GivesMoreThanAPage(OwnTokenStore):
    """Gives all tokens of a customer, whatever the limit."""

    def _find_customer(self, customer: str, after: str, limit: int) -> list[SealedRecord]:
        return super()._find_customer(customer, after, 10_000)


class ListsMoreThanAPage(OwnTokenStore):
    """Gives a whole list, whatever the limit."""

    def _list_tokens(
        self, requestor: str, program: str, status: int, after: tuple[int, str], limit: int
    ) -> list[SealedRecord]:
        return super()._list_tokens(requestor, program, status, after, 10_000)


class IndexesMoreThanAPage(OwnTokenStore):
    """Gives the whole index, whatever the limit."""

    def _index_rows(self, after: IndexPlace, limit: int) -> list[IndexPlace]:
        return super()._index_rows(after, 10_000)


class EndsWithAFullPage(OwnTokenStore):
    """Leaves out the last event where a page ends with the end of a stream."""

    def _events_of_stream(self, stream: bytes, first: int, limit: int) -> list[SealedEvent]:
        found = super()._events_of_stream(stream, first, limit + 1)
        return found[:limit] if len(found) > limit else found[: limit - 1] if len(found) == limit else found
