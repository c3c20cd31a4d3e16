"""Someone changes the audit trail, or the records that it tells of: `verify_audit` says what, and where."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tokenvault as tv
import tokenvault.audit.verify.misplaced
from tests import vaults
from tests.vaults import VISA, issue, use
from tokenvault import FindingKind
from tokenvault.audit.event import Event, Outcome
from tokenvault.audit.verify.pages import stream_pages
from tokenvault.audit.verify.trusted_keys import TrustedKeys
from tokenvault.keys import KeyStore
from tokenvault.stores.port import SealedEvent, TokenStore
from tokenvault.stores.sqlite.store import SqliteTokenStore

LIMITED = tv.Domain(limits=(tv.Limit(uses=5),))
OFTEN = tv.CheckpointPolicy(events=4)
FINDINGS_MAX = 10_000
Place = tuple[str, int]


def open_vault(keys: KeyStore, store: TokenStore, policy: tv.CheckpointPolicy = OFTEN) -> tv.Vault:
    return tv.Vault(keys, store, programs=vaults.PROGRAMS, requestors=vaults.REQUESTORS, checkpoints=policy)


def work(vault: tv.Vault) -> list[str]:
    """Ten events: two tokens issued and used, a use denied, and a token suspended."""
    tokens = [issue(vault, domain=LIMITED).token for _ in range(2)]
    for token in tokens:
        vault.detokenize(token, use(1))
        vault.detokenize(token, use(2))
        with pytest.raises(tv.DomainRestrictionError):
            vault.detokenize(token, use(3, requestor=vaults.ACQUIRER))
    vault.suspend(tokens[0], by=tv.Actor.ISSUER)
    vault.resume(tokens[0], by=tv.Actor.ISSUER)
    return tokens


class Shell:
    """A database shell on a copy of a vault's file: three streams, the second of them without an end."""

    def __init__(self, path: Path, keys: KeyStore) -> None:
        self.path, self.keys = path, keys
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.streams = [name for (name,) in self.sql.execute("SELECT DISTINCT stream FROM events ORDER BY 1")]
        assert len(self.streams) == 3

    def verify(self, **arguments: Any) -> tv.AuditReport:
        with closing(SqliteTokenStore(self.path)) as store:
            return tv.verify_audit(store, **({"keys": self.keys} | arguments))

    def findings(self, **arguments: Any) -> list[tuple[FindingKind, str | None, int | None]]:
        return [(each.kind, each.stream, each.number) for each in self.verify(**arguments).findings]

    def numbers(self, stream: bytes) -> list[int]:
        found = self.sql.execute("SELECT number FROM events WHERE stream = ? ORDER BY number", (stream,))
        return [number for (number,) in found]

    def change(self, stream: bytes, number: int, column: str, value: bytes | int) -> None:
        changed = self.sql.execute(
            f"UPDATE events SET {column} = ? WHERE stream = ? AND number = ?", (value, stream, number)
        )
        assert changed.rowcount == 1

    def remove(self, stream: bytes, above: int, up_to: int = 2**62) -> None:
        self.sql.execute(
            "DELETE FROM events WHERE stream = ? AND number > ? AND number <= ?", (stream, above, up_to)
        )

    def copy(self, source: bytes, number: int, stream: bytes, to: int) -> None:
        self.sql.execute(
            "INSERT INTO events (stream, number, reference, body, mac)"
            " SELECT ?, ?, reference, body, mac FROM events WHERE stream = ? AND number = ?",
            (stream, to, source, number),
        )


@pytest.fixture(scope="module")
def original(keys: KeyStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trail") / "vault.db"
    with closing(SqliteTokenStore(path)) as store:
        tv.provision(keys, store)
        with open_vault(keys, store) as vault:
            work(vault)
        work(open_vault(keys, store))  # never closed
        with open_vault(keys, store) as vault:
            work(vault)
    return path


@pytest.fixture
def shell(original: Path, keys: KeyStore, tmp_path: Path) -> Iterator[Shell]:
    shutil.copy(original, tmp_path / "vault.db")
    opened = Shell(tmp_path / "vault.db", keys)
    yield opened
    opened.sql.close()


def public(shell: Shell) -> dict[str, str | None]:
    """What a verifier without keys has."""
    return {"keys": None, "public_key": tv.audit_public_key(shell.keys)}


def test_an_untouched_trail_verifies_and_its_checkpoints_are_signed(shell: Shell) -> None:
    report = shell.verify()
    assert report.findings == ()
    assert report.intact
    assert (report.streams, report.records, report.gaps) == (3, 6, 0)
    assert report.events == sum(len(shell.numbers(stream)) for stream in shell.streams)
    assert report.signed == report.checkpoints > 3 + 3
    assert shell.verify(**public(shell)).intact
    assert shell.verify(since=report).intact
    assert shell.verify(since=report.anchor()).intact


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "custody",
    [tv.Custody.IN_PROCESS, pytest.param(tv.Custody.IN_MODULE, marks=pytest.mark.nightly)],
    ids=lambda custody: custody.value,
    indirect=True,
)
@pytest.mark.parametrize("column", ["reference", "body", "mac"])
def test_an_edited_event_is_named(shell: Shell, column: str) -> None:
    """Each event of each stream, one after the other; also with bytes cut off."""
    for stream in shell.streams:
        for number in shell.numbers(stream):
            (value,) = shell.sql.execute(
                f"SELECT {column} FROM events WHERE stream = ? AND number = ?", (stream, number)
            ).fetchone()
            for edited in (value[:-1] + bytes([value[-1] ^ 1]) if value else os.urandom(16), value[:-1]):
                shell.change(stream, number, column, edited)
                if edited != value:
                    assert (FindingKind.EDITED, stream.hex(), number) in shell.findings(), edited
            shell.change(stream, number, column, value)
    assert shell.verify().intact


def test_an_event_put_in_another_place_is_named(shell: Shell) -> None:
    first, second, _ = shell.streams
    unknown = os.urandom(16)
    for stream, number, to, at in (
        (first, 3, first, 100), (second, 5, second, 90), (first, 3, unknown, 3), (second, 6, unknown, 6),
    ):  # fmt: skip
        shell.change(stream, number, "number", at)
        if to != stream:
            shell.change(stream, at, "stream", to)
        found = shell.findings()
        assert (FindingKind.MOVED, to.hex(), at) in found
        assert (FindingKind.REMOVED, stream.hex(), number) in found
        shell.change(to, at, "stream", stream)
        shell.change(stream, at, "number", number)
    assert shell.verify().intact


def test_two_events_that_change_places_are_named(shell: Shell) -> None:
    first, second, third = shell.streams
    for one, other in (((first, 2), (first, 3)), ((first, 4), (third, 8)), ((second, 2), (third, 2))):
        for a, b in ((one, (bytes(16), 1)), (other, one), ((bytes(16), 1), other)):
            shell.sql.execute(
                "UPDATE events SET stream = ?, number = ? WHERE stream = ? AND number = ?", (*b, *a)
            )
        found = shell.findings()
        assert {(FindingKind.MOVED, place[0].hex(), place[1]) for place in (one, other)} <= set(found)
        for a, b in ((one, (bytes(16), 1)), (other, one), ((bytes(16), 1), other)):
            shell.sql.execute(
                "UPDATE events SET stream = ?, number = ? WHERE stream = ? AND number = ?", (*b, *a)
            )
    assert shell.verify().intact


def test_a_removed_event_is_named(shell: Shell) -> None:
    """By its number where a checkpoint commits to it; else by its record's revision, if it tells of a change."""
    for stream in shell.streams:
        numbers = shell.numbers(stream)
        for number in numbers:
            shell.copy(stream, number, bytes(16), 1)
            shell.remove(stream, number - 1, number)
            found = shell.findings()
            if number < numbers[-1] - 3:
                assert (FindingKind.REMOVED, stream.hex(), number) in found
            kinds = {kind for kind, of, _ in found if of != bytes(16).hex()}
            assert kinds <= {FindingKind.REMOVED, FindingKind.TRUNCATED, FindingKind.EDITED}
            shell.copy(bytes(16), 1, stream, number)
            shell.remove(bytes(16), 0)
    assert shell.verify().intact


def test_an_inserted_event_is_named(shell: Shell) -> None:
    """A copy of a genuine one, behind the end or in a stream of its own, and one made by hand."""
    first, second, _ = shell.streams
    unknown = os.urandom(16)
    for stream in (first, second, unknown):
        number = max(shell.numbers(stream), default=0) + 1
        shell.copy(first, 3, stream, number)
        assert (FindingKind.INSERTED, stream.hex(), number) in shell.findings()
        shell.change(stream, number, "mac", os.urandom(16))
        made = FindingKind.EDITED if stream == second else FindingKind.INSERTED
        assert (made, stream.hex(), number) in shell.findings()
        shell.remove(stream, number - 1)
    assert shell.verify().intact


def test_a_stream_cut_short_is_named(shell: Shell) -> None:
    """Where another stream knows its last checkpoint, from the first event that is missing; else by records."""
    first, second, third = shell.streams
    before = shell.verify()
    for stream, named in ((first, True), (second, True), (third, False)):
        last = shell.numbers(stream)[-1]
        for number in range(1, last - 2):
            shutil.copy(shell.path, shell.path.with_suffix(".kept"))
            shell.remove(stream, number)
            found = shell.findings()
            if named:
                assert (FindingKind.TRUNCATED, stream.hex(), number + 1) in found
            else:
                assert any(kind is FindingKind.REMOVED for kind, _, _ in found)
            assert (FindingKind.TRUNCATED, stream.hex(), number + 1) in shell.findings(since=before)
            restore(shell)
    assert shell.verify().intact


def restore(shell: Shell) -> None:
    with closing(sqlite3.connect(shell.path.with_suffix(".kept"))) as kept:
        rows = kept.execute("SELECT * FROM events").fetchall()
    shell.sql.execute("BEGIN")
    shell.sql.execute("DELETE FROM events")
    shell.sql.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
    shell.sql.execute("COMMIT")


def test_a_stream_that_is_gone_is_named(shell: Shell) -> None:
    before = shell.verify()
    for index, stream in enumerate(shell.streams):
        shutil.copy(shell.path, shell.path.with_suffix(".kept"))
        shell.remove(stream, 0)
        found = shell.findings()
        if index < 2:
            assert (FindingKind.STREAM_DROPPED, stream.hex(), None) in found
        else:  # no other stream came after it: its records tell
            assert [kind for kind, _, _ in found] == [FindingKind.REMOVED] * 2
        assert (FindingKind.STREAM_DROPPED, stream.hex(), None) in shell.findings(since=before.anchor())
        restore(shell)
    shell.sql.execute("DELETE FROM events")
    shell.sql.execute("DELETE FROM tokens")
    assert shell.verify().intact, "an empty database"
    assert len(shell.findings(since=before)) == 3


def test_a_record_put_back_is_named_at_once_and_for_ever(
    keys: KeyStore, store: TokenStore, tmp_path: Path
) -> None:
    """While its events tell of a later revision, and after the vault wrote that revision again."""
    path = tmp_path / "other.db"
    with (
        closing(SqliteTokenStore(path)) as other,
        closing(sqlite3.connect(path, isolation_level=None)) as sql,
    ):
        tv.provision(keys, other)
        with open_vault(keys, other) as vault:
            token = issue(vault, domain=LIMITED)
            older = sql.execute("SELECT * FROM tokens").fetchone()
            vault.detokenize(token.token, use(1))
            sql.execute("DELETE FROM tokens")
            sql.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", older)
            findings = tv.verify_audit(other, keys=keys).findings
            assert [(each.kind, each.reference, each.revision) for each in findings] == [
                (FindingKind.REVISION_FELL, token.reference, 1)
            ]
            for number in (2, 3):
                vault.detokenize(token.token, use(number))
        findings = tv.verify_audit(other, keys=keys).findings
        assert [(each.kind, each.reference, each.revision) for each in findings] == [
            (FindingKind.REVISION_FELL, token.reference, 2)
        ]


def test_a_record_removed_or_planted_is_named(shell: Shell) -> None:
    token, reference = shell.sql.execute("SELECT token, reference FROM tokens").fetchone()
    row = shell.sql.execute("SELECT * FROM tokens WHERE token = ?", (token,)).fetchone()
    shell.sql.execute("DELETE FROM tokens WHERE token = ?", (token,))
    (finding,) = shell.verify().findings
    assert (finding.kind, finding.reference) == (FindingKind.RECORD_REMOVED, reference.hex())
    columns = f"({', '.join('?' * len(row))})"
    shell.sql.execute(f"INSERT INTO tokens VALUES {columns}", row)
    for planted, kind in (
        (("9" * 19, *row[1:]), FindingKind.INSERTED),
        (("9" * 19, os.urandom(16), *row[2:]), FindingKind.REMOVED),
    ):
        shell.sql.execute(f"INSERT INTO tokens VALUES {columns}", planted)
        (finding,) = shell.verify().findings
        assert (finding.kind, finding.reference) == (kind, planted[1].hex())
        shell.sql.execute("DELETE FROM tokens WHERE token = ?", (planted[0],))
    assert shell.verify().intact


def test_any_number_of_changes_of_one_record_that_no_event_tells_of_is_named(shell: Shell) -> None:
    """Also far more than are looked at one by one."""
    (reference,) = shell.sql.execute("SELECT reference FROM tokens").fetchone()
    (revision_now,) = shell.sql.execute(
        "SELECT revision FROM tokens WHERE reference = ?", (reference,)
    ).fetchone()
    for revision in (revision_now + 1, revision_now + 9_999, revision_now + 20_000, 2**62):
        shell.sql.execute("UPDATE tokens SET revision = ? WHERE reference = ?", (revision, reference))
        (finding,) = shell.verify().findings
        assert (finding.kind, finding.reference) == (FindingKind.REMOVED, reference.hex())
        assert finding.revision == revision_now + 1


def test_a_stream_that_differs_from_its_anchor_keeps_the_anchor(shell: Shell) -> None:
    """So that the next verification finds the same again."""
    anchor = json.loads(shell.verify().anchor())
    name = shell.streams[1].hex()
    anchor["streams"][name]["root"] = "00" * 32
    report = shell.verify(since=json.dumps(anchor))
    assert [(each.kind, each.stream) for each in report.findings] == [(FindingKind.EDITED, name)]
    assert json.loads(report.anchor()) == anchor


WRONG_SHAPES: dict[str, bytes] = {"mac": bytes(15), "reference": bytes(15), "body": bytes(2**20 + 1)}


@pytest.mark.parametrize("column", WRONG_SHAPES)
@pytest.mark.parametrize("given", ["keys", "public key"])
def test_an_event_of_another_shape_is_named_at_its_number_and_those_behind_it_are_read(
    shell: Shell, column: str, given: str
) -> None:
    stream = shell.streams[0]
    (number,) = [  # it changed no record
        row.number
        for row in (SealedEvent(*fields) for fields in shell.sql.execute(
            "SELECT stream, number, reference, body, mac FROM events WHERE stream = ?", (stream,)
        ))
        if Event.parse(row).outcome is Outcome.DENIED and row.number > 8
    ]  # fmt: skip
    arguments: dict[str, Any] = {} if given == "keys" else public(shell)
    before = shell.verify(**arguments)
    shell.change(stream, number, column, WRONG_SHAPES[column])
    report = shell.verify(**arguments)
    assert [(each.kind, each.stream, each.number, each.last) for each in report.findings] == [
        (FindingKind.EDITED, stream.hex(), number, None)
    ]
    assert report.findings[0].message == "this row has another shape than was written"
    assert (report.events, report.checkpoints) == (before.events - 1, before.checkpoints)


def test_an_event_of_another_shape_that_another_stream_refers_to_is_another_one(shell: Shell) -> None:
    stream = shell.streams[0]
    end = shell.numbers(stream)[-1]
    shell.change(stream, end, "mac", bytes(15))
    report = shell.verify()
    assert [(each.kind, each.stream, each.number, each.message) for each in report.findings] == [
        (FindingKind.EDITED, stream.hex(), end, message)
        for message in (
            "this row has another shape than was written",
            "another stream refers to an event here, which is another one",
        )
    ]


def test_malformed_events_are_each_named_and_cost_few_reads(shell: Shell) -> None:
    """Rows read stay in proportion to the rows that there are."""
    stream, rows, every = os.urandom(16), 4_000, 100
    shell.sql.execute("BEGIN")
    shell.sql.executemany(
        "INSERT INTO events (stream, number, reference, body, mac) VALUES (?, ?, ?, ?, ?)",
        [(stream, n, b"", b"", bytes(16 if n % every else 15)) for n in range(1, rows + 1)],
    )
    shell.sql.execute("COMMIT")
    limits = 0

    class Counting(SqliteTokenStore):
        def _events_of_stream(self, stream: bytes, after: int, limit: int) -> list[SealedEvent]:
            nonlocal limits
            limits += limit
            return super()._events_of_stream(stream, after, limit)

    with closing(Counting(shell.path)) as store:
        pages = list(stream_pages(store, stream))
    assert [each for each in pages if isinstance(each, int)] == list(range(every, rows + 1, every))
    read = [row.number for page in pages if not isinstance(page, int) for row in page]
    assert read == [n for n in range(1, rows + 1) if n % every]
    assert limits < 10 * rows


def test_planted_streams_are_all_named_and_few_are_looked_into(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that time grows with the number of planted events, not with its square."""
    monkeypatch.setattr(tokenvault.audit.verify.misplaced, "INVALID_MACS_OF_ALL_STREAMS_MAX", 10)
    tried = 0

    first_genuine = tokenvault.audit.verify.misplaced._first_genuine

    def counted(rows: list[SealedEvent], trusted: TrustedKeys) -> SealedEvent | None:
        nonlocal tried
        tried += len(rows)
        return first_genuine(rows, trusted)

    monkeypatch.setattr(tokenvault.audit.verify.misplaced, "_first_genuine", counted)
    planted = [os.urandom(16) for _ in range(40)]
    shell.sql.executemany(
        "INSERT INTO events (stream, number, reference, body, mac) VALUES (?, 1, x'', x'', ?)",
        [(stream, bytes(16)) for stream in planted],
    )
    assert {(stream, number) for _, stream, number in shell.findings()} == {(s.hex(), 1) for s in planted}
    assert 0 < tried <= 10 * 10


def test_a_public_key_alone_shows_what_was_done_to_what_checkpoints_commit_to(shell: Shell) -> None:
    """Between which checkpoints an event was edited; which one is missing; which checkpoint is not genuine."""
    first = shell.streams[0]
    body = shell.sql.execute("SELECT body FROM events WHERE stream = ? AND number = 3", (first,)).fetchone()[
        0
    ]
    shell.change(first, 3, "body", body[:1] + bytes(8) + body[9:])
    (finding,) = shell.verify(**public(shell)).findings
    assert (finding.kind, finding.stream) == (FindingKind.EDITED, first.hex())
    assert finding.number is not None
    assert finding.last is not None
    assert finding.number <= 3 <= finding.last < len(shell.numbers(first))
    shell.change(first, 3, "body", body)
    shell.copy(first, 3, bytes(16), 1)
    shell.remove(first, 2, 3)
    assert (FindingKind.REMOVED, first.hex(), 3) in shell.findings(**public(shell))
    shell.copy(bytes(16), 1, first, 3)
    shell.remove(bytes(16), 0)
    last = shell.numbers(first)[-1]
    (body,) = shell.sql.execute(
        "SELECT body FROM events WHERE stream = ? AND number = ?", (first, last)
    ).fetchone()
    shell.change(first, last, "body", body[:-1] + bytes([body[-1] ^ 1]))
    assert (FindingKind.EDITED, first.hex(), last) in shell.findings(**public(shell))


def test_keys_of_another_vault_and_things_that_are_no_keys_are_refused(
    shell: Shell, local_keys: KeyStore
) -> None:
    report = shell.verify(keys=local_keys)
    assert len(report.findings) >= report.events
    for arguments in (
        {"keys": None}, {"public_key": "no key"}, {"public_key": 1}, {"since": "{}"}, {"since": 1}, {"since": "[["},
    ):  # fmt: skip
        with pytest.raises(tv.InvalidInputError):
            shell.verify(**arguments)


def test_tampering_in_postgresql_is_named(keys: KeyStore, postgres_url: str) -> None:
    with closing(tv.open_token_store(postgres_url)) as store:
        tv.provision(keys, store)
        with open_vault(keys, store) as vault:
            work(vault)
        (stream,) = store.streams()
        assert tv.verify_audit(store, keys=keys).intact
        address, _, options = postgres_url.partition("?")
        schema = next(
            part.removeprefix("schema=") for part in options.split("&") if part.startswith("schema=")
        )
        rest = "&".join(part for part in options.split("&") if not part.startswith("schema="))
        with psycopg.connect(f"{address}?{rest}", autocommit=True) as sql:
            sql.execute(f'UPDATE "{schema}".events SET body = body || body WHERE number = 3'.encode())
            (finding,) = tv.verify_audit(store, keys=keys).findings
            assert (finding.kind, finding.stream, finding.number) == (FindingKind.EDITED, stream.hex(), 3)
            sql.execute(f'DELETE FROM "{schema}".events WHERE number = 3'.encode())
            found = tv.verify_audit(store, keys=keys).findings
            assert (FindingKind.REMOVED, stream.hex(), 3) in [(f.kind, f.stream, f.number) for f in found]


def test_a_trail_without_signatures_is_verified_by_its_keys(local_keys: KeyStore, tmp_path: Path) -> None:
    """A key file signs nothing."""
    with closing(SqliteTokenStore(tmp_path / "vault.db")) as store:
        tv.provision(local_keys, store)
        with open_vault(local_keys, store) as vault:
            token = work(vault)[0]
        report = tv.verify_audit(store, keys=local_keys)
        assert report.intact
        assert report.signed == 0
        assert tv.audit_public_key(local_keys) is None
        with closing(sqlite3.connect(tmp_path / "vault.db", isolation_level=None)) as sql:
            sql.execute("UPDATE events SET reference = x'00000000000000000000000000000000' WHERE number = 3")
        assert 3 in [f.number for f in tv.verify_audit(store, keys=local_keys).findings]
        assert VISA not in repr(report) + token


STREAM, ROOT = "0" * 32, "0" * 64


@pytest.mark.parametrize(
    "streams",
    [
        None,
        [],
        {STREAM: None},
        {STREAM: {"size": 1}},
        {STREAM: {"size": 1, "root": ROOT, "more": 1}},
        {STREAM: {"size": -1, "root": ROOT}},
        {STREAM: {"size": 2**63, "root": ROOT}},
        {STREAM: {"size": True, "root": ROOT}},
        {STREAM: {"size": 1, "root": ROOT[1:]}},
        {STREAM: {"size": 1, "root": None}},
        {STREAM[1:]: {"size": 1, "root": ROOT}},
        {"x" * 32: {"size": 1, "root": ROOT}},
    ],
)
def test_an_anchor_is_one_that_a_report_gave(local_keys: KeyStore, streams: object) -> None:
    store = tv.open_token_store("memory:")
    tv.provision(local_keys, store)
    anchor = json.loads(tv.verify_audit(store, keys=local_keys).anchor())
    for text in (json.dumps({**anchor, "streams": streams}), json.dumps(streams), "[" * 100_000):
        with pytest.raises(tv.InvalidInputError, match="what its anchor"):
            tv.verify_audit(store, keys=local_keys, since=text)


def test_findings_beyond_the_most_that_a_report_holds_are_counted(local_keys: KeyStore) -> None:
    store, more = tv.open_token_store("memory:"), 7
    tv.provision(local_keys, store)
    events = [
        SealedEvent(stream=bytes(16), number=number, reference=b"", body=b"no event", mac=bytes(16))
        for number in range(1, FINDINGS_MAX + more + 1)
    ]
    store.append(events[:FINDINGS_MAX])
    store.append(events[FINDINGS_MAX:])
    report = tv.verify_audit(store, keys=local_keys)
    assert not report.intact
    assert len(report.findings) == FINDINGS_MAX
    assert report.findings_omitted >= more
