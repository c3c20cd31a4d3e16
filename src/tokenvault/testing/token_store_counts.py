"""The part of the conformance kit about counts: they agree with what is there, whoever writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tokenvault.errors import TokenStoreError
from tokenvault.stores.port import SealedRecord, TokenGroup, TokenStore
from tokenvault.testing.token_store_harness import (
    THREADS,
    a_record,
    an_event,
    assert_counted,
    most,
    race,
    replaced,
)
from tokenvault.testing.token_store_values import ValuesContract

_GROUP: Final = TokenGroup("40012345678", "card-on-file", 1)
_WRITES: Final = 6  # of each thread


class CountsContract(ValuesContract):
    """`count` tells how many records a list of the group has."""

    def test_counts_follow_every_write(self, store: TokenStore) -> None:
        """One record or many: inserted, replaced within their group, moved to another status, program, requestor."""
        assert store.count(*_GROUP) == 0
        many = [_grouped(n) for n in range(min(30, most(store)))]
        for records in (many[:1], many[1:]):
            assert store.insert(records, [an_event(1 + records[0].created_ms)]) == []
            assert_counted(store)
        assert store.count(*_GROUP) == len(many)
        changes: list[SealedRecord] = [
            _grouped(0),
            _grouped(0, status=2),
            _grouped(0, status=2, program="p"),
            _grouped(0, status=127, requestor="1" * 11),
            _grouped(0),
        ]
        for revision, change in enumerate(changes, 2):
            assert store.replace([change._replace(revision=revision)], [an_event(100 + revision)]) == []
            assert_counted(store)
        moved = [each._replace(revision=2, status=1 + n % 3) for n, each in enumerate(many[1:])]
        assert store.replace(moved, [an_event(200)]) == []
        assert_counted(store)
        assert store.replace([replaced(each)._replace(status=3) for each in moved], []) == []
        assert_counted(store)
        assert store.count(*_GROUP) == 1
        assert store.count(*_GROUP._replace(status=3)) == len(moved)

    def test_counts_of_refused_writes(self, store: TokenStore) -> None:
        """A write that is refused, or fails, changes no count."""
        there = [_grouped(n) for n in range(3)]
        store.insert(there, [an_event(1)])
        token = there[0].token
        assert store.insert(there[:1], [an_event(2)]) == [token]
        assert store.insert([there[0], _grouped(7)], [an_event(2)]) == [token]
        late = there[0]._replace(revision=3, status=2)
        assert store.replace([late], [an_event(2)]) == [token]
        assert store.replace([late, replaced(there[1])._replace(status=2)], [an_event(2)]) == [token]
        moved = replaced(there[2])._replace(status=2)
        assert store.replace([moved], [an_event(2)], [(token, 9)]) == [token]
        writes: list[Callable[[], list[str]]] = [
            lambda: store.insert([_grouped(8)], [an_event(1)]),
            lambda: store.insert([_grouped(8), _grouped(9)], [an_event(1)]),
            lambda: store.replace([moved], [an_event(1)]),
            lambda: store.replace([moved, replaced(there[1])], [an_event(1)]),
        ]
        for fails in writes:
            with pytest.raises(TokenStoreError):
                fails()
        assert_counted(store)
        assert store.count(*_GROUP) == len(there)

    def test_counts_by_threads(self, store: TokenStore) -> None:
        """Threads that insert the same and other records, and move them between groups, miss no count."""
        shared = [_grouped(n) for n in range(3)]
        store.insert(shared, [])

        def write(thread: int) -> None:
            for number in range(_WRITES):
                first = 1_000 * (1 + thread) + 10 * number
                one, *rest = (_grouped(first + n) for n in range(3))
                assert store.insert([one], [an_event(first)]) == []
                assert store.insert(rest, []) == []
                assert store.replace([replaced(one)._replace(status=2)], [an_event(first + 1)]) == []
                assert store.replace([replaced(each)._replace(status=3) for each in rest], []) == []
                store.insert([_grouped(500 + number)], [])  # one of them wins
                found = store.get([each.token for each in shared])
                ahead = [replaced(each)._replace(status=1 + (thread + number) % 3) for each in found]
                store.replace(ahead[:1], [])
                store.replace(ahead if thread % 2 else ahead[::-1], [])

        race(write)
        assert_counted(store)
        whole = len(shared) + _WRITES + 3 * THREADS * _WRITES
        assert sum(store.count(*_GROUP._replace(status=status)) for status in (1, 2, 3)) == whole


def _grouped(
    number: int, *, status: int = 1, program: str = _GROUP.program, requestor: str = _GROUP.requestor
) -> SealedRecord:
    return a_record(number, status=status, program=program, requestor=requestor)
