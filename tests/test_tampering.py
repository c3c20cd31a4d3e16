"""Someone edits the database: every column of every table, to many values. No read then gives a card.

What is stated here, for a row of `tokens` of which one column was changed:

- found by its token, by its reference or by its card: IntegrityError;
- no longer found, because what it is looked up by was changed: TokenNotFoundError, or a list without it;
- a convergent card is never given a second token while its row is there.

And what can not be seen in a row: that it is gone, or that it is an older one that the vault wrote itself. The
audit trail shows those.
"""

from __future__ import annotations

import functools
import itertools
import random
import string
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

import tokenvault as tv
from tests import vaults
from tests.editors import (
    Editor,
    NewDatabase,
    Row,
    SqliteEditor,
    Value,
    postgres_database,
    sqlite_database,
)
from tests.vaults import ACQUIRER, MASTERCARD, SHOP, VISA, issue, use
from tokenvault.audit.batch_event import items, parse
from tokenvault.audit.event import Event, Outcome
from tokenvault.keys import KeyStore
from tokenvault.stores.port import TokenStore

T = TypeVar("T")

DOMAIN = tv.Domain(
    merchants={"M-1"}, limits=(tv.Limit(uses=3), tv.Limit(amount=tv.Money(1_000, "EUR"))), requestors={SHOP}
)
INTEGER_MAX = 2**63 - 1


def good(number: int | str) -> tv.Transaction:
    return use(number, merchant="M-1", amount=tv.Money(5, "EUR"))


def other_values(value: Value, neighbors: list[Value], source: random.Random) -> Iterator[Value | None]:
    """Many values in place of one: of its own type, and a few of others."""
    yield None
    yield from neighbors
    if isinstance(value, int):
        yield from (
            value - 1,
            value + 1,
            0,
            1,
            -1,
            2,
            -value,
            2**31,
            2**32 + value,
            INTEGER_MAX,
            -INTEGER_MAX - 1,
        )
        yield from (value ^ (1 << bit) for bit in range(0, 63, 5))
        yield from (source.randrange(INTEGER_MAX) for _ in range(10))
        yield from ("", "x", str(value + 1), b"", b"1")
    elif isinstance(value, str):
        yield from (
            "",
            " ",
            value + " ",
            " " + value,
            value + "\n",
            value + "\0",
            value[:-1],
            value[1:],
            value * 2,
        )
        yield from (value.swapcase(), value[::-1], value[:3], "\0", "9" * 13, "9" * 19, "x" * 64, "x" * 65)
        for place, character in enumerate(value):
            yield from (
                value[:place] + other + value[place + 1 :] for other in source.sample(string.digits, 3)
            )
            if character.isdigit():
                yield value[:place] + chr(0x0660 + int(character)) + value[place + 1 :]
                yield value[:place] + chr(0xFF10 + int(character)) + value[place + 1 :]
            yield value[:place] + value[place + 1 :]
        yield from ("".join(source.choices(string.printable, k=len(value))) for _ in range(10))
        yield from (0, 5, b"", value.encode())
    else:
        yield from (
            b"",
            value[:-1],
            value[1:],
            value + b"\0",
            value * 2,
            bytes(len(value)),
            b"\xff" * len(value),
        )
        yield from (value[::-1], bytes(4_096), bytes(4_097), bytes(70_000))
        for place in range(len(value)):
            flipped = value[place] ^ (1 << source.randrange(8))
            yield value[:place] + bytes((flipped,)) + value[place + 1 :]
        yield from (source.randbytes(len(value)) for _ in range(10))
        yield from (0, "", "text", value.hex())


def seen(call: Callable[[], T]) -> T | type[tv.TokenVaultError]:
    """What a call gives, or the class of its error. What is none of the library's fails the test."""
    try:
        return call()
    except tv.TokenVaultError as error:
        failure = error
    assert VISA not in str(failure)
    assert MASTERCARD not in str(failure)
    return type(failure)


def reference_of(row: Row) -> str:
    reference = row["reference"]
    assert isinstance(reference, bytes)
    return reference.hex()


@attrs.frozen
class Scene:
    """A vault with tokens of every kind, and a shell on its file."""

    keys: KeyStore
    store: TokenStore
    vault: tv.Vault
    editor: Editor
    in_module: bool
    limited: tv.TokenInfo
    convergent: tv.TokenInfo
    suspended: tv.TokenInfo
    deleted: tv.TokenInfo
    other: tv.TokenInfo

    @property
    def quick(self) -> bool:
        return isinstance(self.editor, SqliteEditor) and not self.in_module

    def share(self, values: Iterable[T]) -> Iterable[T]:
        """All values, or where each read is slow, every fourth."""
        return values if self.quick else itertools.islice(values, 0, None, 4)

    def fresh_vault(self) -> tv.Vault:
        """One that has read nothing yet."""
        return vaults.open_vault(self.keys, self.store)

    def pan(self, token: str) -> str:
        return MASTERCARD if token in (self.suspended.token, self.other.token) else VISA

    def events(self) -> list[Event]:
        rows = [row for name in self.store.streams() for row in self.store.events(stream=name)]
        return [event for row in rows for event in items(parse(row))]

    def token_row(self, info: tv.TokenInfo) -> Row:
        row = self.editor.row("tokens", info.token)
        assert row is not None
        return row


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a disk in memory where there is one: thousands of fsync calls prove nothing here."""
    shm = Path("/dev/shm")  # noqa: S108 # a fresh folder in it
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        yield Path(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, folder: Path) -> NewDatabase:
    """Makes empty databases, each with a shell on it."""
    if request.param == "sqlite":
        return functools.partial(sqlite_database, folder)
    return functools.partial(postgres_database, request.getfixturevalue("postgres_server"))


@pytest.fixture
def scene(keys: KeyStore, custody: tv.Custody, database: NewDatabase) -> Iterator[Scene]:
    with database() as (store, new_editor):
        tv.provision(keys, store)
        with new_editor() as editor, vaults.open_vault(keys, store) as vault:
            limited = issue(vault, domain=DOMAIN, par="P" * 29, assurance="22", token_expiry="2028-02")
            vault.detokenize(limited.token, good("before"))
            convergent = issue(vault, program="card-on-file")
            suspended = issue(vault, MASTERCARD, domain=tv.Domain(requestors={SHOP, ACQUIRER}))
            vault.suspend(suspended.token, by=tv.Actor.ISSUER)
            deleted = issue(vault, domain=DOMAIN)
            vault.delete(deleted.token)
            other = issue(vault, MASTERCARD, program="card-on-file")
            in_module = custody is tv.Custody.IN_MODULE
            yield Scene(keys, store, vault, editor, in_module, limited, convergent, suspended, deleted, other)


# One column of one token record.


def assert_reads_refuse(scene: Scene, row: Row, column: str, changed: Row) -> None:
    """Every way to read the row of which this column is another now: see the head of this file."""
    vault, token, empty = scene.vault, str(row["token"]), changed["token"] == ""
    standing = scene.editor.rows("tokens")
    by_token = tv.TokenNotFoundError if column == "token" else tv.IntegrityError
    assert seen(lambda: vault.detokenize(token, good("after"))) is by_token
    assert seen(lambda: vault.check(token, good("after"))) is by_token
    assert seen(lambda: vault.get(token)) is by_token
    assert seen(lambda: vault.suspend(token, by=tv.Actor.VAULT)) is by_token
    assert seen(lambda: vault.update_domain(token, None)) is by_token
    by_reference = tv.TokenNotFoundError if column == "reference" else tv.IntegrityError
    assert seen(lambda: vault.get(reference_of(row))) is by_reference
    if column == "token":  # found under the new one, where that could be a token at all
        possible = 13 <= len(str(changed["token"])) <= 19 and set(str(changed["token"])) <= set(string.digits)
        expected: type[tv.TokenVaultError] = tv.IntegrityError if possible else tv.InvalidInputError
        if len(str(changed["token"])) == 32 and set(str(changed["token"])) <= set("0123456789abcdef"):
            expected = tv.TokenNotFoundError  # it could be a reference
        assert seen(lambda: vault.detokenize(str(changed["token"]), good("after"))) is expected
    # By card. An empty token sorts before every page, so the row is found by no card.
    listed = seen(lambda: vault.tokens_of(scene.pan(token)))
    if token == scene.deleted.token and listed is tv.IntegrityError:
        assert column == "pan_fingerprint", "a tombstone is found by no card, unless it is put beside one"
    elif token == scene.deleted.token or column == "pan_fingerprint" or empty:
        assert isinstance(listed, list)
        assert token not in [info.token for info in listed]
    else:
        assert listed is tv.IntegrityError
    assert scene.editor.rows("tokens") == standing, "a refused row stays as it was found"
    if token == scene.convergent.token:
        again = seen(lambda: issue(vault, VISA, program="card-on-file"))
        if empty:  # as if the row were gone: the card gets its own token again, never another
            assert isinstance(again, tv.TokenInfo)
            assert again.token == token
        else:
            assert again is tv.IntegrityError
            assert scene.editor.rows("tokens") == standing


@pytest.mark.unmeasured
@pytest.mark.parametrize("victim", ["limited", "convergent", "suspended", "deleted"])
@pytest.mark.parametrize(
    "every_value", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["quick", "every"]
)
def test_any_column_of_a_token_record_changed_to_anything_gives_no_card(
    scene: Scene, victim: str, every_value: bool
) -> None:
    """Every value where reads are quick, by night everywhere; else every fourth."""
    source = random.Random(victim)
    every = every_value or scene.quick
    row = scene.token_row(getattr(scene, victim))
    genuine = scene.editor.rows("tokens")
    tried = dict.fromkeys(scene.editor.columns("tokens"), 0)
    for column in tried:
        neighbors = [other[column] for other in genuine if other != row]
        values = other_values(row[column], neighbors, source)
        for value in values if every else scene.share(values):
            changed = scene.editor.change("tokens", row, column, value)
            if changed is not None:
                tried[column] += 1
                assert_reads_refuse(scene, row, column, changed)
                scene.editor.restore("tokens", genuine)
    assert set(tried) >= {
        "token",
        "reference",
        "pan_fingerprint",
        "requestor",
        "program",
        "revision",
        "body",
        "seal",
    }
    short = {"customer", "last4_key", "status", "created_ms"}  # empty, or a number: little else fits
    assert all(count >= (1 if name in short else 4) for name, count in tried.items()), tried
    assert sum(tried.values()) >= 110, tried
    if every:
        assert all(count >= (4 if name in short else 20) for name, count in tried.items()), tried
        assert sum(tried.values()) >= 400, tried
    assert Outcome.TAMPERED in {event.outcome for event in scene.events()}
    assert scene.vault.detokenize(scene.limited.token, good("after")).pan.reveal() == VISA


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_text_that_is_no_text_is_refused(scene: Scene) -> None:
    """SQLite keeps bytes that are not UTF-8 in a text column without a word. PostgreSQL takes none."""
    assert isinstance(scene.editor, SqliteEditor)
    genuine = scene.editor.rows("tokens")
    row = scene.token_row(scene.convergent)
    texts = [name for name, kind in scene.editor.columns("tokens").items() if kind == "TEXT"]
    assert len(texts) == 4
    for column in texts:
        changed = scene.editor.change_to_no_text("tokens", row, column)
        if column != "token":
            assert_reads_refuse(scene, row, column, changed)
        else:
            assert seen(lambda: scene.vault.get(scene.convergent.token)) is tv.TokenNotFoundError
            for call in (
                lambda: scene.vault.get(scene.convergent.reference),
                lambda: scene.vault.tokens_of(VISA),
                lambda: issue(scene.vault, VISA, program="card-on-file"),
            ):
                assert seen(call) is tv.IntegrityError
        scene.editor.restore("tokens", genuine)


# Genuine parts in the wrong place.


@pytest.mark.parametrize(
    "columns",
    [
        ("seal",),
        ("body",),
        ("body", "seal"),
        ("pan_fingerprint",),
        ("reference",),
        ("pan_fingerprint", "body", "seal"),
        ("reference", "pan_fingerprint", "requestor", "program", "revision", "key_version", "body", "seal"),
    ],
)
def test_what_is_sealed_for_one_token_opens_for_no_other(scene: Scene, columns: tuple[str, ...]) -> None:
    """A ciphertext moved with any of what belongs to it, up to whole rows that change their tokens."""
    infos = [scene.limited, scene.convergent, scene.suspended, scene.deleted, scene.other]
    genuine = scene.editor.rows("tokens")
    tried = 0
    for one in infos:
        for two in infos:
            if one.token < two.token:
                row, other = scene.token_row(one), scene.token_row(two)
                scene.editor.swap("tokens", row, other, columns)
                if any(row[column] != other[column] for column in columns):
                    for token in (one.token, two.token):
                        detokenized = seen(functools.partial(scene.vault.detokenize, token, good("x")))
                        got = seen(functools.partial(scene.vault.get, token))
                        assert (detokenized, got) == (tv.IntegrityError, tv.IntegrityError)
                        tried += 1
                scene.editor.restore("tokens", genuine)
    assert tried >= 10


def test_a_copy_of_a_row_under_another_token_is_refused(scene: Scene) -> None:
    """A second token for the card, where the database's owner makes one."""
    row = scene.token_row(scene.limited)
    forged = {**row, "token": "9999130000000003"}
    scene.editor.put("tokens", forged)
    assert seen(lambda: scene.vault.detokenize("9999130000000003", good("x"))) is tv.IntegrityError
    assert seen(lambda: scene.vault.tokens_of(VISA)) is tv.IntegrityError
    assert scene.vault.detokenize(scene.limited.token, good("x")).pan.reveal() == VISA


def test_a_row_that_another_vault_sealed_is_refused(
    scene: Scene, local_keys: KeyStore, database: NewDatabase
) -> None:
    with database() as (store, new_editor):
        tv.provision(local_keys, store)
        with new_editor() as editor, vaults.open_vault(local_keys, store) as vault:
            foreign = issue(vault)
            (row,) = editor.rows("tokens")
    scene.editor.put("tokens", row)
    assert seen(lambda: scene.vault.detokenize(foreign.token, use())) is tv.IntegrityError
    assert seen(lambda: scene.vault.get(foreign.reference)) is tv.IntegrityError


def test_an_older_genuine_row_put_back_is_taken_and_the_events_show_it(scene: Scene) -> None:
    """The one thing that a seal can not show: uses counted since are forgotten, a deletion is undone.

    What shows it is the audit trail: the record's revision fell below one that an event has noted.
    """
    vault, token = scene.vault, scene.limited.token
    older = scene.token_row(scene.limited)
    vault.detokenize(token, good("second"))
    vault.detokenize(token, good("third"))
    with pytest.raises(tv.DomainRestrictionError):
        vault.detokenize(token, good("fourth"))
    vault.delete(token)
    highest = vault.get(token).revision
    scene.editor.remove("tokens", scene.token_row(scene.limited))
    scene.editor.put("tokens", older)
    assert vault.detokenize(token, good("fourth")).pan.reveal() == VISA
    record = vault.get(token)
    noted = [event.revision for event in scene.events() if event.reference.hex() == record.reference]
    assert max(noted) == highest > record.revision
    fallen = [one for one, other in itertools.pairwise(noted) if other < one]
    assert fallen, "revisions noted one after the other fall"
    findings = tv.verify_audit(scene.store, keys=scene.keys).findings
    assert {(each.kind, each.reference) for each in findings} == {
        (tv.FindingKind.REVISION_FELL, record.reference)
    }


def test_a_row_that_was_removed_is_a_token_that_does_not_exist(scene: Scene) -> None:
    """Its events still name it."""
    scene.editor.remove("tokens", scene.token_row(scene.limited))
    assert seen(lambda: scene.vault.detokenize(scene.limited.token, good("x"))) is tv.TokenNotFoundError
    assert seen(lambda: scene.vault.get(scene.limited.reference)) is tv.TokenNotFoundError
    assert scene.limited.reference in {event.reference.hex() for event in scene.events()}
    (finding,) = tv.verify_audit(scene.store, keys=scene.keys).findings
    assert (finding.kind, finding.reference) == (tv.FindingKind.RECORD_REMOVED, scene.limited.reference)


# The other tables.


def test_every_table_has_its_test_here(scene: Scene) -> None:
    """But for the number of PostgreSQL's schema, which has one at the store (`test_another_schema_is_refused`)."""
    assert set(scene.editor.tables()) - {"schema_version"} == {
        "domains",
        "event_index",
        "events",
        "meta",
        "token_counts",
        "tokens",
    }


def test_an_edited_count_is_told_and_changes_nothing_else(scene: Scene) -> None:
    """No seal covers a count, and nothing is decided by it; one below zero is refused."""
    genuine = scene.vault.count()
    tokens = [info.token for info in scene.vault.search()]
    assert genuine == len(tokens)
    (row, *_) = (row for row in scene.editor.rows("token_counts") if row["tokens"])
    for edited, expected in ((9, genuine + 9 - int(str(row["tokens"]))), (-9, tv.IntegrityError)):
        changed = {**row, "tokens": edited}
        scene.editor.remove("token_counts", row)
        scene.editor.put("token_counts", changed)
        assert seen(scene.vault.count) == expected
        assert [info.token for info in scene.vault.search()] == tokens
        assert scene.vault.detokenize(scene.limited.token, good(f"beside {edited}")).pan.reveal() == VISA
        assert tv.verify_audit(scene.store, keys=scene.keys).intact
        scene.editor.remove("token_counts", changed)
        scene.editor.put("token_counts", row)
    assert scene.vault.count() == genuine


def test_a_domain_document_changed_moved_or_removed_gives_no_card(scene: Scene) -> None:
    """For a vault that reads it anew; one that has it already goes on with the genuine one."""
    genuine = scene.editor.rows("domains")
    assert len(genuine) == 2
    row = scene.editor.row("domains", DOMAIN.digest)
    assert row is not None
    source = random.Random("domains")
    wider = tv.Domain(requestors={SHOP})
    forged: list[Value] = [wider.document, tv.Domain().document, b"{}", DOMAIN.document + b" "]
    tried = dict.fromkeys(scene.editor.columns("domains"), 0)
    for column in tried:
        neighbors = [other[column] for other in genuine if other != row] + forged
        for value in scene.share(other_values(row[column], neighbors, source)):
            if scene.editor.change("domains", row, column, value) is not None:
                tried[column] += 1
                assert_document_refused(scene)
                scene.editor.restore("domains", genuine)
    scene.editor.remove("domains", row)
    assert_document_refused(scene)
    assert all(count >= 10 for count in tried.values()), tried
    scene.editor.restore("domains", genuine)
    scene.editor.swap("domains", genuine[0], genuine[1], ("document",))
    assert_document_refused(scene)
    assert seen(lambda: scene.fresh_vault().check(scene.suspended.token, use())) is tv.IntegrityError
    assert scene.vault.detokenize(scene.limited.token, good("after")).pan.reveal() == VISA


def assert_document_refused(scene: Scene) -> None:
    with scene.fresh_vault() as vault:
        assert seen(lambda: vault.detokenize(scene.limited.token, good("after"))) is tv.IntegrityError
        assert seen(lambda: vault.check(scene.limited.token, good("after"))) is tv.IntegrityError
        assert vault.get(scene.limited.token).token == scene.limited.token, "what needs no domain goes on"


def test_a_key_table_changed_refuses_the_vault(scene: Scene) -> None:
    """A value that is another; where its name is another, the records prove the keys and it is noted anew."""
    genuine = scene.editor.rows("meta")
    assert len(genuine) == 1
    source = random.Random("meta")
    tried = dict.fromkeys(scene.editor.columns("meta"), 0)
    for row in genuine:
        for column in tried:
            neighbors = [other[column] for other in genuine if other != row]
            values = other_values(row[column], neighbors, source)
            for value in scene.share(values) if column == "value" else values:
                if scene.editor.change("meta", row, column, value) is None:
                    continue
                tried[column] += 1
                opened = seen(scene.fresh_vault)
                if column == "value":
                    huge = isinstance(value, bytes) and len(value) > 4_096
                    assert opened is (tv.IntegrityError if huge else tv.ConfigurationError)
                elif opened is not tv.ConfigurationError:
                    assert isinstance(opened, tv.Vault)
                    names = [noted["name"] for noted in scene.editor.rows("meta")]
                    assert row["name"] in names, "the keys are noted again"
                    assert opened.detokenize(scene.limited.token, good("before")).pan.reveal() == VISA
                scene.editor.restore("meta", genuine)
    assert all(count >= 20 for count in tried.values()), tried
    with scene.fresh_vault() as vault:
        assert vault.detokenize(scene.limited.token, good("before")).pan.reveal() == VISA


def test_events_changed_stop_no_other_use_than_their_own(scene: Scene) -> None:
    """Nothing is decided by half a ledger: a retry of a use whose event was changed is refused. Others go on."""
    genuine = scene.editor.rows("events")
    row = genuine[2]
    source = random.Random("events")
    tried = dict.fromkeys(scene.editor.columns("events"), 0)
    refused = stopped = 0
    for column in tried:
        neighbors = [other[column] for other in genuine if other != row]
        for value in scene.share(other_values(row[column], neighbors, source)):
            if scene.editor.change("events", row, column, value) is None:
                continue
            tried[column] += 1
            with scene.fresh_vault() as vault:
                retried = seen(lambda: vault.detokenize(scene.limited.token, good("before")))  # at once
                assert retried is tv.IntegrityError or isinstance(retried, tv.Card)
                stopped += retried is tv.IntegrityError
                assert vault.check(scene.limited.token, good("after")).allowed
                assert vault.get(scene.limited.token).revision == 2
            another = good(f"{column}-{tried[column]}")
            found = seen(functools.partial(scene.vault.detokenize, scene.other.token, another))
            if found is tv.TokenStoreError:
                refused += 1
                found = seen(functools.partial(scene.vault.detokenize, scene.other.token, another))
            assert isinstance(found, tv.Card)
            scene.editor.restore("events", genuine)
    assert all(count >= 4 for count in tried.values()), tried
    assert refused <= 2


def test_an_event_planted_at_the_next_number_costs_one_refused_call(scene: Scene) -> None:
    """No event, no card; and the call after it works."""
    last = max(scene.editor.rows("events"), key=lambda row: int(row["number"]))
    scene.editor.put("events", {**last, "number": int(last["number"]) + 1})
    assert seen(lambda: scene.vault.detokenize(scene.limited.token, good("x"))) is tv.TokenStoreError
    assert scene.vault.get(scene.limited.token).revision == 2, "nothing was counted"
    assert scene.vault.detokenize(scene.limited.token, good("x")).pan.reveal() == VISA


def test_rows_planted_in_the_index_change_no_history_and_stop_no_write(scene: Scene) -> None:
    """What they lead to says itself which token it is about; one for an event to come is in nobody's way."""
    token = scene.limited.token
    before = scene.vault.history(token)
    rows = scene.editor.rows("event_index")
    last = max(rows, key=lambda row: int(row["number"]))
    foreign = next(row for row in rows if row["reference"] != bytes.fromhex(scene.limited.reference))
    names = {"reference": bytes.fromhex(scene.limited.reference), "use_id": bytes(16)}
    scene.editor.put("event_index", {**foreign, **names})
    scene.editor.put("event_index", {**last, **names, "number": 10**6})
    scene.editor.put("event_index", {**last, **names, "number": -1})
    scene.editor.put("event_index", {**last, **names, "stream": b"short"})
    scene.editor.put("event_index", {**last, **names, "number": int(last["number"]) + 1})
    assert scene.vault.history(token) == before
    assert scene.vault.detokenize(token, good("x")).pan.reveal() == VISA
    assert len(scene.vault.history(token)) == len(before) + 1
