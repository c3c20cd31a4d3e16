"""Conformance of token stores: values are kept whole, texts compared byte by byte, and pages are in one order."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import Final

from tokenvault.stores.port import (
    INTEGER_MAX,
    META_VALUE_BYTES_MAX,
    SealedEvent,
    SealedRecord,
    TokenGroup,
    TokenStore,
    digest_of,
)
from tokenvault.stores.write_limits import (
    BODY_BYTES_MAX,
    DOCUMENT_BESIDE_BYTES_MAX,
    EVENT_BODY_BYTES_MAX,
    ROW_BYTES,
)
from tokenvault.testing.token_store_harness import a_record, an_event, as_read, fill, paged, replaced
from tokenvault.testing.token_store_reads import a_noted_record, reads_of_a_record, reads_of_an_event
from tokenvault.testing.token_store_uses import UsesContract

_CUT: Final = (
    "{} gives another value than was written by {}: one of {} bytes is cut, or changed; a column, or an index, takes "
    "fewer than the port states"
)
_FOLDED: Final = (
    "{} takes two texts for one, or for numbers, or has them in an order of its own: they are compared byte by byte, "
    "with their case, the blanks around them, and what follows a zero byte"
)
_AS_INTEGERS: Final = (
    "tokens are not in the order of strings where {} gives them: a store that compares them as integers puts "
    "'9999999999999' before '1111111111111111111', and skips or repeats records from page to page"
)
_STREAM_PAGES: Final = (
    "pages of a stream do not give each event once, by number: numbers are compared as texts or rounded, or a page "
    "does not have its limit of them"
)
_PROGRAMS: Final = (
    *("p", "P", "p ", " p", "p\t", "p\0", "p\0q", "p\0Q", "%", "_", "1", "01", "1.0", "1e0", "B", "a", "Z"),
    *("a-b", "ab", "a b", "a.b"),
)
_CUSTOMERS: Final = ("ann", "Ann", "ann ", " ann", "%", "_nn", "7", "007", "7.0", "7e0")


class ValuesContract(UsesContract):
    """What comes back is what was written, of what was asked for, in the order that the port states."""

    def test_the_longest_bodies(self, store: TokenStore) -> None:
        """Records and events of the greatest lengths come back whole: one or several, by each write and each read."""
        source = random.Random(1)  # noqa: S311  the same on every run
        limits = store.write_limits
        half = limits.bytes // 2 - BODY_BYTES_MAX - 4 * ROW_BYTES  # so that two go at once
        lengths = sorted(
            {min(each, limits.event_bytes, half) for each in (4_097, 2**16 + 1, EVENT_BODY_BYTES_MAX)}
        )
        numbers = itertools.count(1)
        writes: dict[str, Callable[[list[SealedRecord], list[SealedEvent]], list[str]]] = {
            "insert": store.insert,
            "replace": store.replace,
            "append": lambda _, events: store.append(events),
        }
        for length, count, kind in itertools.product(lengths, (1, 2), writes):
            pairs = [a_noted_record(next(numbers)) for _ in range(count)]
            records = [record._replace(body=source.randbytes(BODY_BYTES_MAX)) for record, _ in pairs]
            events = [event._replace(body=source.randbytes(length)) for _, event in pairs]
            if kind != "insert":
                assert store.insert(records, []) == []
            if kind == "replace":
                records = [replaced(each)._replace(body=each.body[::-1]) for each in records]
            assert writes[kind](records, events) == []
            for record, event in zip(records, events, strict=True):
                for name, read in reads_of_a_record(store, record).items():
                    assert read() == [record], _CUT.format(name, kind, BODY_BYTES_MAX)
                for name, read in reads_of_an_event(store, event).items():
                    assert read() == as_read(event), _CUT.format(name, kind, length)

    def test_the_longest_values(self, store: TokenStore) -> None:
        """A domain document beside a token, and a named value, of the greatest length come back whole."""
        source = random.Random(2)  # noqa: S311  the same on every run
        document, value = map(source.randbytes, (DOCUMENT_BESIDE_BYTES_MAX, META_VALUE_BYTES_MAX))
        assert store.insert([a_record(1)], [an_event(1)], document) == []
        found = store.get_domain(digest_of(document))
        assert found == document, _CUT.format("get_domain", "insert", len(document))
        store.put_meta("a", value)
        assert store.get_meta("a") == value, _CUT.format("get_meta", "put_meta", len(value))

    def test_texts_are_compared_whole(self, store: TokenStore) -> None:
        """Programs, customers and names that differ in case, blanks or zeros alone are not the same."""
        fingerprint = bytes(16)
        records = [
            a_record(n, program=program, pan_fingerprint=fingerprint, status=1)
            for n, program in enumerate(_PROGRAMS)
        ]
        fill(store, records)
        for record in records:
            group = TokenGroup(record.requestor, record.program, record.status)
            assert store.find(fingerprint, program=record.program) == [record], _FOLDED.format("find")
            assert store.list_tokens(*group) == [record], _FOLDED.format("list_tokens")
            assert store.count(*group) == 1, _FOLDED.format("count")
        groups = sorted(TokenGroup(each.requestor, each.program, each.status) for each in records)
        assert store.groups() == groups, _FOLDED.format("groups")
        of_customers = [a_record(100 + n, customer=customer) for n, customer in enumerate(_CUSTOMERS)]
        store.insert(of_customers, [])
        for record in of_customers:
            assert store.find_customer(record.customer) == [record], _FOLDED.format("find_customer")
        for name in _CUSTOMERS:
            assert store.put_meta(name, name.encode()) == name.encode(), _FOLDED.format("put_meta")
        for name in _CUSTOMERS:
            assert store.get_meta(name) == name.encode(), _FOLDED.format("get_meta")

    def test_tokens_are_in_the_order_of_strings(self, store: TokenStore) -> None:
        """Tokens of 13 to 19 digits are scanned, found and listed digit by digit, not by what they are worth."""
        fingerprint, key = bytes(16), b"k" * 16
        tokens = ["0" * 19, "1" + "0" * 12, "1" * 19, "5" * 16, "6" * 13, "6" * 17, "9" * 13]
        records = [
            a_record(
                n, token=token, pan_fingerprint=fingerprint, key_version=7, customer="c", last4_key=key, status=1,
                created_ms=1,
            )
            for n, token in enumerate(tokens)
        ]  # fmt: skip
        store.insert(records[::-1], [])
        reads: dict[str, Callable[..., list[SealedRecord]]] = {
            "scan": store.scan,
            "scan of a key version": functools.partial(store.scan, key_version=7),
            "find": functools.partial(store.find, fingerprint),
            "find of several": functools.partial(store.find, [fingerprint, b"?" * 16]),
            "find_customer": functools.partial(store.find_customer, "c"),
            "find_last4": functools.partial(store.find_last4, [key]),
            "find_last4 of several": functools.partial(store.find_last4, [key, b"?" * 16]),
        }
        for name, read in reads.items():
            assert read() == records, _AS_INTEGERS.format(name)
            for limit in (1, 2, 7):
                assert paged(read, limit) == records, _AS_INTEGERS.format(name)
        listed = functools.partial(store.list_tokens, records[0].requestor, records[0].program, 1)
        for limit in (1, 2, 7):
            found = paged(listed, limit, lambda each: (each.created_ms, each.token), (-1, ""))
            assert found == records, _AS_INTEGERS.format("list_tokens")

    def test_pages_of_a_stream(self, store: TokenStore) -> None:
        """Events come once each and by number, whatever their numbers are; all pages but the last are full."""
        numbers = [
            *range(1, 13),
            99,
            100,
            2**31 - 1,
            2**31,
            2**32,
            2**53,
            2**53 + 1,
            INTEGER_MAX - 1,
            INTEGER_MAX,
        ]
        events = [an_event(number) for number in numbers]
        fill(store, [], events[::-1])
        expected = as_read(*events)
        for limit in (1, 2, 3, 7, len(events), len(events) + 1):
            found: list[SealedEvent] = []
            while page := store.events(events[0].stream, after=found[-1].number if found else 0, limit=limit):
                assert len(found) % limit == 0, _STREAM_PAGES
                found += page
                assert len(found) <= len(expected), _STREAM_PAGES
            assert found == expected, _STREAM_PAGES
