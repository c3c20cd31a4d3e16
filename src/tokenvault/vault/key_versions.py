"""Which key versions a vault uses: the key table in force, read again before it is too old to rely on.

Keys work in this process or in a module, and others change what they are for while vaults run. Nobody calls a vault
and tells it so: each relies on the table for a limited time, its lease, and reads it again before the call that comes
after. So a change is known to every vault that does anything once that time has passed, a vault that died is not
waited for, and one that can not read the table any more does nothing.

The lease is half of the table's delay. The other half is for calls that are under way when it ends.
"""

from __future__ import annotations

import hmac
import threading
import time
from typing import Final

import attrs

from tokenvault.crypto.cmac import Cmac
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import ConfigurationError, IntegrityError, KeyStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore
from tokenvault.records.key_table import (
    LIVE,
    KeyEntry,
    KeyState,
    KeyTable,
    in_order,
    key_check_value,
)
from tokenvault.records.keyring import PURPOSES, KeyRing, require_purposes
from tokenvault.runtime import Runtime
from tokenvault.stores.forks import Forkable, hold_still_at_forks
from tokenvault.stores.port import AsyncTokenStore
from tokenvault.vault.key_proof import prove

TABLES_MAX: Final = 100_000
"""Key tables of one database, and names that something else was written to."""


@attrs.frozen
class StoredTable:
    """The table in force, and the number of the last name that is taken, by it or by what is no table."""

    table: KeyTable
    last: int

    @property
    def name(self) -> str:
        """What the table is kept under."""
        return _name(self.table.number)


def _name(number: int) -> str:
    return f"keys/{number}"


async def find_table(
    keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, known: StoredTable | None = None
) -> StoredTable | None:
    """The table in force, given one that was; None where the database has none.

    Raises:
        ConfigurationError: the database was made under other keys.
        KeyStoreError, TokenStoreError: the key store or the database can not be reached, or the key store lacks the
            AUDIT version that the table is authenticated with.
    """
    last, found = (known.last, known.table) if known else (0, None)
    doubtful: KeyTable | None = None
    for _ in range(TABLES_MAX):
        value = await store.get_meta(_name(last + 1))
        if value is None:
            break
        last += 1
        try:
            table = KeyTable.parse(value)
        except IntegrityError:
            continue  # no vault wrote it
        if table.number != last:
            continue
        if await runtime.block(_is_genuine, keys, table, value):
            found, doubtful = table, None
        else:
            doubtful = table
    else:
        raise ConfigurationError("the database holds too many key tables")
    if doubtful is not None:
        await runtime.block(_refuse_doubtful, keys, doubtful, found)
    return None if found is None else StoredTable(found, last)


def _is_genuine(keys: KeyStore, table: KeyTable, value: bytes) -> bool:
    version = table.primary(KeyPurpose.AUDIT)
    if version not in keys.versions(KeyPurpose.AUDIT):
        return False
    return table.is_genuine(value, Cmac(keys.cipher(KeyName(KeyPurpose.AUDIT, version))))


def _refuse_doubtful(keys: KeyStore, doubtful: KeyTable, found: KeyTable | None) -> None:
    """Raise the error for a table that is not genuine, and newer than the genuine one, if there is one.

    Beside a genuine one it is passed over, unless it may be genuine under a key that is not here.
    """
    version = doubtful.primary(KeyPurpose.AUDIT)
    if found is None:
        require_keys(keys, doubtful)
        raise ConfigurationError(
            f"this database was made under another {KeyName(KeyPurpose.AUDIT, version)} key: open it with its own"
            " key store",
            code="KEYS_OF_OTHER_VAULT",
        )
    if version not in keys.versions(KeyPurpose.AUDIT):
        raise KeyStoreError(
            f"the key table is authenticated under audit version {version}, which this key store does not have",
            code="KEY_STORE_KEY_MISSING",
        )


def require_keys(keys: KeyStore, table: KeyTable) -> None:
    """Raise ConfigurationError unless the key store has the keys that vaults read and write by."""
    for name in missing_keys(keys, table):
        raise ConfigurationError(
            f"this database was made under a {name} key, which this key store does not have: open it with its own"
            " key store, or restore the key",
            code="KEYS_OF_OTHER_VAULT",
        )


def missing_keys(keys: KeyStore, table: KeyTable) -> list[KeyName]:
    """The keys that vaults read and write by and the key store lacks. Raises ConfigurationError for other ones."""
    live = [entry for entry in table.entries if entry.state in LIVE]
    there = {purpose: keys.versions(purpose) for purpose in {entry.name.purpose for entry in live}}
    require_purposes({purpose: there.get(purpose, ()) for purpose in PURPOSES})
    missing = []
    for entry in live:
        if entry.name.version not in there[entry.name.purpose]:
            if entry.name.purpose in PURPOSES:  # an FPE key is missed where a vaultless tokenizer is opened
                missing.append(entry.name)
        elif not hmac.compare_digest(key_check_value(keys.cipher(entry.name)), entry.check):
            raise ConfigurationError(
                f"this database was made under another {entry.name} key: open it with its own key store",
                code="KEYS_OF_OTHER_VAULT",
            )
    return missing


async def first_table(
    keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, now_ms: int, delay_ms: int
) -> StoredTable:
    """Write the first table of a database: all keys that there are, the newest of each purpose primary.

    A database whose tables were removed has to prove first that it was made under these keys.

    Raises:
        ConfigurationError: the database was made under other keys, or there are no keys yet.
    """
    await prove(await runtime.block(KeyRing, keys), store, runtime)
    entries = await runtime.block(_entries_of, keys, now_ms)
    return await write_table(keys, store, runtime, None, KeyTable(1, delay_ms, entries))


def _entries_of(keys: KeyStore, now_ms: int) -> tuple[KeyEntry, ...]:
    entries = []
    for purpose in KeyPurpose:
        versions = keys.versions(purpose)
        for version in versions:
            state = KeyState.PRIMARY if version == versions[-1] else KeyState.READABLE
            entries.append(entry_of(keys, KeyName(purpose, version), state, now_ms))
    return in_order(entries)


def entry_of(keys: KeyStore, name: KeyName, state: KeyState, now_ms: int) -> KeyEntry:
    """The entry of a key that the key store has. Its custody is where it is found to work."""
    cipher = keys.cipher(name)
    custody = Custody.IN_PROCESS if isinstance(cipher, LocalBlockCipher) else Custody.IN_MODULE
    return KeyEntry(name, state, custody, key_check_value(cipher), now_ms)


async def write_table(
    keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, known: StoredTable | None, table: KeyTable
) -> StoredTable:
    """Write a table after one that was in force. Returns the one in force now: another, if others came first."""
    number = 1 if known is None else known.last + 1
    table = attrs.evolve(table, number=number)
    value = await runtime.block(_encoded, keys, table)
    if await store.put_meta(_name(number), value) == value:
        return StoredTable(table, number)
    found = await find_table(keys, store, runtime, known)
    if found is None:
        raise ConfigurationError("the names of the key table are taken by something else")
    return found


def _encoded(keys: KeyStore, table: KeyTable) -> bytes:
    return table.encode(Cmac(keys.cipher(KeyName(KeyPurpose.AUDIT, table.primary(KeyPurpose.AUDIT)))))


@attrs.frozen
class _State:
    """A table, the keys that it names, and until when the rest of the vault may rely on them."""

    stored: StoredTable
    ring: KeyRing
    settled_at: float


class KeyVersions(Forkable):
    """The keys of a vault, by the table in force. Safe to share between threads, tasks and forked children."""

    def __init__(
        self, keys: KeyStore, store: AsyncTokenStore, runtime: Runtime, stored: StoredTable, ring: KeyRing
    ) -> None:
        self._keys: Final = keys
        self._store: Final = store
        self._runtime: Final = runtime
        self._lock = threading.Lock()
        hold_still_at_forks(self)
        now = time.monotonic()
        several = len(ring.fingerprint_versions) > 1
        self._state = _State(stored, ring, now + self._delay(stored) if several else now)
        self._read_again_at = now + self._delay(stored) / 2

    def after_fork_in_child(self) -> None:
        """Begin with a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    @staticmethod
    def _delay(stored: StoredTable) -> float:
        return stored.table.delay_ms / 1_000

    @property
    def ring(self) -> KeyRing:
        """The keys. What has to fit together comes from one ring: ask for it once."""
        return self._state.ring

    @property
    def stored(self) -> StoredTable:
        """The table in force, as it was read last."""
        return self._state.stored

    @property
    def table(self) -> KeyTable:
        """The table in force."""
        return self._state.stored.table

    @property
    def blocking(self) -> bool:
        """Whether any key works outside this process."""
        return self._state.ring.blocking

    def id_digest(self, text: str) -> bytes:
        """What stands for an id that may not be kept in clear, 16 bytes."""
        return self.ring.id_digest(text)

    @property
    def stale(self) -> bool:
        """Whether the table has to be read again before anything else is done."""
        return time.monotonic() >= self._read_again_at

    async def refresh(self) -> None:
        """Read the table again.

        Raises:
            ConfigurationError: a key in force is another one here.
            KeyStoreError: the key store lacks a primary key, or can not be reached.
            TokenStoreError: the database can not be reached.
        """
        begun, state = time.monotonic(), self._state
        found = await find_table(self._keys, self._store, self._runtime, state.stored)
        if found is not None and found.table.number > state.stored.table.number:
            await self._use(found, state)
        self._read_again_at = begun + self._delay(self._state.stored) / 2

    async def _use(self, found: StoredTable, former: _State) -> None:
        missing = await self._runtime.block(missing_keys, self._keys, found.table)
        for name in missing:
            if found.table.primary(name.purpose) == name.version:
                raise KeyStoreError(
                    f"this key store does not have the key {name}, which vaults write under now",
                    code="KEY_STORE_KEY_MISSING",
                )
        if missing:
            await self._store.put_meta(objection_name(found), str(missing[0]).encode("ascii"))
        entries = tuple(entry for entry in found.table.entries if entry.name not in missing)
        usable = attrs.evolve(found.table, entries=entries)
        ring = await self._runtime.block(KeyRing, self._keys, usable, former.ring)
        settled_at = former.settled_at
        if ring.fingerprint_versions[0] != former.ring.fingerprint_versions[0]:
            settled_at = time.monotonic() + self._delay(found)
        with self._lock:
            if found.table.number > self._state.stored.table.number:
                # First: after an interrupt between the two, the table is still to be read again.
                ring.audit.write_under(ring.audit_version)
                self._state = _State(found, ring, settled_at)

    async def settle(self) -> bool:
        """Wait until every vault derives convergent tokens with the same key; whether there was a need to wait.

        After a change of the primary FINGERPRINT key, vaults that do not know of it derive other tokens for a while.
        """
        seconds = self._state.settled_at - time.monotonic()
        if seconds <= 0:
            return False
        await self._runtime.sleep(seconds)
        return True


def objection_name(stored: StoredTable) -> str:
    """The name of the value that a vault writes which lacks a key of a table."""
    return f"{stored.name}/missing"
