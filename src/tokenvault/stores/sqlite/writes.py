"""What a SQLite token store does within a transaction that writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import starmap

from tokenvault.stores.new_records import IndexColumns
from tokenvault.stores.port import Fence, SealedEvent, SealedRecord, TokenGroup, digest_of
from tokenvault.stores.sqlite import sql
from tokenvault.stores.sqlite.file import Connection
from tokenvault.stores.token_counts import changes, counts_of, group_of, sorted_changes


def insert_all(
    connection: Connection,
    records: Sequence[SealedRecord],
    events: Sequence[SealedEvent],
    document: bytes | None,
) -> list[str]:
    """Insert records and append events, as `TokenStore.insert`. Returns the tokens that existed."""
    if len(records) == 1:
        if not connection.statement.execute(sql.INSERT, records[0]).rowcount:
            return [records[0].token]
    elif records:
        # Looked for first: to write a chunk of random tokens in vain takes ten times as long.
        existing = _existing(connection, [record.token for record in records])
        if existing:
            return existing
        # In the order of two of the indexes: the pages that come next are those of the row before.
        connection.statement.executemany(sql.INSERT, sorted(records))
    _count_all(connection, counts_of(records))
    if document is not None:
        connection.statement.execute(sql.PUT_DOMAIN, (digest_of(document), document))
    return _append_all(connection, events)


def _existing(connection: Connection, tokens: Sequence[str]) -> list[str]:
    execute = connection.statement.execute
    pages = [execute(sql.EXISTING[size], chunk).fetchall() for size, chunk in sql.statements_of(tokens)]
    return [token for page in pages for (token,) in page]


def replace_all(
    connection: Connection, records: Sequence[SealedRecord], events: Sequence[SealedEvent], fence: Fence
) -> list[str]:
    """Replace records and append events, as `TokenStore.replace`. Returns the tokens that moved."""
    execute = connection.statement.execute
    moved = _moved(connection, fence)
    left: list[TokenGroup] = []
    entered: list[TokenGroup] = []
    for record in records:
        values = record._asdict()
        if execute(sql.REPLACE, values).rowcount:
            continue
        left += starmap(TokenGroup, execute(sql.GROUP_OF, (record.token,)).fetchall())
        entered.append(group_of(record))
        if not execute(sql.REPLACE_ALL, values).rowcount:
            moved.append(record.token)
    if moved:
        return moved
    if entered:
        _count_all(connection, changes(left, entered))
    return _append_all(connection, events)


def _count_all(connection: Connection, counts: Counter[TokenGroup]) -> None:
    for group, number in sorted_changes(counts):
        connection.statement.execute(sql.ADD_TO_COUNT, (*group, number))


def _moved(connection: Connection, fence: Fence) -> list[str]:
    """The tokens of a fence whose revision has moved: nobody else writes until this transaction is over."""
    found: dict[str, int] = {}
    for size, chunk in sql.statements_of([token for token, _ in fence]):
        found.update(connection.statement.execute(sql.REVISIONS[size], chunk).fetchall())
    return [token for token, revision in fence if found.get(token) != revision]


def _append_all(connection: Connection, events: Sequence[SealedEvent]) -> list[str]:
    for event in events:
        connection.statement.execute(sql.APPEND, event[:5])
        connection.statement.executemany(sql.INDEX, _index_of(event))
    return []


def _index_of(event: SealedEvent) -> list[tuple[bytes, bytes, bytes, int]]:
    """The rows of the index that an event names."""
    index = event.index_rows
    names = index.names() if isinstance(index, IndexColumns) else index
    return [(reference, use_id, event.stream, event.number) for reference, use_id in names]


def prune_all(connection: Connection, events: Sequence[SealedEvent], records: Fence) -> list[str]:
    """Delete events, their rows of the index and records, as `TokenStore.prune`. Refuses nothing."""
    left = [
        row for each in records for row in connection.statement.execute(sql.PRUNE_RECORD, each).fetchall()
    ]
    _count_all(connection, changes(starmap(TokenGroup, left), ()))
    for event in events:
        connection.statement.executemany(sql.PRUNE_INDEX, _index_of(event))
    connection.statement.executemany(sql.PRUNE_EVENT, [event[:2] for event in events])
    return []
