"""`export_audit` as a feed: each event once, however late it becomes visible, and after any restart."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenvault as tv
from tests import feed_workers, vault_workers
from tests.test_audit_planted_streams import Database
from tests.test_audit_trail import rows_of
from tests.vaults import SHOP, VISA, issue, open_vault, use
from tokenvault.audit import feed as module
from tokenvault.audit import ocsf, position
from tokenvault.audit.checkpoint import Checkpoint
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.position import GAPS_MAX, Place, Position, parse_position
from tokenvault.audit.purge_note import PurgeNote
from tokenvault.audit.verify import pages
from tokenvault.keys import KeyStore
from tokenvault.keys.file import FileKeyStore
from tokenvault.model import checks, iso
from tokenvault.stores import TokenStore
from tokenvault.stores.forwarding import Forwarding
from tokenvault.stores.memory import MemoryTokenStore
from tokenvault.stores.port import SealedEvent

SECONDS_MAX = 60.0

Name = tuple[str, int, int]


@pytest.fixture
def records(local_keys: KeyStore) -> Iterator[TokenStore]:
    with closing(provisioned(local_keys)) as store:
        yield store


@pytest.fixture(scope="module")
def trail(local_keys: KeyStore) -> list[SealedEvent]:
    """Rows of three streams, one not closed, with checkpoints between and batches of several items."""
    with closing(provisioned(local_keys)) as store:
        for number in range(3):
            vault = open_vault(local_keys, store, checkpoints=tv.CheckpointPolicy(events=4))
            tokens = [issue(vault).token for _ in range(4)]
            vault.detokenize_many([(token, use(f"{number}-{n}")) for n, token in enumerate(tokens)])
            vault.issue_many([VISA] * 3, requestor=SHOP, program="one-time")
            if number < 2:
                vault.close()
            else:
                return rows_of(store)
    raise AssertionError


def provisioned(keys: KeyStore, url: str = "memory:") -> TokenStore:
    store = tv.open_token_store(url)
    tv.provision(keys, store)
    return store


def name(line: str) -> Name:
    document = json.loads(line)
    return document["stream"], document["number"], document["item"]


def exported(store: TokenStore, keys: KeyStore | None, **arguments: Any) -> list[str]:
    return list(tv.export_audit(store, keys=keys, **arguments))


def checkpoint_size(row: SealedEvent) -> int:
    checkpoint = Event.parse(row).checkpoint if row.reference == row.stream else None
    return 0 if checkpoint is None else checkpoint.size


def closes(row: SealedEvent) -> bool:
    checkpoint = Event.parse(row).checkpoint if row.reference == row.stream else None
    return checkpoint is not None and checkpoint.closes


def shuffled(rows: list[SealedEvent], source: random.Random) -> list[SealedEvent]:
    """In any order in which they could have become visible: a checkpoint after the events that it commits to."""
    left, order = list(rows), []
    while left:
        ready = [
            row
            for row in left
            if not any(other.stream == row.stream and other.number <= checkpoint_size(row) for other in left)
        ]
        row = source.choice(ready)
        left.remove(row)
        order.append(row)
    return order


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), with_keys=st.booleans(), restarts=st.booleans())
def test_each_event_comes_once_in_whichever_order_they_become_visible(
    seed: int, with_keys: bool, restarts: bool, local_keys: KeyStore, trail: list[SealedEvent]
) -> None:
    """Looks and appended rows take turns at random; so do restarts, at any line, also within a batch."""
    source = random.Random(seed)
    keys = local_keys if with_keys else None
    with closing(provisioned(local_keys)) as store:
        found: list[str] = []
        position: str | None = None
        feed = module.Feed(store, keys)
        order = shuffled(trail, source)
        while True:
            count = source.randint(1, 8)
            for row in order[:count]:
                store.append([row])
            del order[:count]
            for line in feed.look(pages_at_once=source.choice([None, 1])):
                found.append(line)
                position = line.position
                if restarts and source.random() < 0.1:
                    feed = module.Feed(store, keys, after=position)
                    break
            else:
                if not order and not feed.more:
                    break
        found += feed.look()
        expected = exported(store, keys)
        assert len(found) == len(expected)
        assert set(found) == set(expected)
        closed = [stream for stream, place in parse_position(feed.position).items() if place.closed]
        assert len(closed) == (2 if with_keys else 0), (
            "those that no vault writes any more are not read again"
        )


def test_what_a_checkpoint_does_not_commit_to_is_waited_for() -> None:
    """It is written while events with lower numbers are on their way; those that it commits to are there."""
    place = Place().with_row(2).with_row(6).with_checkpoint(6, Checkpoint(size=3, root=bytes(32)))
    assert place.gaps == ((1, 1), (3, 5))
    assert place.without_settled().gaps == ((4, 5),)


def test_a_closed_stream_is_read_until_nothing_is_missing_in_it() -> None:
    place = Place().with_row(2).with_checkpoint(2, Checkpoint(size=1, root=bytes(32), closes=True))
    assert not place.closed
    assert place.with_row(1).closed
    assert place.without_settled().closed


def test_an_export_goes_on_behind_each_of_its_lines(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    for row in trail:
        records.append([row])
    lines = list(tv.export_audit(records, keys=local_keys))
    assert len(lines) == len({name(line) for line in lines}) > len(trail)
    for count, line in enumerate(lines, 1):
        assert exported(records, local_keys, after=line.position) == lines[count:]


def test_an_export_that_follows_gives_what_comes_and_ends_when_it_is_stopped_or_closed(
    local_keys: KeyStore, records: TokenStore
) -> None:
    with open_vault(local_keys, records) as vault:
        issue(vault)
        stop, found = threading.Event(), list[str]()
        feed = tv.export_audit(records, keys=local_keys, follow=True, stop=stop)
        thread = threading.Thread(target=found.extend, args=(feed,))
        thread.start()
        waited_for(lambda: len(found) == 2)
        issue(vault)
        issue(vault)
        waited_for(lambda: len(found) == 4)
        stop.set()
        thread.join(module.LOOK_SECONDS / 2)
        assert not thread.is_alive()
        assert found == exported(records, local_keys)
        feed = tv.export_audit(records, keys=local_keys, follow=True)
        assert next(feed) == found[0]
        feed.close()
        assert list(feed) == []


def test_looks_are_no_further_apart_than_their_bound(
    local_keys: KeyStore, records: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    with open_vault(local_keys, records) as vault:
        issue(vault)
        feed = tv.export_audit(records, keys=local_keys, follow=True)
        assert [json.loads(line)["action"] for line in itertools.islice(feed, 2)] == ["CHECKPOINT", "ISSUE"]
        timer = threading.Timer(0.1, lambda: issue(vault))
        begun = time.monotonic()
        timer.start()
        assert json.loads(next(feed))["number"] == 3
        assert 0.1 <= time.monotonic() - begun < 1
        feed.close()


def test_a_stream_that_never_ends_does_not_keep_others_from_being_read(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGE", 1)
    monkeypatch.setattr(pages.stream_pages, "__kwdefaults__", {"after": 0, "size": 1})
    monkeypatch.setattr(module, "PAGES_AT_ONCE", 2)
    for row in trail:
        records.append([row])
    stop = threading.Event()
    found: list[str] = []
    for line in tv.export_audit(records, keys=local_keys, follow=True, stop=stop):
        found.append(line)
        if len(found) == len(exported(records, local_keys)):
            stop.set()
    streams = [stream for stream, _ in itertools.groupby(name(line)[0] for line in found)]
    assert len(streams) > 6, "they take turns"
    assert {name(line) for line in found} == {name(line) for line in exported(records, local_keys)}


def test_a_forged_checkpoint_does_not_end_the_reading_of_a_stream(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    """Who can write to the database must not silence a vault: what its MAC does not bear ends nothing."""
    closing_row = next(row for row in trail if closes(row))
    stream = [row for row in trail if row.stream == closing_row.stream]
    for row in stream[:-1]:
        records.append([row])
    records.append([stream[-1]._replace(mac=bytes(16))])
    feed = module.Feed(records, local_keys)
    assert sum(json.loads(line)["genuine"] is False for line in feed.look()) == 1
    later = stream[-1]._replace(number=stream[-1].number + 1)
    records.append([later])
    assert [name(line)[1] for line in feed.look()] == [later.number]


def test_an_event_that_was_removed_is_not_waited_for_once_a_checkpoint_commits_to_it(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    stream = next(row.stream for row in trail if closes(row))
    for row in trail:
        if row.stream == stream and row.number != 2:
            records.append([row])
    feed = module.Feed(records, local_keys)
    assert 2 not in [name(line)[1] for line in feed.look()]
    assert not parse_position(feed.position)[stream].closed
    assert list(feed.look()) == []
    assert parse_position(feed.position)[stream].closed


def test_a_row_planted_far_ahead_hides_no_event_of_the_vault(
    local_keys: KeyStore, records: TokenStore
) -> None:
    with open_vault(local_keys, records) as vault:
        issue(vault)
        records.append([rows_of(records)[1]._replace(number=2**62)])
        feed = module.Feed(records, local_keys)
        assert len(list(feed.look())) == 3
        for _ in range(3):
            issue(vault)
        assert [json.loads(line)["genuine"] for line in feed.look()] == [True] * 3
    assert [json.loads(line)["action"] for line in feed.look()] == ["CHECKPOINT"]
    assert list(feed.look()) == []


def test_an_event_that_comes_to_a_number_told_as_malformed_is_given(
    local_keys: KeyStore, tmp_path: Path
) -> None:
    database = Database(tmp_path / "vault.db", local_keys)
    before = set(database.store.streams())
    with closing(database.store), closing(database.sql), open_vault(local_keys, database.store) as vault:
        issue(vault)
        (stream,) = set(database.store.streams()) - before
        feed = module.Feed(database.store, local_keys)
        assert [name(line)[1] for line in feed.look() if name(line)[0] == stream.hex()] == [1, 2]
        database.plant(stream, 8, mac=1)
        assert [name(line)[1] for line in feed.look()] == [3, 4, 5, 6, 7, 8]
        for _ in range(3):
            issue(vault)
        assert [(name(line)[1], json.loads(line)["genuine"]) for line in feed.look()] == [
            (number, True) for number in (3, 4, 5)
        ]
        assert list(feed.look()) == []


def with_holes(store: TokenStore, stream: bytes) -> None:
    """Plant a stream of which each second number is missing, one more than is kept."""
    row = rows_of(store)[0]._replace(stream=stream, index_rows=())
    for first in range(1, GAPS_MAX + 3, 5_000):
        numbers = range(first, min(first + 5_000, GAPS_MAX + 3))
        store.append([row._replace(number=2 * number) for number in numbers])


def lines_and_error(feed: module.Feed) -> tuple[int, str]:
    """How many lines a look gives before it fails, and with which code."""
    count = 0
    try:
        for _ in feed.look():
            count += 1
    except tv.IntegrityError as error:
        return count, error.code
    return count, ""


def test_a_stream_with_too_many_gaps_holds_up_no_newer_one(local_keys: KeyStore, tmp_path: Path) -> None:
    """Without keys nobody can tell that it was planted: that is told, look after look, when the others were read."""
    records = provisioned(local_keys, f"sqlite:///{tmp_path}/vault.db")
    with closing(records), open_vault(local_keys, records) as vault:
        token = issue(vault).token
        before = len(rows_of(records))
        with_holes(records, bytes(16))
        feed = module.Feed(records, None)
        for expected in (GAPS_MAX + before, 0, 1):
            if expected == 1:
                vault.detokenize(token, use())
            assert lines_and_error(feed) == (expected, "TOO_MANY_EVENTS")
            feed = module.Feed(records, None, after=feed.position)


def test_rows_that_no_vault_wrote_make_no_gaps(local_keys: KeyStore, records: TokenStore) -> None:
    with open_vault(local_keys, records) as vault:
        issue(vault)
    with_holes(records, bytes(16))
    feed = module.Feed(records, local_keys)
    assert [json.loads(line)["genuine"] for line in feed.look()].count(False) == GAPS_MAX + 2
    assert parse_position(feed.position)[bytes(16)].gaps == ((1, 2 * GAPS_MAX + 4),)
    assert list(feed.look()) == []


def test_an_event_of_the_vault_among_planted_ones_is_given_whenever_it_comes(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    stream = next(row.stream for row in trail if closes(row))
    rows = [row for row in trail if row.stream == stream]
    planted = [row._replace(number=100 + 2 * row.number, index_rows=()) for row in rows]
    feed = module.Feed(records, local_keys)
    for row, other in zip(rows, planted, strict=True):
        records.append([other])
        records.append([row])
        assert [json.loads(line)["genuine"] for line in feed.look() if name(line)[2] == 0] == [True, False]


def test_a_stream_that_is_away_for_a_look_is_not_given_again(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    """As on a standby that lags; its place is kept, and those of the newest ABSENT_MAX streams that are away."""
    for row in trail:
        records.append([row])

    class Away(Forwarding):
        away = False

        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            answer = getattr(records, name)(*args, **kwargs)
            return [] if name == "streams" and self.away else answer

    store = Away()
    feed = module.Feed(store, local_keys)
    assert len(list(feed.look())) > len(trail)
    for restarts in (False, True):
        store.away = True
        assert list(feed.look()) == []
        if restarts:
            feed = module.Feed(store, local_keys, after=feed.position)
        store.away = False
        assert list(feed.look()) == []


def test_the_places_of_streams_that_are_gone_are_bounded(
    local_keys: KeyStore, records: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABSENT_MAX", 3)
    gone = [number.to_bytes(16) for number in range(1, 9)]
    position = Position({stream: Place(last=1) for stream in gone}).text()
    feed = module.Feed(records, local_keys, after=position)
    list(feed.look())
    assert [stream for stream in parse_position(feed.position) if stream in gone] == gone[-3:]


def test_a_look_of_who_follows_reads_few_streams_that_have_no_news_and_all_in_turn(
    local_keys: KeyStore, records: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that had news is looked at each time, and so is a new one."""
    monkeypatch.setattr(module, "QUIET_AT_ONCE", 3)
    read: list[bytes] = []

    class Watched(Forwarding):
        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            read.extend([kwargs["stream"]] if name == "events" else [])
            return getattr(records, name)(*args, **kwargs)

    with ExitStack() as opened:
        open_ = [opened.enter_context(open_vault(local_keys, records)) for _ in range(10)]
        tokens = [issue(vault).token for vault in open_]
        feed = module.Feed(Watched(), local_keys)
        list(feed.look())
        list(feed.look())
        busy = max(rows_of(records)).stream
        for number in range(4):
            read.clear()
            open_[-1].detokenize(tokens[-1], use(number))
            open_[0].detokenize(tokens[0], use(number))
            list(feed.look_again())
            assert len(set(read)) <= 2 + 3, number
        looked_at: set[bytes] = set()
        for _ in range(4):
            read.clear()
            list(feed.look_again())
            looked_at |= set(read)
        assert looked_at >= {row.stream for row in rows_of(records) if not closes(row)} - {busy}
        assert list(feed.look()) == []


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '{"version":2,"streams":{}}', '{"version":true,"streams":{}}',
        '{"version":1,"streams":[]}', '{"version":1,"streams":{},"more":1}',
        *(f'{{"version":1,"streams":{{"{each[0]}":{each[1]}}}}}' for each in (
            ("AA" * 16, "[1,0,0,[],[]]"), ("aa", "[1,0,0,[],[]]"), ("aa" * 16, "{}"), ("aa" * 16, "[1,0,0,[]]"),
            ("aa" * 16, "[-1,0,0,[],[]]"), ("aa" * 16, "[1,0,2,[],[]]"), ("aa" * 16, "[1.0,0,0,[],[]]"),
            ("aa" * 16, "[9,0,0,[3],[]]"), ("aa" * 16, "[9,0,0,[4,3],[]]"), ("aa" * 16, "[9,0,0,[3,4,4,5],[]]"),
            ("aa" * 16, "[9,0,0,[9,10],[]]"), ("aa" * 16, "[9,0,0,[],[1,0]]"), ("aa" * 16, "[9,0,0,[],[1,1,1,2]]"),
            ("aa" * 16, f"[{2**63},0,0,[],[]]"), ("aa" * 16, "[9,0,0,[true,2],[]]"),
        )),
        "[" * 100_000, VISA,
    ],
)  # fmt: skip
def test_what_is_no_position_is_refused_before_anything_is_read(text: str, records: TokenStore) -> None:
    with pytest.raises(tv.InvalidInputError) as told:
        exported(records, None, after=text)
    assert VISA not in str(told.value)


@pytest.mark.parametrize(
    "arguments", [{"after": 1}, {"follow": 1}, {"shape": "json"}, {"stop": True}, {"keys": "file:keys"}]
)
def test_other_arguments_are_refused(arguments: dict[str, Any], records: TokenStore) -> None:
    with pytest.raises(tv.InvalidInputError):
        exported(records, arguments.pop("keys", None), **arguments)


class Sly(str):
    """A text that is equal to every other one."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("call", "arguments", "problem"),
    [
        (tv.export_audit, {"store": None}, "store is a token store without coroutines"),
        (tv.export_audit, {"follow": 1}, "follow is True or False"),
        (tv.export_audit, {"shape": Sly("json")}, "shape is 'tokenvault' or 'ocsf'"),
        (tv.export_audit, {"stop": True}, "stop is an Event"),
        (tv.AuditLine, {"text": 5, "at": Position({})}, "text is a str"),
        (tv.AuditLine, {"text": "{}", "at": None}, "at is a Position"),
    ],
)
def test_an_argument_is_refused_by_its_name_and_without_frames_that_hold_it(
    call: Any, arguments: dict[str, Any], problem: str, records: TokenStore
) -> None:
    given = {"store": records} | arguments if call is tv.export_audit else arguments
    with pytest.raises(tv.InvalidInputError, match=f"^{problem}") as refused:
        next(call(**given))
    frames = [frame.name for frame in traceback.extract_tb(refused.value.__traceback__)]
    assert not {"export_audit", "__new__"} & set(frames)


@pytest.fixture(scope="module")
def own_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "passphrase").write_text("correct horse battery staple")
    uri = f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase"
    with closing(FileKeyStore(uri)) as keys:
        tv.provision(keys, tv.open_token_store("memory:"))
    return uri


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_feed_killed_again_and_again_beside_writers_that_are_too_has_every_event_once(
    kind: str, own_uri: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/vault.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    context = multiprocessing.get_context("spawn")
    file, source = tmp_path / "feed", random.Random(kind)
    with closing(tv.open_key_store(own_uri)) as keys, closing(provisioned(keys, url)) as store:
        for life in range(4):
            pipes = [context.Pipe(duplex=False) for _ in range(2)]
            processes = [
                context.Process(
                    target=vault_workers.issue_for_ever,
                    args=(own_uri, url, 1_000_000 * (2 * life + each), pipes[each][1]),
                )
                for each in range(2)
            ]
            processes.append(context.Process(target=feed_workers.follow_into, args=(own_uri, url, file)))
            for process in processes:
                process.start()
            before = file.stat().st_size if file.exists() else 0
            waited_for(partial(grown, file, before))
            time.sleep(source.uniform(0.5, 1.5))
            for process in reversed(processes):
                process.kill()
                process.join(SECONDS_MAX)
            for ours, theirs in pipes:
                ours.close()
                theirs.close()
        time.sleep(1)  # the server ends what it was sent
        expected = exported(store, keys)
        process = context.Process(target=feed_workers.follow_into, args=(own_uri, url, file))
        process.start()
        waited_for(lambda: file.read_bytes().count(b"\n") >= len(expected))
        time.sleep(2 * module.LOOK_SECONDS)
        process.kill()
        process.join(SECONDS_MAX)
        found = [line.decode() for line, _ in feed_workers.whole(file)]
    assert len(expected) > 200
    assert len(found) == len(set(found))
    assert set(found) == set(expected)


def grown(file: Path, before: int) -> bool:
    return file.exists() and file.stat().st_size > before


def waited_for(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS_MAX
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.01)


# Streams that no vault wrote, read without keys.

A, B, C = b"A" * 16, b"B" * 16, b"c" * 16
"""Names of streams, the oldest first."""


def row(stream: bytes, number: int, event: Event | None = None) -> SealedEvent:
    told = event or Event(number, Action.LOOK_UP, Outcome.DONE)
    return SealedEvent(stream, number, told.reference, told.body(), bytes(16), told.index_rows())


def purge_of(stream: bytes, *numbers: int) -> Event:
    note = PurgeNote.of([(number, bytes(32)) for number in numbers], ())
    return Event(1, Action.PURGE_EVENTS, Outcome.DONE, reference=stream, purge=note)


class Watched(Forwarding):
    """Notes what is read, and can have malformed rows, and streams that are away."""

    def __init__(self, *rows: SealedEvent) -> None:
        self.inner = MemoryTokenStore()
        self.calls: list[tuple[str, Any, Any, Any]] = []
        self.malformed: set[tuple[bytes, int]] = set()
        self.away: set[bytes] = set()
        self.add(*rows)

    def add(self, *rows: SealedEvent) -> None:
        for each in rows:
            self.inner.append([each])

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((name, kwargs.get("stream"), kwargs.get("after"), kwargs.get("limit")))
        answer = getattr(self.inner, name)(*args, **kwargs)
        if name == "streams":
            return [stream for stream in answer if stream not in self.away]
        if name == "events" and any((each.stream, each.number) in self.malformed for each in answer):
            raise tv.IntegrityError("a row is malformed")
        return answer

    def asked(self, name: str) -> list[tuple[Any, Any, Any]]:
        """The calls of a method since this was looked at last: stream, after and limit."""
        found = [call[1:] for call in self.calls if call[0] == name]
        self.calls.clear()
        return found


def numbers_of(feed: module.Feed, **arguments: Any) -> list[tuple[str, int]]:
    """What a look gives: of which stream, and which number."""
    return [
        (bytes.fromhex(stream)[:1].decode(), number)
        for stream, number, _ in map(name, feed.look(**arguments))
    ]


@pytest.fixture
def single_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 1)
    monkeypatch.setattr(pages.stream_pages, "__kwdefaults__", {"after": 0, "size": 1})


@pytest.mark.parametrize(
    ("malformed", "arrived", "given", "reads"),
    [
        ((), (), [], [(1, 2)]),
        ((), (2,), [2], [(1, 2)]),
        ((), (2, 3), [2, 3], [(1, 2)]),
        ((2, 3), (2, 3), [], [(1, 2), (1, 1), (2, 1)]),
        ((2,), (2, 3), [3], [(1, 2), (1, 1), (2, 1)]),
    ],
)
def test_what_is_missing_is_looked_for_between_its_first_and_last_number_and_not_behind(
    malformed: tuple[int, ...], arrived: tuple[int, ...], given: list[int], reads: list[tuple[int, int]]
) -> None:
    store = Watched(row(A, 1), row(A, 4), row(A, 5))
    feed = module.Feed(store, None)
    assert numbers_of(feed) == [("A", 1), ("A", 4), ("A", 5)]
    store.add(*(row(A, number) for number in arrived))
    store.malformed = {(A, number) for number in malformed}
    store.calls.clear()
    assert numbers_of(feed) == [("A", number) for number in given]
    assert store.asked("events") == [(A, *read) for read in (*reads, (5, pages.PAGE))]


@pytest.mark.parametrize(
    ("malformed", "given", "problem"),
    [
        (2, ["A", "A", "A", "A", "B", "c"], "too many numbers of a stream are missing"),
        (3, ["A", "A", "A", "B", "c"], "too many rows of a stream are malformed"),
    ],
)
def test_the_first_stream_that_can_not_be_read_on_is_told_of_after_the_lines_of_all(
    malformed: int, given: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MALFORMED_MAX", 3)
    monkeypatch.setattr(position, "GAPS_MAX", 1)
    store = Watched(*(row(A, number) for number in range(1, 5)), row(B, 2), row(B, 4), row(C, 1))
    store.malformed = {(A, number) for number in range(1, malformed + 1)}
    found: list[str] = []
    with pytest.raises(tv.IntegrityError, match=problem) as refused:
        found.extend(bytes.fromhex(name(line)[0])[:1].decode() for line in module.Feed(store, None).look())
    assert refused.value.code == "TOO_MANY_EVENTS"
    assert found == given


def test_an_export_goes_on_behind_a_line_of_what_is_malformed() -> None:
    store = Watched(row(A, 1), row(A, 2), row(A, 3))
    store.malformed = {(A, 2)}
    lines = list(tv.export_audit(store))
    assert [name(line)[1] for line in lines] == [1, 2, 3]
    for count, line in enumerate(lines, 1):
        assert exported(store, None, after=line.position) == lines[count:]


@pytest.mark.usefixtures("single_pages")
def test_a_look_reads_so_many_pages_of_a_stream_and_tells_whether_it_left_any() -> None:
    feed = module.Feed(Watched(row(A, 1), row(A, 2), row(A, 3)), None)
    assert (numbers_of(feed, pages_at_once=1), feed.more) == ([("A", 1)], True)
    assert (numbers_of(feed, pages_at_once=2), feed.more) == ([("A", 2), ("A", 3)], True)
    assert (numbers_of(feed, pages_at_once=1), feed.more) == ([], False)


class Waited(threading.Event):
    """Notes how long is waited for it, and is set at once."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.spans.append(timeout)
        self.set()
        return True


@pytest.mark.usefixtures("single_pages")
def test_who_follows_waits_a_second_once_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGES_AT_ONCE", 1)
    stop = Waited()

    class Bounded(Watched):
        def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
            if len(self.calls) > 100:
                stop.set()
            return super()._forward(name, *args, **kwargs)

    store = Bounded(row(A, 1), row(A, 2), row(A, 3), row(B, 1))
    lines = exported(store, None, follow=True, stop=stop)
    assert [name(line)[:2] for line in lines] == [(A.hex(), 1), (B.hex(), 1), (A.hex(), 2), (A.hex(), 3)]
    assert stop.spans == [1]


def test_the_bounds_of_a_look_stay() -> None:
    assert (module.PAGES_AT_ONCE, module.QUIET_AT_ONCE, module.ABSENT_MAX) == (50, 1_000, 10_000)


def test_streams_without_news_take_turns_from_the_oldest_on() -> None:
    store = Watched(row(A, 1), row(B, 1))
    feed = module.Feed(store, None)

    def looked_at(count: int) -> set[bytes]:
        store.calls.clear()
        numbers_of(feed, quiet_at_once=count)
        return {stream for stream, _, _ in store.asked("events")}

    assert [looked_at(2) for _ in range(3)] == [{A, B}] * 3
    store.add(row(C, 1))
    assert [looked_at(2) for _ in range(2)] == [{A, B, C}] * 2, "it had news"
    assert [looked_at(2) for _ in range(3)] == [{A, B}, {A, C}, {B, C}]
    assert looked_at(1) == {A}
    store.add(row(B, 2))
    assert [looked_at(1) for _ in range(3)] == [{B}, {B, C}, {A}]


def test_what_a_purge_took_out_is_asked_for_where_numbers_are_missing_once_in_a_look() -> None:
    store = Watched(row(A, 1), row(A, 3), row(A, 5), row(B, 1, purge_of(A, 2, 4)), row(B, 2))
    feed = module.Feed(store, None)
    list(feed.look())
    assert len(store.asked("events_about")) == 1
    assert parse_position(feed.position) == {A: Place(last=5), B: Place(last=2)}
    store.add(row(A, 6), row(A, 8))
    list(feed.look())
    assert parse_position(feed.position)[A].gaps == ((7, 7),)
    store.add(row(A, 9), row(A, 12), row(B, 3, purge_of(A, 10, 11)))
    list(feed.look())
    assert parse_position(feed.position)[A].gaps == ((7, 7),)


def test_what_only_looks_like_an_event_of_a_purge_takes_nothing_out() -> None:
    purge = row(B, 1, purge_of(A, 2))
    feed = module.Feed(Watched(row(A, 1), row(A, 3), purge._replace(body=purge.body[:-1])), None)
    assert numbers_of(feed) == [("A", 1), ("A", 3), ("B", 1)]
    assert parse_position(feed.position)[A].gaps == ((2, 2),)


def test_without_keys_no_checkpoint_ends_or_settles_a_stream() -> None:
    checkpoint = Checkpoint(size=2, root=bytes(32), closes=True)
    ends = Event(1, Action.CHECKPOINT, Outcome.DONE, reference=A, checkpoint=checkpoint)
    feed = module.Feed(Watched(row(A, 2), row(A, 3, ends)), None)
    assert numbers_of(feed) == [("A", 2), ("A", 3)]
    assert parse_position(feed.position)[A] == Place(last=3, gaps=((1, 1),))


def test_the_lines_of_a_database_come_by_stream_number_and_item(
    local_keys: KeyStore, records: TokenStore, trail: list[SealedEvent]
) -> None:
    for each in trail:
        records.append([each])
    names = [name(line) for line in exported(records, local_keys)]
    assert names == sorted(names)


def test_a_batch_that_was_begun_and_can_not_be_read_any_more_is_passed() -> None:
    begun = Position({A: Place(begun=((1, 2),))}).text()
    feed = module.Feed(Watched(row(A, 1)._replace(body=b"nonsense"), row(A, 2)), None, after=begun)
    assert numbers_of(feed) == [("A", 2)]
    assert parse_position(feed.position)[A] == Place(last=2)


def test_streams_that_were_read_are_forgotten_too_once_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABSENT_MAX", 1)
    store = Watched(row(A, 1), row(B, 1), row(C, 1))
    feed = module.Feed(store, None)
    assert numbers_of(feed) == [("A", 1), ("B", 1), ("c", 1)]
    store.away = {A, B, C}
    assert numbers_of(feed) == []
    assert parse_position(feed.position) == {C: Place(last=1)}


# OCSF.

SCHEMA = json.loads((Path(__file__).parent / "vectors" / "ocsf_1.8.0_entity_management.json").read_text())


def problems(document: dict[str, Any], attributes: dict[str, Any], where: str) -> Iterator[str]:
    """What OCSF would refuse."""
    for attribute, rule in attributes.items():
        if rule["required"] and attribute not in document:
            yield f"{where}.{attribute} is missing"
    for attribute, value in document.items():
        rule = attributes.get(attribute)
        if rule is None:
            yield f"{where}.{attribute} is unknown"
        elif rule["type"] in ("integer_t", "long_t", "timestamp_t") and type(value) is not int:
            yield f"{where}.{attribute} is no number"
        elif rule["type"] == "string_t" and not (isinstance(value, str) and value):
            yield f"{where}.{attribute} is no text"
        elif "enum" in rule and str(value) not in rule["enum"]:
            yield f"{where}.{attribute} is none of the values"
        elif rule["type"] in SCHEMA["objects"]:
            parts = SCHEMA["objects"][rule["type"]]
            yield from problems(value, parts["attributes"], f"{where}.{attribute}")
            if parts["at_least_one"] and not set(parts["at_least_one"]) & value.keys():
                yield f"{where}.{attribute} has none of {parts['at_least_one']}"


def assert_valid(line: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(line)
    assert list(problems(document, SCHEMA["class"], "event")) == []
    assert (document["class_uid"], document["category_uid"]) == (SCHEMA["class_uid"], SCHEMA["category_uid"])
    assert document["type_uid"] == 100 * document["class_uid"] + document["activity_id"]
    assert document["metadata"]["version"] == SCHEMA["version"]
    if document["activity_id"] != 99:
        enum = SCHEMA["class"]["activity_id"]["enum"]
        assert document["activity_name"] == enum[str(document["activity_id"])]
    return document


def test_ocsf_events_have_what_the_class_requires_and_the_line_they_are_made_of(
    local_keys: KeyStore, records: TokenStore
) -> None:
    with open_vault(local_keys, records) as vault:
        token = issue(vault).token
        vault.detokenize(token, use(amount=tv.Money(100, "EUR")))
        vault.suspend(token, operator="ann", by=tv.Actor.ISSUER)
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use(2))
        with pytest.raises(tv.TokenNotFoundError):
            vault.detokenize("9999130000000003", use(3))
        vault.request_reveal(token, operator="ann", purpose="chargeback")
        vault.issue_many([VISA] * 3, requestor=SHOP, program="one-time")
        vault.delete(token)
    records.append([SealedEvent(b"\xff" * 16, 1, b"", b"nonsense", bytes(16))])
    own, lines = exported(records, local_keys), exported(records, local_keys, shape="ocsf")
    documents = [assert_valid(line) for line in lines]
    assert [document["unmapped"]["tokenvault"] for document in documents] == list(map(json.loads, own))
    assert len({document["metadata"]["uid"] for document in documents}) == len(documents)
    assert all(line.isascii() and VISA[:12] not in line and token not in line for line in lines)
    told = {(each["metadata"]["event_code"], each["status_id"]): each for each in reversed(documents)}
    suspended = told["SUSPEND", 1]
    assert (suspended["activity_name"], suspended["actor"]) == ("Suspend", {"user": {"name": "ann"}})
    assert suspended["entity"]["uid"] == told["ISSUE", 1]["entity"]["uid"] is not None
    assert told["DETOKENIZE", 2]["severity_id"] == 2
    assert told["UNREADABLE", 2]["severity_id"] == 5
    assert checks.utc(told["DETOKENIZE", 1]["time"]) == vault_time(told["DETOKENIZE", 1])


def vault_time(document: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(document["unmapped"]["tokenvault"]["time"])


@pytest.mark.parametrize("action", Action)
def test_every_action_is_a_valid_ocsf_event_of_an_activity_of_its_own_choice(action: Action) -> None:
    assert action in ocsf._ACTIVITIES
    event = tv.AuditEvent(
        time=datetime(2026, 5, 28, tzinfo=UTC), action=action, outcome=Outcome.DENIED, requestor=None,
        reference=None, transaction_id=None, operator=None, kind=None, amount=None, retry=False, score=None,
        codes=(), revision=0, locked_until=None, stream="00" * 16, number=1,
    )  # fmt: skip
    for genuine in (True, False, None):
        document = assert_valid(json.dumps(ocsf.ocsf_event(event, 0, genuine, {})))
        assert (document["severity_id"] == 5) == (genuine is False)


@pytest.mark.parametrize("shape", ["tokenvault", "ocsf"])
def test_events_in_a_currency_that_this_process_was_not_told_of_are_read(
    local_keys: KeyStore, monkeypatch: pytest.MonkeyPatch, shape: Any
) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    monkeypatch.setattr(iso, "_added", frozenset({"XYZ"}))
    with open_vault(local_keys, store) as vault:
        token = issue(vault).token
        vault.detokenize(token, use(1, amount=tv.Money(500, "XYZ")))
        vault.detokenize_many([(token, use(2, amount=tv.Money(700, "XYZ")))])
        monkeypatch.setattr(iso, "_added", frozenset())
        with pytest.raises(tv.InvalidInputError):
            tv.Money(500, "XYZ")
        amounts = [event.amount for event in vault.history(token) if event.amount is not None]
        assert [(money.amount, money.currency) for money in amounts] == [(500, "XYZ"), (700, "XYZ")]
    lines = list(tv.export_audit(store, keys=local_keys, shape=shape))
    assert sum("XYZ" in line for line in lines) == 2
    assert tv.verify_audit(store, keys=local_keys).intact
