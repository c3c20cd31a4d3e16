"""Proves by what a database holds that it was made under the keys at hand, where its key table is gone.

Whoever can write to the database can remove the table. A vault that then wrote a new one without a question would
take any keys that it was given: with another FINGERPRINT key it would give cards a second convergent token.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tokenvault.audit.checkpoint import CROSS_REFERENCES_MAX
from tokenvault.errors import ConfigurationError, IntegrityError
from tokenvault.keys.port import KeyPurpose
from tokenvault.records.keyring import KeyRing
from tokenvault.runtime import Runtime
from tokenvault.stores.new_records import split
from tokenvault.stores.port import AsyncTokenStore, SealedRecord

PAGE: Final = 1_000
PAGES_MAX: Final = 100_000
"""Pages of records looked at for one that has a card."""


async def prove(ring: KeyRing, store: AsyncTokenStore, runtime: Runtime) -> None:
    """Raise ConfigurationError unless the records and events of a database, if it has any, are under these keys."""
    after, records, genuine = "", 0, 0
    for _ in range(PAGES_MAX):
        rows = await store.scan(after=after, limit=PAGE)
        if not rows:
            break
        records += len(rows)
        authentic, cards, right = await runtime.block(_look_at, ring, rows)
        genuine += authentic
        if cards and not right:
            raise _other(KeyPurpose.FINGERPRINT)
        if cards:
            break
        after = rows[-1].token
    if records and not genuine:
        raise _other(KeyPurpose.SEAL)
    try:
        events = await store.latest_checkpoints(CROSS_REFERENCES_MAX)
    except IntegrityError:
        events = []
    if (events or records) and not await runtime.block(ring.audit.genuine, events):
        raise _other(KeyPurpose.AUDIT)


def _look_at(ring: KeyRing, rows: list[SealedRecord]) -> tuple[int, int, bool]:
    """How many records of a page are genuine, how many of these have a card, and whether these are found by it."""
    cards, genuine = ring.unseal_many(rows)
    live = np.flatnonzero(genuine & (cards.pans.lengths > 0))
    if not len(live):
        return int(genuine.sum()), 0, True
    by_version = [split(column) for column in ring.pan_fingerprints_many(cards.take(live).pans)]
    right = all(
        rows[place].pan_fingerprint in {column[at] for column in by_version}
        for at, place in enumerate(live.tolist())
    )
    return int(genuine.sum()), len(live), right


def _other(purpose: KeyPurpose) -> ConfigurationError:
    return ConfigurationError(
        f"this database was made under another {purpose.value} key, and its key table is gone: open it with its own"
        " key store",
        code="KEYS_OF_OTHER_VAULT",
    )
