"""How long it takes to verify an audit trail of 100,000 events, untouched."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import tokenvault as tv
from benchmarks.single import REQUESTOR, row
from tokenvault.audit.event import Action, Event, Outcome
from tokenvault.audit.journal import Journal
from tokenvault.audit.macs import AuditKeys
from tokenvault.keys import FileKeyStore, KeyStore
from tokenvault.stores.port import SealedEvent, SealedRecord
from tokenvault.stores.sqlite.store import SqliteTokenStore

EVENTS = 100_000
TOKENS = 10_000
BATCH = 1_000


def trail(keys: KeyStore, path: Path, events: int) -> SqliteTokenStore:
    """A database with a trail of two vaults: tokens issued, used, and declined. Written in batches, for speed."""
    store = SqliteTokenStore(path)
    tv.provision(keys, store)
    tokens = min(TOKENS, events // 4)
    revisions = [0] * tokens
    for stream in range(2):
        journal = Journal(AuditKeys(keys))
        numbers = range(stream * events // 2, (stream + 1) * events // 2)
        events_of_stream = (_event(number, revisions) for number in numbers)
        while batch := list(islice(events_of_stream, BATCH)):
            store.append(list(_rows(journal, batch, store)))
        closing_entry = journal.closing_entry()
        assert closing_entry is not None
        store.append(journal.seal(journal.begin_closing(closing_entry), 1))
    records = [_record(number, revision) for number, revision in enumerate(revisions)]
    with closing(sqlite3.connect(path)) as sql:  # the port inserts revision 1 only
        sql.executemany(f"INSERT INTO tokens VALUES ({', '.join('?' * len(SealedRecord._fields))})", records)
        sql.commit()
    return store


def edit(path: Path, event: SealedEvent) -> None:
    """Change one byte of an event."""
    with closing(sqlite3.connect(path)) as sql:
        body = event.body[:5] + bytes([event.body[5] ^ 1]) + event.body[6:]
        sql.execute(
            "UPDATE events SET body = ? WHERE stream = ? AND number = ?", (body, event.stream, event.number)
        )
        sql.commit()


def _rows(journal: Journal, batch: list[Event], store: SqliteTokenStore) -> Iterator[SealedEvent]:
    for event in batch:
        entry = journal.begin(journal.entry(event), event.time_ms, checkpoint=True)
        others = store.latest_checkpoints(64) if entry.checkpoint else ()
        yield from journal.seal(entry, event.time_ms, others)
        journal.written(entry)


def _event(number: int, revisions: list[int]) -> Event:
    token = number % len(revisions)
    issued = number < len(revisions)
    counts = issued or number % 3 == 0
    revisions[token] += counts
    return Event(
        time_ms=1_767_225_600_000 + number,
        action=Action.ISSUE if issued else Action.DETOKENIZE,
        outcome=Outcome.DONE if issued or number % 5 else Outcome.DENIED,
        requestor=REQUESTOR,
        reference=token.to_bytes(16),
        transaction_id=None if issued else f"tx-{number}",
        codes=() if issued or number % 5 else ("MERCHANT_NOT_ALLOWED",),
        revision=revisions[token] if counts else 0,
    )


def _record(number: int, revision: int) -> SealedRecord:
    return SealedRecord(
        f"999913{number:010}",
        number.to_bytes(16),
        bytes(16),
        REQUESTOR,
        "random",
        revision,
        1,
        bytes(94),
        bytes(45),
    )


def verification(keys: KeyStore, folder: Path, name: str) -> None:
    """Print the seconds of one verification with keys and, where checkpoints are signed, of one without."""
    with closing(trail(keys, folder / f"{name}.db", EVENTS)) as store:
        public = tv.audit_public_key(keys)
        for how, arguments in (("with keys", {"keys": keys}), ("with a public key", {"public_key": public})):
            if None not in arguments.values():
                start = time.perf_counter()
                report = tv.verify_audit(store, **arguments)
                seconds = time.perf_counter() - start
                assert report.intact
                row(f"{name}, {how}", f"{seconds:.2f}", report.events, report.records, 10)


def main(softhsm_uri: str, folder: Path) -> None:
    """Print the table, of keys in the process and in the module."""
    print(f"\nVerifying an untouched trail of {EVENTS} events (SQLite): seconds")
    row("", "seconds", "events", "records", "aim, at most")
    (folder / "passphrase").write_text("benchmark")
    with FileKeyStore(f"file:{folder}/keys.json?passphrase-source=file:{folder}/passphrase") as keys:
        verification(keys, folder, "key file")
    with closing(tv.open_key_store(softhsm_uri)) as module:
        tv.provision(module, tv.open_token_store("memory:"), custody=tv.Custody.IN_MODULE)
        verification(module, folder, "custody IN_MODULE")


if __name__ == "__main__":
    from tests import softhsm

    with tempfile.TemporaryDirectory() as made:
        softhsm.set_up(Path(made))
        main(softhsm.new_token(Path(made)), Path(made))
