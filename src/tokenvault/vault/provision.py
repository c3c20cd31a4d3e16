"""Provisioning a key store and a database, and checking at open that the two belong together."""

from __future__ import annotations

import hmac
from typing import Final

from tokenvault.errors import ConfigurationError, KeyStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore
from tokenvault.model import checks
from tokenvault.records.keyring import key_check_value
from tokenvault.runtime import Runtime
from tokenvault.stores.port import AsyncTokenStore

PROVISIONED: Final = (KeyPurpose.SEAL, KeyPurpose.FINGERPRINT, KeyPurpose.FPE, KeyPurpose.AUDIT)
"""The keys that are created, in this order, before the signer."""

_LAST4_INDEX: Final = "index/last4"


async def create_schema_and_keys(
    keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, custody: Custody, *, find_by_last4: bool = False
) -> None:
    """Create the schema and the keys that are missing, and note in the database which keys it is made under."""
    checks.offers("keys", keys, "cipher", "a key store, as open_key_store opens one")
    checks.instance("custody", custody, Custody)
    checks.true_or_false("find_by_last4", find_by_last4)
    await store.provision()
    await store.check_schema()
    # First: no key is made for a database that belongs to other keys.
    await check_keys(keys, store, runtime)
    for purpose in PROVISIONED:
        await runtime.call(_create_first, keys, purpose, custody)
    await runtime.call(keys.create_signer)
    await check_keys(keys, store, runtime)
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


async def check_keys(keys: KeyStore, store: AsyncTokenStore, runtime: Runtime) -> None:
    """Compare the key check value of every key with the one in the database; note those not seen before.

    Raises:
        ConfigurationError: the database was made under other keys, or a key of it is missing.
    """
    for purpose in KeyPurpose:
        versions = await runtime.call(keys.versions, purpose)
        for version in range(1, (versions[-1] if versions else 0) + 2):
            key = KeyName(purpose, version)
            name = f"key-check/{purpose.value}/{version}"
            if version in versions:
                value = await runtime.call(lambda key: key_check_value(keys.cipher(key)), key)
                if not hmac.compare_digest(await store.put_meta(name, value), value):
                    raise ConfigurationError(
                        f"this database was made under another {key} key: open it with its own key store",
                        code="KEYS_OF_OTHER_VAULT",
                    )
            elif await store.get_meta(name) is not None:
                raise ConfigurationError(
                    f"this database was made under a {key} key, which this key store does not have: open it with"
                    " its own key store, or restore the key",
                    code="KEYS_OF_OTHER_VAULT",
                )
