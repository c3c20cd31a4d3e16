"""The SQLite token store keeps the port's promises, through forks, kills, full disks and edited files."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import attrs
import pytest
from hypothesis import settings

from tests import sqlite_workers
from tests.measuring import processes_unmeasured
from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, TokenStoreError
from tokenvault.stores.port import MALFORMED_EVENT, SealedRecord, TokenStore
from tokenvault.stores.sqlite import file as _sqlite_file
from tokenvault.stores.sqlite import sql as statements
from tokenvault.stores.sqlite import writes
from tokenvault.stores.sqlite.pool import CONNECTIONS_MAX
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.testing import (
    StoreHarness,
    TokenStoreContract,
    TokenStoreMachine,
    a_record,
    an_event,
)
from tokenvault.testing.token_store_harness import replaced, run_processes

SECONDS_MAX = 60.0
"""No test waits longer for what another thread does."""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
FILE = "vault.db"


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


@attrs.define
class SqliteHarness(StoreHarness):
    path: Path

    def open(self) -> TokenStore:
        return SqliteTokenStore(self.path)

    def opener(self) -> Callable[[], TokenStore]:
        return functools.partial(SqliteTokenStore, str(self.path))

    def raw_read(self, token: str) -> SealedRecord | None:
        with raw(self.path) as connection:
            row = connection.execute("SELECT * FROM tokens WHERE token = ?", (token,)).fetchone()
        return SealedRecord(*row) if row else None

    def raw_write(self, record: SealedRecord) -> None:
        with raw(self.path) as connection:
            connection.execute("REPLACE INTO tokens VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", record)

    def raw_counts(self) -> tuple[int, int]:
        with raw(self.path) as connection:
            (counts,) = connection.execute(
                "SELECT (SELECT count(*) FROM tokens), (SELECT count(*) FROM events)"
            )
        return counts[0], counts[1]


class TestSqliteTokenStore(TokenStoreContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> StoreHarness:
        return SqliteHarness(tmp_path / FILE)


class SqliteMachine(TokenStoreMachine):
    def open_store(self) -> TokenStore:
        # On a disk in memory where there is one: hundreds of fsync calls prove nothing here.
        shm = Path("/dev/shm")  # noqa: S108  a fresh folder in it
        self.folder = tempfile.mkdtemp(dir=shm if shm.is_dir() else None)
        return SqliteTokenStore(os.path.join(self.folder, FILE))

    def reopen(self, store: TokenStore) -> TokenStore:
        store.close()
        return SqliteTokenStore(os.path.join(self.folder, FILE))

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=25, stateful_step_count=25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE


@pytest.fixture
def store(path: Path) -> Iterator[SqliteTokenStore]:
    with closing(SqliteTokenStore(path)) as store:
        store.provision()
        yield store


def sound(path: Path) -> bool:
    with raw(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# The file.


def test_files_are_for_the_owner_alone(path: Path) -> None:
    umask = os.umask(0)
    try:
        with closing(SqliteTokenStore(path)) as store:
            store.provision()
            store.insert([a_record(1)], [])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(umask)
    assert modes == dict.fromkeys([FILE, FILE + "-wal", FILE + "-shm"], 0o600)


def test_opening_creates_nothing(path: Path) -> None:
    with closing(SqliteTokenStore(path)) as store:
        with pytest.raises(ConfigurationError, match="provision"):
            store.check_schema()
        with pytest.raises(TokenStoreError, match="provision"):
            store.insert([a_record(1)], [])
        assert list(path.parent.iterdir()) == []
        path.touch()
        with pytest.raises(ConfigurationError, match="provision"):
            store.check_schema()
        assert path.read_bytes() == b""
        store.provision()
        store.check_schema()


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (5, "has schema version 5, .* know version 5; this one knows 4: install the release that wrote it"),
        (2, "has schema version 2, of an older release of tokenvault; this one upgrades none before 3"),
        (3, "has schema version 3, .* needs version 4: run tokenvault schema upgrade"),
    ],
)
def test_another_schema_is_refused(path: Path, store: SqliteTokenStore, version: int, text: str) -> None:
    store.close()
    with raw(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("UPDATE schema_version SET reached = ?", (version,))
    with closing(SqliteTokenStore(path)) as other:
        for call in (other.check_schema, other.provision):
            with pytest.raises(ConfigurationError, match=text):
                call()
        with pytest.raises(TokenStoreError, match=text):
            other.insert([a_record(1)], [])


@pytest.mark.parametrize(
    "statement", ["PRAGMA application_id = 7", "CREATE TABLE t (x)", "PRAGMA user_version = 1"]
)
def test_another_programs_database_stays_as_it_is(path: Path, statement: str) -> None:
    with raw(path) as connection:
        connection.execute(statement)
    before = path.read_bytes()
    with closing(SqliteTokenStore(path)) as store:
        for call in (store.check_schema, store.provision):
            with pytest.raises(ConfigurationError, match="something else"):
                call()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all. " * 500)
    with closing(SqliteTokenStore(path)) as store:
        for call in (store.check_schema, store.provision):
            with pytest.raises(TokenStoreError, match="something else"):
                call()
        with pytest.raises(TokenStoreError, match="something else"):
            store.get([a_record(1).token])
    assert path.read_bytes() == b"no database at all. " * 500


def test_a_damaged_file_is_said_to_be_damaged(path: Path, store: SqliteTokenStore) -> None:
    store.insert([a_record(n) for n in range(500)], [])
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = random.Random(1).randbytes(len(content) - 4096)
    path.write_bytes(content)
    with closing(SqliteTokenStore(path)) as other:
        for read in (other.scan, other.streams, lambda: other.get([a_record(1).token])):
            with pytest.raises(TokenStoreError, match="damaged"):
                read()


def test_a_folder_that_is_missing_is_an_error_of_every_call(tmp_path: Path) -> None:
    with closing(SqliteTokenStore(tmp_path / "missing" / FILE)) as store:
        with pytest.raises(TokenStoreError, match="No such file"):
            store.provision()
        with pytest.raises(TokenStoreError):
            store.scan()


def test_a_folder_in_place_of_a_file_can_not_be_opened(tmp_path: Path) -> None:
    with closing(SqliteTokenStore(tmp_path)) as store:
        for call in (store.provision, store.scan):
            with pytest.raises(TokenStoreError, match="can not be opened"):
                call()


@pytest.mark.parametrize("path", [b"bytes", 5, None, "a\0b", "\ud800"])
def test_paths_that_no_file_can_have(path: str) -> None:
    with pytest.raises(InvalidInputError):
        SqliteTokenStore(path)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[str], None]]:
    """A real file system of 256 KiB; the function given mounts it again with other options."""

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small file system takes more privileges")

    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root on Linux")
    mount("size=256k")
    try:
        yield mount
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(store: TokenStore) -> int:
    """Insert batches until the disk is full; the number of records acknowledged."""
    for count in range(0, 100_000, 10):
        try:
            store.insert([a_record(n) for n in range(count, count + 10)], [an_event(count + 1)])
        except TokenStoreError as error:
            assert "full" in str(error)  # noqa: PT017  the loop needs the count
            return count
    raise AssertionError("the disk is never full")


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path), closing(SqliteTokenStore(tmp_path / FILE)) as store:
        store.provision()
        count = fill(store)
        assert count > 0
        assert len(store.scan()) == count
        assert len(store.events(stream=an_event(1).stream)) == count // 10
        store.close()
        assert sound(tmp_path / FILE)


def test_a_disk_too_small_for_the_schema(tmp_path: Path) -> None:
    with small_disk(tmp_path), closing(SqliteTokenStore(tmp_path / FILE)) as store:
        ballast = tmp_path / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(252 * 1024))
        with pytest.raises(TokenStoreError):
            store.provision()
        ballast.unlink()
        with pytest.raises(ConfigurationError, match="provision"):
            store.check_schema()
        store.provision()
        store.check_schema()


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path) as mount, closing(SqliteTokenStore(tmp_path / FILE)) as store:
        mount("remount,ro")
        with pytest.raises(TokenStoreError, match="Read-only"):
            store.provision()
        mount("remount,rw")
        store.provision()
        store.close()
        mount("remount,ro")
        with closing(SqliteTokenStore(tmp_path / FILE)) as other:
            with pytest.raises(TokenStoreError):
                other.insert([a_record(1)], [])
            with pytest.raises(TokenStoreError):
                other.scan()


def test_a_file_that_may_not_grow(
    path: Path, store: SqliteTokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    limit = "PRAGMA max_page_count = 50"
    monkeypatch.setattr(_sqlite_file, "_PRAGMAS", (*_sqlite_file._PRAGMAS, limit))
    with closing(SqliteTokenStore(path)) as other:
        count = fill(other)
        assert 0 < count == len(other.scan())
        (record,) = other.get([a_record(0).token])
        assert other.replace([replaced(record)], []) == []  # what fits still goes
    assert sound(path)


# Edited by hand.


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reference", "'text'"),
        ("pan_fingerprint", "NULL"),
        ("requestor", "x'00'"),
        ("program", "1.5"),
        ("program", "CAST(x'ff' AS TEXT)"),
        ("program", "'p\u00e4'"),
        ("revision", "'one'"),
        ("revision", "0"),
        ("revision", "-1"),
        ("key_version", "2.5"),
        ("key_version", "x''"),
        ("body", "zeroblob(16385)"),
        ("body", "zeroblob(2000000)"),
        ("seal", "zeroblob(44)"),
        ("seal", "42"),
    ],
)
def test_columns_edited_by_hand(path: Path, store: SqliteTokenStore, column: str, value: str) -> None:
    store.insert([a_record(1), a_record(2)], [])
    unlock_types(path, "tokens")
    with raw(path) as connection:
        connection.execute(f"UPDATE tokens SET {column} = {value} WHERE token = ?", (a_record(1).token,))
    with pytest.raises(IntegrityError) as caught:
        store.get([a_record(1).token])
    assert caught.value.__context__ is None
    with pytest.raises(IntegrityError):
        store.scan()
    assert store.get([a_record(2).token]) == [a_record(2)]


@pytest.mark.parametrize(
    ("column", "value"),
    [("number", "'x'"), ("reference", "'x'"), ("mac", "x''"), ("body", "1"), ("stream", "x'01'")],
)
def test_events_edited_by_hand(path: Path, store: SqliteTokenStore, column: str, value: str) -> None:
    store.append([an_event(1, reference=b"r" * 16)])
    unlock_types(path, "events")
    with raw(path) as connection:
        connection.execute(f"UPDATE events SET {column} = {value}")
    reads: list[Callable[[], object]] = [
        lambda: store.events(stream=an_event(1).stream),
        store.streams,
    ]
    caught = 0
    for read in reads:
        try:
            read()
        except IntegrityError:
            caught += 1
    assert caught > 0 or column == "stream"  # which verification refuses
    assert store.events_about(b"r" * 16).events == [MALFORMED_EVENT]


def test_documents_and_values_edited_by_hand(path: Path, store: SqliteTokenStore) -> None:
    digest = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")  # of nothing
    store.put_domain(digest, b"")
    store.put_meta("a", b"")
    unlock_types(path, "meta")
    with raw(path) as connection:
        connection.execute("UPDATE domains SET document = x'00'")
        connection.execute("UPDATE meta SET value = 'text'")
    with pytest.raises(IntegrityError):
        store.get_domain(digest)
    with pytest.raises(IntegrityError):
        store.get_meta("a")
    with pytest.raises(IntegrityError):
        store.put_meta("a", b"")


def test_tables_dropped_by_hand(path: Path, store: SqliteTokenStore) -> None:
    with raw(path) as connection:
        connection.execute("DROP TABLE tokens")
    for call in (store.scan, lambda: store.insert([a_record(1)], [an_event(1)])):
        with pytest.raises(TokenStoreError, match="schema"):
            call()
    store.append([an_event(1)])


def unlock_types(path: Path, table: str) -> None:
    """Take STRICT, types and NOT NULL off a table, as an attacker with the file could."""
    with raw(path) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        for words, instead in (
            (" TEXT NOT NULL", ""),
            (" BLOB NOT NULL", ""),
            (" INTEGER NOT NULL", ""),
            ("STRICT, ", ""),
            ("STRICT", ""),
        ):
            sql = sql.replace(words, instead)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute(f"PRAGMA schema_version = {version + 1}")


# Errors and interruptions.


def test_errors_carry_no_row_data(store: SqliteTokenStore) -> None:
    store.append([an_event(1)])
    with pytest.raises(TokenStoreError) as caught:
        store.append([an_event(1)])
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert an_event(1).body.hex() not in repr(caught.value)


def test_an_interrupted_write_is_undone(store: SqliteTokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writes, "_append_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.insert([a_record(1)], [an_event(1)])
    assert store.scan() == []
    assert store.insert([a_record(1)], [an_event(1)]) == []


def test_a_writer_that_never_ends_holds_up_writes_for_the_time_set_only(
    path: Path, store: SqliteTokenStore
) -> None:
    """A call waits for the time set, then says so; reads do not wait; afterwards all is well."""
    store.insert([a_record(1)], [])
    with closing(SqliteTokenStore(path, busy_seconds_max=0.2)) as hasty, raw(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        assert hasty.get([a_record(1).token]) == [a_record(1)]
        begun = time.monotonic()
        with pytest.raises(TokenStoreError, match="other writers"):
            hasty.insert([a_record(2)], [])
        assert 0.15 < time.monotonic() - begun < 5
        shell.execute("ROLLBACK")
        assert hasty.insert([a_record(2)], []) == []


def test_a_write_into_a_file_that_left_its_place_is_not_acknowledged(
    path: Path, store: SqliteTokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file leaves while the write waits for another writer."""
    away = tmp_path / "away.db"
    store.append([an_event(1)])

    def move_and_give_way(_: float) -> None:
        if path.exists():
            path.rename(away)
            shell.execute("ROLLBACK")

    with raw(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(time, "sleep", move_and_give_way)
        with pytest.raises(TokenStoreError, match="moved"):
            store.append([an_event(2)])
    assert away.exists()
    assert not path.exists()


def test_look_ups_use_their_index(path: Path, store: SqliteTokenStore) -> None:
    store.insert([a_record(1)], [])
    expected = {
        statements.BY_TOKENS[1]: ("sqlite_autoindex_tokens_1 (token=?)", 1),
        statements.BY_TOKENS[16]: ("sqlite_autoindex_tokens_1 (token=?)", 16),
        statements.FIND[1, False, False]: ("tokens_by_pan_fingerprint (pan_fingerprint=? AND token>?)", 3),
        statements.FIND[1, True, True]: ("tokens_by_pan_fingerprint (pan_fingerprint=? AND token>?)", 5),
        statements.BY_REFERENCE: ("tokens_by_reference (reference=?)", 1),
        statements.SCAN: ("sqlite_autoindex_tokens_1 (token>?)", 2),
        statements.SCAN_KEY_VERSION: ("sqlite_autoindex_tokens_1 (token>?)", 3),
        statements.EVENTS_OF_STREAM: ("sqlite_autoindex_events_1 (stream=? AND number>?)", 3),
        statements.EVENTS_ABOUT: ("PRIMARY KEY (reference=?", 5),
        statements.EVENTS_OF_USE: ("PRIMARY KEY (reference=? AND use_id=?)", 2),
        statements.ONE_EVENT: ("sqlite_autoindex_events_1 (stream=? AND number=?)", 2),
        statements.LIST: (
            "tokens_by_group (requestor=? AND program=? AND status=? AND (created_ms,token)>",
            6,
        ),
        statements.COUNT: ("PRIMARY KEY (requestor=? AND program=? AND status=?)", 3),
        statements.NEXT_GROUP: (
            "COVERING INDEX tokens_by_group ((requestor,program,status,created_ms,token)>",
            3,
        ),
        statements.FIND_CUSTOMER: ("tokens_by_customer (customer=? AND token>?)", 3),
        statements.FIND_LAST4: ("tokens_by_last4_key (last4_key=? AND token>?)", 3),
    }
    with raw(path) as connection:
        for statement, (index, parameters) in expected.items():
            plan = connection.execute("EXPLAIN QUERY PLAN " + statement, (1,) * parameters).fetchall()
            assert index in plan[0][3]
            assert not any("TEMP B-TREE" in step[3] for step in plan)
        plan = connection.execute(
            "EXPLAIN QUERY PLAN " + statements.FIND[16, True, True], (1,) * 20
        ).fetchall()
        assert (
            "tokens_by_pan_fingerprint (pan_fingerprint=? AND token>?)" in plan[0][3]
        )  # of many pan_fingerprints, and sorted then


# Threads.


def test_threads_that_end_leave_no_connections(store: SqliteTokenStore) -> None:
    for _ in range(3):
        threads = [threading.Thread(target=store.scan) for _ in range(2 * CONNECTIONS_MAX)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1 <= store._pool.open_count <= CONNECTIONS_MAX
    store.close()
    assert store._pool.open_count == 0


def test_a_writer_waits_for_the_other_threads_no_longer_than_is_set(
    path: Path, store: SqliteTokenStore
) -> None:
    """Reads do not wait, and who gave up holds up nobody."""
    with closing(SqliteTokenStore(path, busy_seconds_max=0.2)) as hasty:

        def meanwhile(_: object) -> None:
            begun = time.monotonic()
            with pytest.raises(TokenStoreError, match="other writers"):
                hasty.append([an_event(1)])
            assert 0.15 < time.monotonic() - begun < 5
            assert hasty.events(stream=an_event(1).stream) == []

        hasty._pool.write(meanwhile)
        hasty.append([an_event(1)])
    assert store.events(stream=an_event(1).stream) == [an_event(1)]


def test_no_writer_is_passed_over_for_long(path: Path, store: SqliteTokenStore) -> None:
    """Of more threads than connections, which write as fast as they can, none waits past its bound."""
    threads, each = 2 * CONNECTIONS_MAX, 20
    with closing(SqliteTokenStore(path, busy_seconds_max=10)) as contended:

        def write(stream: int) -> None:
            for number in range(each):
                contended.append([an_event(number + 1, stream=stream)])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write, range(threads)))
    assert all(len(store.events(stream=stream)) == each for stream in store.streams())
    assert len(store.streams()) == threads


# Processes.


def test_four_processes_of_sixteen_threads_replace_one_row_and_lose_nothing(
    path: Path, store: SqliteTokenStore
) -> None:
    """All replace one row: nobody is refused as locked, and no replacement is lost."""
    store.insert([a_record(1)], [])
    run_processes(sqlite_workers.contend, functools.partial(SqliteTokenStore, str(path)), 4)
    total = 4 * sqlite_workers.CONTENDING_THREADS * sqlite_workers.CONTENDING_REPLACEMENTS
    assert store.get([a_record(1).token])[0].revision == 1 + total
    assert len(store.streams()) == 4 * sqlite_workers.CONTENDING_THREADS


def test_writers_killed_at_any_moment_leave_whole_inserts_and_all_acknowledged(
    path: Path, store: SqliteTokenStore
) -> None:
    """Every acknowledged insert is there, and of none a part."""
    context = multiprocessing.get_context("spawn")
    opener = functools.partial(SqliteTokenStore, str(path))
    source = random.Random()
    first = 0
    for _ in range(4):
        ours, theirs = context.Pipe(duplex=False)
        writer = context.Process(target=sqlite_workers.insert_for_ever, args=(opener, first, theirs))
        with processes_unmeasured():
            writer.start()
        theirs.close()
        acknowledged = [ours.recv()]
        time.sleep(source.uniform(0, 0.05))
        writer.kill()
        writer.join()
        with contextlib.suppress(EOFError):
            while True:
                acknowledged.append(ours.recv())
        ours.close()
        writer.close()
        count = len(store.scan())
        assert count in (acknowledged[-1] + 3, acknowledged[-1] + 6)  # at most one more, not yet told
        first = count
        assert store.scan() == [a_record(n) for n in range(count)]
        assert len(store.events(stream=an_event(1).stream)) == count // 3
    assert sound(path)


def in_child(work: Callable[[], object], fork: Callable[[], int] = os.fork) -> int:
    """Run the work in a forked child, which ends without Python's clean-up; its pid."""
    pid = fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(50)
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001  the child's exit code tells
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended_well(pid: int) -> bool:
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the platform does not list open files")
def test_a_store_that_is_dropped_unclosed_closes_its_connections(path: Path, store: SqliteTokenStore) -> None:
    """Nobody would close them before a fork: the child would close the parent's, and take its locks and log away."""
    store.close()
    dropped = SqliteTokenStore(path)
    assert dropped.insert([a_record(1)], []) == []
    assert open_files(path)
    del dropped
    gc.collect()
    assert not open_files(path)


def open_files(path: Path) -> list[str]:
    """What this process has open of a database."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return [name for name in found if name.startswith(str(path))]


@needs_fork
def test_a_child_forked_while_threads_write_works_and_nothing_is_lost(
    path: Path, store: SqliteTokenStore
) -> None:
    """Children work at once, while the parent's threads go on, and nothing acknowledged is lost."""
    stop = threading.Event()
    written = [0] * 4

    def write(thread: int) -> None:
        while not stop.is_set():
            number = written[thread] + 1
            store.insert([a_record(10_000 * (thread + 1) + number)], [an_event(number, stream=thread + 1)])
            store.get([a_record(1).token])
            written[thread] = number

    def child(number: int) -> None:
        for n in range(10):
            record = a_record(1_000_000 + 100 * number + n)
            assert store.insert([record], []) == []
            assert store.get([record.token]) == [record]
        store.close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(8):
        time.sleep(0.02)
        children.append(in_child(functools.partial(child, number)))
    well = [ended_well(pid) for pid in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert all(well)
    assert all(written)
    assert len(store.scan()) == sum(written) + 80
    store.close()
    assert sound(path)


@needs_fork
def test_a_child_outlives_its_parents_store(path: Path, store: SqliteTokenStore) -> None:
    """The parent's last close must not delete the write-ahead log that the child writes to."""
    store.insert([a_record(0)], [])
    closed_in, closed_out = os.pipe()
    ready_in, ready_out = os.pipe()

    def child() -> None:
        store.insert([a_record(1)], [])
        os.write(ready_out, b"!")
        os.read(closed_in, 1)
        for n in range(2, 6):
            store.insert([a_record(n)], [])

    pid = in_child(child)
    os.read(ready_in, 1)
    store.close()
    os.write(closed_out, b"!")
    assert ended_well(pid)
    for end in (closed_in, closed_out, ready_in, ready_out):
        os.close(end)
    with closing(SqliteTokenStore(path)) as other:
        assert other.scan() == [a_record(n) for n in range(6)]


@needs_fork
def test_a_child_that_python_did_not_see_forked_is_refused_while_connections_are_open(
    path: Path, store: SqliteTokenStore
) -> None:
    """With connections open the child is refused and the parent goes on; with none, both work."""
    fork = ctypes.PyDLL(None).fork
    store.scan()

    def refused() -> None:
        with pytest.raises(TokenStoreError, match="forked"):
            store.scan()
        with pytest.raises(TokenStoreError, match="forked"):
            store.insert([a_record(1)], [])

    assert ended_well(in_child(refused, fork))
    assert store.insert([a_record(2)], []) == []
    with closing(SqliteTokenStore(path)) as unused:
        store.close()
        assert ended_well(in_child(lambda: unused.append([an_event(1)]), fork))
        assert unused.events(stream=an_event(1).stream) == [an_event(1)]


def test_no_other_call_begins_once_a_fork_waits_for_the_calls_under_way(tmp_path: Path) -> None:
    """Who gives a connection back does not take it again before the fork has it."""
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        store.provision()
        pool, begun, told = store._pool_here(), threading.Event(), threading.Event()
        order: list[str] = []

        def first(_: object) -> None:
            begun.set()
            assert told.wait(SECONDS_MAX)

        def write() -> None:
            pool.write(first)
            for _ in range(1_000):
                pool.write(lambda _: order.append("a call"))

        def hold() -> None:
            pool.hold(SECONDS_MAX)
            order.append("held")
            pool.release()

        with ThreadPoolExecutor(2) as threads:
            writing = threads.submit(write)
            assert begun.wait(SECONDS_MAX)
            holding = threads.submit(hold)
            while not pool._writers._shut:
                time.sleep(0.001)
            told.set()
            writing.result()
            holding.result()
    assert order[0] == "held"
