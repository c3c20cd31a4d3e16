"""Every read of the port by which a record or an event is found, by name: what the kit looks at a store with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tokenvault.stores.index_rows import IndexRow, cursor_of
from tokenvault.stores.port import SealedEvent, SealedRecord, TokenStore
from tokenvault.testing.token_store_harness import a_record, an_event

Reads: TypeAlias = dict[str, Callable[[], Sequence[object]]]

_USE_ID = b"u" * 16


def a_noted_record(number: int) -> tuple[SealedRecord, SealedEvent]:
    """A record that every read finds, and its event: the first of a stream, of a use."""
    record = a_record(number, customer=f"customer-{number}", last4_key=number.to_bytes(16))
    event = an_event(1, stream=number, reference=record.reference)
    return record, event._replace(index_rows=(IndexRow(record.reference, _USE_ID),))


def reads_of_a_record(store: TokenStore, record: SealedRecord) -> Reads:
    """What finds this record alone, or nothing."""
    before = f"{int(record.token) - 1:0{len(record.token)}d}"
    group = record.requestor, record.program, record.status

    def by_reference() -> list[SealedRecord]:
        found = store.by_reference(record.reference)
        return [] if found is None else [found]

    def of_use() -> list[SealedRecord]:
        found = store.get_use(record.token, []).record
        return [] if found is None else [found]

    return {
        "get": lambda: list(store.get([record.token])),
        "find": lambda: store.find(record.pan_fingerprint),
        "by_reference": by_reference,
        "get_use": of_use,
        "list_tokens": lambda: store.list_tokens(*group, after=(record.created_ms - 1, ""), limit=1),
        "find_customer": lambda: store.find_customer(record.customer),
        "find_last4": lambda: store.find_last4([record.last4_key]),
        "scan": lambda: store.scan(after=before, limit=1),
    }


def reads_of_an_event(store: TokenStore, event: SealedEvent) -> Reads:
    """What finds this event alone, or nothing: the first of a stream, of a use."""
    reference, use_id = event.index_rows[0]
    behind = cursor_of(use_id, event.stream, 0)
    return {
        "events": lambda: store.events(event.stream, limit=1),
        "events_about": lambda: store.events_about(reference, after=behind, limit=1).events,
        "get_use (events)": lambda: store.get_use(reference, [use_id]).events,
        "uses": lambda: store.uses([(reference, use_id)]),
        "latest_checkpoints": lambda: [
            each for each in store.latest_checkpoints(9) if each.stream == event.stream
        ],
    }


def reads_of_sums(store: TokenStore, record: SealedRecord) -> Reads:
    """What tells of a record's group, and of all events."""
    return {
        "count": lambda: [store.count(record.requestor, record.program, record.status)],
        "groups": store.groups,
        "index_rows": lambda: store.index_rows(limit=1),
        "streams": lambda: sorted(store.streams()),
    }
