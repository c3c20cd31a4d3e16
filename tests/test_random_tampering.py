"""Whoever changes the database at random is seen: by verifying the trail, or by the vault that reads it."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest

import tokenvault as tv
from tests import vaults
from tests.editors import Editor, Row, SqliteEditor, postgres_database
from tests.postgres_server import PostgresServer
from tests.random_tampering import KINDS, Meddler
from tests.strategies import NOW_MS
from tests.vaults import ACQUIRER, MASTERCARD, SHOP, VISA, issue, use
from tokenvault.keys import KeyStore
from tokenvault.stores.port import TokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore
from tokenvault.testing.clock import ManualClock

TABLES: Final = ("domains", "event_index", "events", "meta", "token_counts", "tokens")
LATER_MS: Final = 60_000
SHARD: Final[Row] = {"shard": 0}

UNSEEN: Final = {
    "change a stored count": ("threat-model.md", "Can change what `count` tells: no seal covers a count"),
    "remove a stored count": ("threat-model.md", "Can change what `count` tells: no seal covers a count"),
    "remove a named value": ("threat-model.md", "Can remove the key table"),
    "rename a named value": ("threat-model.md", "Can remove the key table"),
}
"""Kinds that nothing sees, and where the documents say so."""

ONLY_WITH_ANCHOR: Final = {
    "remove an event",
    "cut off the end of a stream",
    "drop a stream",
    "remove a checkpoint",
    "replay the database",
}
"""Kinds of which docs/audit.md says that only `since` finds some."""


Copy = tuple[Editor, Callable[[], AbstractContextManager[TokenStore]]]
"""A shell on a copy of the database, and what opens a store over it."""


@attrs.frozen
class Original:
    """A database with some streams, one of them of a vault that was killed; what it was earlier, and its anchor."""

    keys: KeyStore
    copied: Callable[[], AbstractContextManager[Copy]]
    tokens: list[tv.TokenInfo]
    older: dict[str, list[Row]]
    anchor: str

    def tampered(self, kind: str, source: random.Random) -> str | None:
        """Who sees a change of this kind: "verify", "anchor" or "vault"; None for nobody; "" if nothing changed."""
        with self.copied() as (editor, opened):
            before = {table: editor.rows(table) for table in TABLES}
            KINDS[kind](Meddler(editor, source, self.older))
            if all(sorted_rows(editor.rows(table)) == sorted_rows(before[table]) for table in TABLES):
                return ""
            try:
                with opened() as store:
                    return self.seen(store)
            except tv.TokenVaultError:  # also as it is opened
                return "vault"

    def seen(self, store: TokenStore) -> str | None:
        for since, name in ((None, "verify"), (self.anchor, "anchor")):
            report = tv.verify_audit(store, keys=self.keys, since=since)
            if report.findings or report.open_findings:
                return name
        return "vault" if self._refused(store) else None

    def _refused(self, store: TokenStore) -> bool:
        with vaults.open_vault(self.keys, store, ManualClock(NOW_MS + LATER_MS)) as vault:
            return any(refuses(vault, info) for info in self.tokens)


@contextmanager
def copied_file(path: Path) -> Iterator[Copy]:
    copy = path.with_name("tampered.db")
    shutil.copyfile(path, copy)
    with closing(SqliteEditor(copy)) as editor:
        yield editor, lambda: closing(SqliteTokenStore(copy))


def sorted_rows(rows: list[Row]) -> list[str]:
    return sorted(map(repr, rows))


def refuses(vault: tv.Vault, info: tv.TokenInfo) -> bool:
    """Whether a vault that reads what is kept of a token finds that it is not what was written."""
    calls: tuple[Callable[[], object], ...] = (
        lambda: vault.get(info.token),
        lambda: vault.get(info.reference),
        lambda: vault.check(info.token, use("read")),
        lambda: vault.history(info.reference),
    )
    for call in calls:
        with suppress(tv.TokenNotFoundError):
            try:
                call()
            except tv.IntegrityError:
                return True
    return False


@pytest.fixture(scope="module")
def on_sqlite(local_keys: KeyStore) -> Iterator[Original]:
    shm = Path("/dev/shm")  # noqa: S108 # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield made(local_keys, Path(folder))


@pytest.fixture(scope="module")
def on_postgres(on_sqlite: Original, postgres_server: PostgresServer) -> Iterator[Original]:
    """The same rows in PostgreSQL, put back before each change."""
    with on_sqlite.copied() as (file, _):
        rows = {table: file.rows(table) for table in TABLES}
    with postgres_database(postgres_server) as (store, shell):
        store.provision()
        with shell() as editor:
            older, rows = in_postgres(editor, on_sqlite.older), in_postgres(editor, rows)

        @contextmanager
        def copied() -> Iterator[Copy]:
            with shell() as editor:
                for table in TABLES:
                    editor.restore(table, rows[table])
                yield editor, lambda: nullcontext(store)

        yield attrs.evolve(on_sqlite, copied=copied, older=older)


def in_postgres(editor: Editor, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows of a SQLite file as PostgreSQL has them: a count is there in shards."""
    for table in TABLES:
        editor.restore(table, [{**row, **SHARD} if table == "token_counts" else row for row in rows[table]])
    return {table: editor.rows(table) for table in TABLES}


@pytest.fixture
def original(request: pytest.FixtureRequest) -> Original:
    """On SQLite or on PostgreSQL, as the test says."""
    found: Original = request.getfixturevalue(f"on_{request.param}")
    return found


def made(keys: KeyStore, folder: Path) -> Original:
    clock = ManualClock(NOW_MS)
    with closing(SqliteTokenStore(folder / "vault.db")) as store, closing_shell(folder / "vault.db") as shell:
        tv.provision(keys, store)
        domains = (None, tv.Domain(requestors={SHOP, ACQUIRER}), tv.Domain(limits=(tv.Limit(uses=9),)))
        with vaults.open_vault(keys, store, clock) as vault:
            tokens = [issue(vault, pan, domain=each) for each in domains for pan in (VISA, MASTERCARD)]
            vault.detokenize(tokens[0].token, use(1))
            vault.suspend(tokens[1].token, by=tv.Actor.ISSUER)
        older = {table: shell.rows(table) for table in TABLES}
        clock.advance(1)
        killed = vaults.open_vault(keys, store, clock)
        killed.resume(tokens[1].token, by=tv.Actor.ISSUER)
        for number, info in enumerate(tokens):
            killed.detokenize(info.token, use(f"more-{number}"))
        shell.execute("VACUUM INTO ?", (str(folder / "killed.db"),))
        killed.close()
    with closing(SqliteTokenStore(folder / "killed.db")) as store:
        clock.advance(1)
        last = vaults.open_vault(keys, store, clock)
        last.detokenize_many([(info.token, use(f"batch-{info.token}")) for info in tokens])
        last.delete(tokens[-1].token)
        last.detokenize(tokens[0].token, use("end"))  # it changes no record: the anchor alone knows of it
        anchor = tv.verify_audit(store, keys=keys).anchor()
        with closing_shell(folder / "killed.db") as shell:
            shell.execute("VACUUM INTO ?", (str(folder / "original.db"),))
        last.close()
    return Original(keys, partial(copied_file, folder / "original.db"), tokens, older, anchor)


def closing_shell(path: Path) -> closing[SqliteEditor]:
    return closing(SqliteEditor(path))


@pytest.mark.parametrize(
    ("original", "rounds"),
    [
        ("sqlite", 56),
        ("postgres", 8),
        pytest.param("sqlite", 2_000, marks=pytest.mark.nightly),
        pytest.param("postgres", 2_000, marks=pytest.mark.nightly),
    ],
    indirect=["original"],
)
def test_no_change_at_random_stays_unseen_that_the_documents_do_not_name(
    original: Original, rounds: int
) -> None:
    source, seen = random.Random(f"tampering {rounds}"), Counter[tuple[str, str | None]]()
    kinds = source.sample(list(KINDS), len(KINDS))
    for number in range(rounds):
        kind = kinds[number % len(kinds)]
        for _ in range(20):
            by = original.tampered(kind, source)
            if by != "":
                break
        seen[kind, by] += 1
    print(rounds, "rounds:", sorted(seen.items(), key=repr))
    unseen = {kind for kind, by in seen if not by}
    assert unseen <= UNSEEN.keys(), seen
    assert {kind for kind, by in seen if by == "anchor"} <= ONLY_WITH_ANCHOR
    assert {kind for kind, _ in seen} == set(kinds[:rounds])


@pytest.mark.parametrize("original", ["sqlite", "postgres"], indirect=True)
def test_what_was_not_changed_is_refused_by_nobody(original: Original) -> None:
    with original.copied() as (_, opened), opened() as store:
        assert original.seen(store) is None


def test_the_documents_name_each_kind_that_nothing_sees() -> None:
    docs = Path(__file__).parent.parent / "docs"
    for page, sentence in UNSEEN.values():
        assert sentence in (docs / page).read_text(encoding="utf-8")
