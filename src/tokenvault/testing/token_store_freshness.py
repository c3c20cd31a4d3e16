"""Conformance of token stores: a read sees what was written before it began, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

from tokenvault.stores.port import TokenStore, digest_of
from tokenvault.testing.token_store_harness import PROCESS_SECONDS_MAX, Capability, StoreHarness, replaced
from tokenvault.testing.token_store_isolation import IsolationContract
from tokenvault.testing.token_store_reads import (
    Reads,
    a_noted_record,
    reads_of_a_record,
    reads_of_an_event,
    reads_of_sums,
)

_STALE: Final = (
    "{} does not see what {} has written since it was called before: it reads an old snapshot, from a connection or "
    "thread whose transaction does not end, or a copy in memory"
)


class FreshnessContract(IsolationContract):
    """What was read once is read anew."""

    def test_reads_see_what_another_thread_wrote(self, store: TokenStore) -> None:
        """A thread that made each read before sees by each what another thread is told was written since."""
        _assert_seen(store, store, "another thread")

    def test_reads_see_what_another_store_wrote(self, harness: StoreHarness, store: TokenStore) -> None:
        """A store by which each read was made sees by each what another store on the database wrote since."""
        self.require(Capability.DURABLE)
        with closing(harness.open()) as other:
            _assert_seen(store, other, "another store on the same database")


def _assert_seen(store: TokenStore, writer: TokenStore, who: str) -> None:
    """Each read of a store, by one thread throughout, gives something else after each write of another."""
    record, event = a_noted_record(1)
    _, later = a_noted_record(2)
    later = later._replace(index_rows=event.index_rows, reference=record.reference)
    changed = replaced(record)._replace(status=record.status + 1)
    sums = reads_of_sums(store, record)
    of_record = reads_of_a_record(store, record) | {"count": sums["count"], "groups": sums["groups"]}
    of_event = reads_of_an_event(store, event) | {each: sums[each] for each in ("index_rows", "streams")}
    kept: Reads = {
        "get_domain": lambda: [store.get_domain(digest_of(b"{}"))],
        "get_meta": lambda: [store.get_meta("a")],
    }

    def insert() -> None:
        assert writer.insert([record], [event], b"{}") == []
        assert writer.put_meta("a", b"value") == b"value"

    with ThreadPoolExecutor(1) as pool:

        def seen(reads: Reads) -> dict[str, Sequence[object]]:
            asked = pool.submit(lambda: {name: read() for name, read in reads.items()})
            return asked.result(PROCESS_SECONDS_MAX)

        for reads, write in (
            (of_record | of_event | kept, insert),
            (of_record, lambda: writer.replace([changed], [])),
            ({"uses": of_event["uses"], "streams": of_event["streams"]}, lambda: writer.append([later])),
            (of_event, lambda: writer.prune([event, later])),
        ):
            before = seen(reads)
            write()
            after = seen(reads)
            stale = [name for name in reads if after[name] == before[name]]
            assert not stale, _STALE.format(", ".join(stale), who)
