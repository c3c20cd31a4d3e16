"""Provisioning a key store and a database, and checking at open that the two belong together."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys.port import Custody, KeyPurpose, KeyStore
from tokenvault.model import checks
from tokenvault.records.key_table import DELAY_MS, DELAY_MS_MAX, DELAY_MS_MIN
from tokenvault.runtime import Runtime, SystemClock
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.key_versions import StoredTable, find_table, first_table, require_keys

KEY_DELAY: Final = timedelta(milliseconds=DELAY_MS)

PROVISIONED: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.FPE, KeyPurpose.AUDIT)
"""The keys that are created, in this order, before the signer."""

_LAST4_INDEX: Final = "index/last4"


async def create_schema_and_keys(
    keys: KeyStore,
    store: AsyncTokenStore,
    runtime: Runtime,
    custody: Custody,
    key_delay: timedelta,
    *,
    find_by_last4: bool = False,
) -> None:
    """Create the schema and the keys that are missing, and note in the database which keys it is made under."""
    checks.offers("keys", keys, "cipher", "a key store, as open_key_store opens one")
    checks.instance("custody", custody, Custody)
    checks.true_or_false("find_by_last4", find_by_last4)
    delay_ms = checks.instance("key_delay", key_delay, timedelta) // timedelta(milliseconds=1)
    if not DELAY_MS_MIN <= delay_ms <= DELAY_MS_MAX:
        raise InvalidInputError(f"key_delay is from {DELAY_MS_MIN} to {DELAY_MS_MAX} milliseconds")
    await store.provision()
    await store.check_schema()
    # First: no key is made for a database that belongs to other keys.
    stored = await find_table(keys, store, runtime)
    if stored is not None:
        await runtime.call(require_keys, keys, stored.table)
    for purpose in PROVISIONED:
        if stored is not None and stored.table.of(purpose):
            continue  # what the table names is brought in, not made anew
        await runtime.call(_create_first, keys, purpose, custody)
    await runtime.call(keys.create_signer)
    await table_of(keys, store, runtime, delay_ms)
    if find_by_last4:
        await store.put_meta(_LAST4_INDEX, b"1")


async def finds_last4(store: AsyncTokenStore) -> bool:
    """Whether tokens are found by the last four digits of their cards here."""
    return await store.get_meta(_LAST4_INDEX) is not None


def _create_first(keys: KeyStore, purpose: KeyPurpose, custody: Custody) -> None:
    if keys.versions(purpose):
        return
    try:
        keys.create(purpose, custody, version=1)
    except KeyStoreError:
        if not keys.versions(purpose):  # else another process came first
            raise


async def table_of(
    keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, delay_ms: int = DELAY_MS
) -> StoredTable:
    """The key table in force, all of whose keys the key store has; the first one, where there is none.

    Raises:
        ConfigurationError: the database was made under other keys, or a key of it is missing.
    """
    stored = await find_table(keys, store, runtime)
    if stored is None:
        stored = await first_table(keys, store, runtime, SystemClock().now_ms(), delay_ms)
    await runtime.call(require_keys, keys, stored.table)
    return stored
