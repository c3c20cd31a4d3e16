"""The adapter of the how-to keeps the port's promises, and the contract says of each wrong one what is wrong."""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import indent
from typing import Any, Final

import pytest

from tests import wrong_adapters, wrong_readers, wrong_values, wrong_writers
from tests.own_token_store import OwnTokenStore
from tokenvault.stores import TokenStore
from tokenvault.stores.port import SealedRecord
from tokenvault.testing import StoreHarness, TokenStoreContract, token_store_isolation

TESTS: Final = Path(__file__).parent


class OwnHarness(StoreHarness):
    """Goes around the store with a connection of its own."""

    def __init__(self, folder: Path, kind: type[OwnTokenStore] = OwnTokenStore) -> None:
        self.path = folder / "own.db"
        self.kind = kind

    def open(self) -> TokenStore:
        return self.kind(self.path)

    def opener(self) -> Callable[[], TokenStore]:
        return functools.partial(self.kind, self.path)

    def raw_read(self, token: str) -> SealedRecord | None:
        with closing(sqlite3.connect(self.path)) as raw:
            row = raw.execute("SELECT * FROM tokens WHERE token = ?", (token,)).fetchone()
        return SealedRecord(*row) if row else None

    def raw_write(self, record: SealedRecord) -> None:
        with closing(sqlite3.connect(self.path)) as raw, raw:
            raw.execute("REPLACE INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", record)

    def raw_counts(self) -> tuple[int, int]:
        with closing(sqlite3.connect(self.path)) as raw:
            ((records,),) = raw.execute("SELECT count(*) FROM tokens")
            ((events,),) = raw.execute("SELECT count(*) FROM events")
        return records, events


class TestOwnTokenStore(TokenStoreContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> StoreHarness:
        return OwnHarness(tmp_path)


def parts_of(text: str) -> dict[str, str]:
    """The classes and constants of a module, by name, whatever their layout."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found[ast.unparse(node).partition("=")[0].partition(":")[0].strip()] = ast.dump(node)
    return found


def test_the_page_builds_what_is_tested_here(tmp_path: Path) -> None:
    """Its code is this adapter and this harness to the letter, and runs as it stands."""
    page = (TESTS.parent / "docs/howto/adapters.md").read_text(encoding="utf-8")
    section = page.partition("## A token store from nothing")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    code = "\n".join(indent(block, "    ") if block.startswith("def ") else block for block in blocks)
    adapter, tests = (
        parts_of((TESTS / f"{name}.py").read_text()) for name in ("own_token_store", "test_own_token_store")
    )
    expected = adapter | {name: tests[name] for name in ("OwnHarness", "TestOwnTokenStore")}
    assert parts_of(code) == expected
    names: dict[str, Any] = {"__name__": "adapters"}
    exec(compile(code, "adapters.md", "exec"), names)  # noqa: S102 # our own text
    harness = names["OwnHarness"](tmp_path)
    with closing(harness.open()) as store:
        store.provision()
        names["TestOwnTokenStore"]().test_insert_is_all_or_nothing(store, harness)


CONTRACT = TestOwnTokenStore()
Test = Callable[[TokenStoreContract, OwnHarness, TokenStore], None]
FOUND_BY: dict[type[OwnTokenStore], list[tuple[Test, str]]] = {
    wrong_adapters.EventInASecondCommit: [
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "insert", 1), "half done"),
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "replace", 1), "half done"),
        (
            lambda contract, _, store: contract.test_record_and_event_are_seen_together(store),
            "one transaction",
        ),
    ],
    wrong_adapters.SplitsLargeWrites: [
        (
            lambda contract, _, store: contract.test_a_large_write_is_seen_whole(store),
            "more than one transaction",
        ),
    ],
    wrong_adapters.SharesAConnectionWithItsChild: [
        (lambda contract, harness, store: contract.test_a_forked_child(harness, store), "connection"),
    ],
    wrong_adapters.OrdersTokensAsIntegers: [
        (
            lambda contract, _, store: contract.test_tokens_are_in_the_order_of_strings(store),
            "order of strings",
        ),
    ],
    wrong_adapters.CommitsHalfOfAnInterruptedWrite: [
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "insert", 3), "half done"),
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "replace", 3), "half done"),
    ],
    wrong_adapters.IndexInASecondStep: [
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "insert", 1), "half done"),
        (lambda contract, _, store: contract.test_an_interrupted_write(store, "replace", 1), "half done"),
        (
            lambda contract, _, store: contract.test_record_and_event_are_seen_together(store),
            "one transaction",
        ),
    ],
    wrong_adapters.LooksAtTheFenceBefore: [
        (
            lambda contract, _, store: contract.test_a_fence_holds_from_the_moment_a_replacement_returns(
                store, 1
            ),
            "behind a fence",
        ),
    ],
    wrong_adapters.SkipsEqualKeys: [
        (lambda contract, _, store: contract.test_events_about_a_reference(store), "cursor takes"),
    ],
    wrong_adapters.SkipsRowsOfOneReference: [
        (lambda contract, _, store: contract.test_rows_of_the_index(store), "rows of the index do not come"),
    ],
    wrong_adapters.OrdersEventsByArrival: [
        (lambda contract, _, store: contract.test_events_about_a_reference(store), "order of arrival"),
    ],
    wrong_adapters.CountsWhatWasInserted: [
        (lambda contract, _, store: contract.test_counts_follow_every_write(store), "count does not agree"),
        (lambda contract, _, store: contract.test_counts_by_threads(store), "count does not agree"),
    ],
    wrong_adapters.CountsBesideTheTransaction: [
        (
            lambda contract, _, store: contract.test_an_interrupted_write(store, "insert", 1),
            "count does not agree",
        ),
        (
            lambda contract, _, store: contract.test_an_interrupted_write(store, "replace", 3),
            "count does not agree",
        ),
    ],
    wrong_adapters.PrunesByTheToken: [
        (lambda contract, harness, store: contract.test_pruned_records(store, harness), "another revision"),
    ],
    wrong_adapters.PrunesEventsAlone: [
        (lambda contract, harness, store: contract.test_pruned_events(store, harness), "row of the index"),
    ],
    wrong_adapters.PrunesByTheNumber: [
        (lambda contract, harness, store: contract.test_pruned_events(store, harness), "and no others"),
    ],
    wrong_adapters.ReadsTheUseBeforeItsRecord: [
        (
            lambda contract, _, store: contract.test_a_use_is_not_older_than_its_record(store),
            "older than its record",
        ),
    ],
    wrong_adapters.FindsUsesOfAnyToken: [
        (lambda contract, _, store: contract.test_a_use_with_its_record(store), "other uses or tokens"),
    ],
    wrong_adapters.GivesAnEventForEachName: [
        (lambda contract, _, store: contract.test_a_use_with_its_record(store), "one of them came twice"),
        (lambda contract, _, store: contract.test_many_uses(store), "one of them came twice"),
    ],
    wrong_adapters.LosesPairs: [
        (lambda contract, _, store: contract.test_many_uses(store), "a use id"),
    ],
    wrong_adapters.ListsByTheTimeAlone: [
        (lambda contract, _, store: contract.test_lists_in_the_order_of_issue(store), "one millisecond"),
    ],
    wrong_adapters.RemembersGroups: [
        (lambda contract, _, store: contract.test_lists_in_the_order_of_issue(store), "groups are not"),
    ],
    wrong_adapters.FindsCustomersInAnyCase: [
        (lambda contract, _, store: contract.test_customers_and_last_four(store), "by another text"),
    ],
    wrong_adapters.FindsLastFourKeyByKey: [
        (lambda contract, _, store: contract.test_customers_and_last_four(store), "all together"),
    ],
    wrong_adapters.TakesFewerRowsThanItSays: [
        (
            lambda contract, harness, store: contract.test_the_write_of_most_rows(store, harness),
            "write_limits",
        ),
    ],
    wrong_adapters.TakesFewerBytesThanItSays: [
        (
            lambda contract, harness, store: contract.test_the_write_of_most_bytes(store, harness),
            "write_limits",
        ),
    ],
}


def found_by(name: str, complaint: str, **given: object) -> tuple[Test, str]:
    """A test of the contract, with what parametrizes it, and what its message says."""
    method = getattr(TokenStoreContract, name)
    taken = inspect.signature(method).parameters

    def test(contract: TokenStoreContract, harness: OwnHarness, store: TokenStore) -> None:
        fixtures: dict[str, object] = {"harness": harness, "store": store}
        method(contract, **{each: fixtures[each] for each in fixtures if each in taken}, **given)

    return test, complaint


FOUND_BY |= {
    wrong_adapters.ReadsUncommitted: [
        found_by("test_nothing_is_seen_of_a_write_that_fails", "READ UNCOMMITTED", kind="insert"),
    ],
    wrong_writers.ReplacesManyUnseen: [
        found_by("test_each_of_many_is_looked_at", "a replacement of many"),
        found_by("test_replace_by_threads", "not exactly one of them did", count=300),
    ],
    wrong_writers.ComparesTheFirstOfMany: [
        found_by("test_each_of_many_is_looked_at", "a replacement of many"),
    ],
    wrong_writers.LosesUpdatesOfMany: [
        found_by("test_replace_by_threads", "not exactly one of them did", count=300),
    ],
    wrong_writers.InsertsManyOverOthers: [
        found_by("test_insert_by_threads", "not exactly one of them did", count=300),
    ],
    wrong_writers.LooksAtTheFirstOfAFence: [found_by("test_each_of_many_is_looked_at", "a fence of many")],
    wrong_writers.LooksAtALongFenceBefore: [
        found_by("test_a_fence_holds_from_the_moment_a_replacement_returns", "behind a fence", count=300),
    ],
    wrong_writers.PrunesManyByTheToken: [found_by("test_each_of_many_is_looked_at", "a prune of many")],
    wrong_writers.AppendsOneByOne: [
        found_by("test_an_interrupted_write", "append of 3 half done", kind="append", count=3),
    ],
    wrong_writers.IndexesAppendedEventsAfter: [
        found_by("test_an_interrupted_write", "append of 1 half done", kind="append", count=1),
    ],
    wrong_writers.AppendsInPieces: [
        found_by("test_a_large_write_is_seen_whole", "part of a large append"),
        found_by("test_nothing_is_seen_of_a_write_that_fails", "a write that then failed", kind="append"),
    ],
    wrong_writers.InsertsEventsInPieces: [
        found_by("test_a_large_write_is_seen_whole", "part of a large insertion"),
        found_by("test_nothing_is_seen_of_a_write_that_fails", "a write that then failed", kind="insert"),
    ],
    wrong_writers.IndexesABatchInPieces: [
        found_by("test_many_index_rows_are_seen_together", "its many rows of the index"),
    ],
    wrong_writers.PrunesInPieces: [found_by("test_a_large_write_is_seen_whole", "part of a large prune")],
    wrong_readers.KeepsASnapshot: [
        found_by("test_reads_see_what_another_store_wrote", "an old snapshot"),
    ],
    wrong_readers.KeepsASnapshotOfEachThread: [
        found_by("test_reads_see_what_another_thread_wrote", "an old snapshot"),
    ],
    wrong_readers.RemembersCounts: [
        found_by("test_reads_see_what_another_store_wrote", "count does not see"),
    ],
    wrong_readers.RemembersCustomers: [
        found_by("test_reads_see_what_another_store_wrote", "find_customer does not see"),
    ],
    wrong_readers.CountsUncommitted: [
        found_by("test_nothing_is_seen_of_a_write_that_fails", "by count, a part", kind="insert"),
    ],
    wrong_readers.AsksItsParent: [found_by("test_a_forked_child", "a connection of its own")],
    wrong_values.CutsRecords: [found_by("test_the_longest_bodies", "written by insert.* is cut")],
    wrong_values.CutsReplacements: [found_by("test_the_longest_bodies", "written by replace.* is cut")],
    wrong_values.CutsEvents: [found_by("test_the_longest_bodies", "written by insert.* 65537 bytes is cut")],
    wrong_values.CutsEventsThatItFinds: [found_by("test_the_longest_bodies", "events_about gives another")],
    wrong_values.CutsEventsOfUses: [found_by("test_the_longest_bodies", "gives another value")],
    wrong_values.CutsRecordsOfAScan: [found_by("test_the_longest_bodies", "scan gives another value")],
    wrong_values.FindsProgramsInAnyCase: [found_by("test_texts_are_compared_whole", "find takes two")],
    wrong_values.StripsPrograms: [found_by("test_texts_are_compared_whole", "list_tokens takes two")],
    wrong_values.CountsProgramsInAnyCase: [found_by("test_texts_are_compared_whole", "count takes two")],
    wrong_values.GroupsProgramsInAnyCase: [found_by("test_texts_are_compared_whole", "an order of its own")],
    wrong_values.StripsCustomers: [found_by("test_texts_are_compared_whole", "find_customer takes two")],
    wrong_values.TakesCustomersForNumbers: [found_by("test_texts_are_compared_whole", "for numbers")],
    wrong_values.StripsNames: [found_by("test_texts_are_compared_whole", "put_meta takes two")],
    wrong_values.CutsProgramsAtZero: [found_by("test_texts_are_compared_whole", "follows a zero byte")],
    wrong_values.OrdersEventsAsTexts: [found_by("test_pages_of_a_stream", "compared as texts")],
    wrong_values.EndsWithAFullPage: [found_by("test_pages_of_a_stream", "each event once")],
    wrong_values.OrdersCustomersAsIntegers: [
        found_by("test_tokens_are_in_the_order_of_strings", "where find_customer gives"),
    ],
    wrong_values.OrdersLastFourAsIntegers: [
        found_by("test_tokens_are_in_the_order_of_strings", "where find_last4 gives"),
    ],
    wrong_values.ListsTokensAsIntegers: [
        found_by("test_tokens_are_in_the_order_of_strings", "where list_tokens gives"),
    ],
    wrong_values.GivesMoreThanAPage: [
        found_by("test_customers_and_last_four", "more records than its limit"),
        found_by("test_tokens_are_in_the_order_of_strings", "more records than its limit"),
    ],
    wrong_values.ListsMoreThanAPage: [
        found_by("test_lists_in_the_order_of_issue", "more records than its limit"),
    ],
    wrong_values.IndexesMoreThanAPage: [found_by("test_rows_of_the_index", "not as many rows as its limit")],
    wrong_writers.PrunesInTwoSteps: [
        found_by("test_an_interrupted_write", "prune of 1 half done", kind="prune", count=1),
    ],
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", FOUND_BY, ids=lambda kind: kind.__name__)
def test_the_contract_says_what_is_wrong_with_an_adapter(kind: type[OwnTokenStore], tmp_path: Path) -> None:
    for number, (test, complaint) in enumerate(FOUND_BY[kind]):
        folder = tmp_path / str(number)
        folder.mkdir()
        harness = OwnHarness(folder, kind)
        with closing(harness.open()) as store:
            store.provision()
            with pytest.raises(AssertionError, match=complaint):
                test(CONTRACT, harness, store)
    gc.collect()  # what an interrupt dropped


def test_a_child_that_stands_still_within_the_fork_is_ended_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line of the kit runs in such a child: only its parent can end the wait."""
    monkeypatch.setattr(token_store_isolation, "CHILD_SECONDS_MAX", 0.5)
    harness = OwnHarness(tmp_path, wrong_adapters.StandsStillInItsChild)
    with closing(harness.open()) as store:
        store.provision()
        with pytest.raises(AssertionError, match=r"stood still for 0\.5 seconds"):
            CONTRACT.test_a_forked_child(harness, store)
