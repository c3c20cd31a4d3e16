"""The key table: which versions of each key the vaults of a database use, and for what.

A token store keeps it as named values, `keys/1`, `keys/2` and so on. The first value of a name stays, so whoever
writes the next name has changed the table that was in force, and nobody else has: compare and swap over a store that
never overwrites. The last genuine one is in force.

Layout of a value, encoding version 1, big endian:

    1   encoding version, 1
    4   number, as in its name
    4   delay in milliseconds: how long a vault may take to notice the next table
    2   number of entries, sorted by purpose and version
    2   number of carried index keys, sorted by version
    ..  entries, each:
        1 purpose: 1 seal, 2 fingerprint, 3 fpe, 4 audit
        2 version
        1 state: 1 readable, 2 primary, 3 retired, 4 destroyed
        1 custody: 1 module, 2 process
        8 check value: the start of CMAC of a block of zeros
        8 created, milliseconds of the Unix epoch: when the version came into the table
    ..  carried index keys (`index_keys`), each:
        2 FINGERPRINT version that it was derived from
        2 FINGERPRINT version that it is sealed under
        13 nonce
        48 the index key and a tag
    16  MAC: AES-CMAC under the AUDIT version that this table makes primary, of SHA-256 of the label
        `tokenvault key table 1`, a byte 00, and all before

Who can write to the database can remove the last table, which brings back the one before it, or write a name that no
vault has written yet; such a value is passed over. The first use of a key version is seen in the records themselves:
see `keyring.SealPrimary`.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import attrs

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.cmac import TAG_BYTES, Cmac
from tokenvault.errors import ConfigurationError, IntegrityError, InvalidInputError, LifecycleError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose
from tokenvault.stores.port import META_VALUE_BYTES_MAX

ENCODING_VERSION: Final = 1
KEY_CHECK_BYTES: Final = 8

DELAY_MS: Final = 5_000
DELAY_MS_MIN: Final = 100
DELAY_MS_MAX: Final = 600_000

_LABEL: Final = b"tokenvault key table 1\x00"
_HEADER: Final = struct.Struct(">BIIHH")
_ENTRY: Final = struct.Struct(">BHBB8sQ")
_CARRIED: Final = struct.Struct(">HH13s48s")
_BYTES_MAX: Final = META_VALUE_BYTES_MAX - _HEADER.size - TAG_BYTES

_MALFORMED: Final = "a key table is not one that this library writes"
_PURPOSES: Final = {
    KeyPurpose.SEAL: 1,
    KeyPurpose.FINGERPRINT: 2,
    KeyPurpose.FPE: 3,
    KeyPurpose.AUDIT: 4,
}
_CUSTODIES: Final = {Custody.IN_MODULE: 1, Custody.IN_PROCESS: 2}
_PURPOSE_OF: Final = {code: purpose for purpose, code in _PURPOSES.items()}
_CUSTODY_OF: Final = {code: custody for custody, code in _CUSTODIES.items()}


class KeyState(enum.Enum):
    """What a key version is for.

    READABLE: vaults read and look up by it. PRIMARY: they also write under it; one version of each purpose.
    RETIRED: a scan has proved that no row needs it. DESTROYED: its key is gone.
    """

    READABLE = 1
    PRIMARY = 2
    RETIRED = 3
    DESTROYED = 4


LIVE: Final = frozenset({KeyState.READABLE, KeyState.PRIMARY})


def key_check_value(cipher: BlockCipher) -> bytes:
    """8 bytes that identify a key: the start of CMAC of a block of zeros (ISO 11568 and ANSI X9.24-1 take 3 to 5).

    Longer than those, so that nobody finds another key with the same one.
    """
    return Cmac(cipher).tag(bytes(BLOCK_BYTES))[:KEY_CHECK_BYTES]


@attrs.frozen
class KeyEntry:
    """One key version in the table; `check` is its check value, `created_ms` when it came into the table."""

    name: KeyName
    state: KeyState
    custody: Custody
    check: bytes
    created_ms: int


class CarriedKey(NamedTuple):
    """An index key that outlives its FINGERPRINT version; `under` is the version that it is sealed under."""

    version: int
    under: int
    nonce: bytes
    sealed: bytes


@attrs.frozen
class KeyTable:
    """Every key version that the vaults of a database use or have used.

    Attributes:
        number: 1 for the first table of a database, greater for each that follows.
        delay_ms: a vault notices the next table within this time, in milliseconds.
        entries: sorted by purpose and version.
        carried: index keys of the FINGERPRINT versions that are retired, sorted by version.
    """

    number: int
    delay_ms: int
    entries: tuple[KeyEntry, ...]
    carried: tuple[CarriedKey, ...] = ()

    def entry(self, name: KeyName) -> KeyEntry | None:
        """The entry of a version."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def of(self, purpose: KeyPurpose) -> tuple[KeyEntry, ...]:
        """The entries of a purpose, by version, ascending."""
        return tuple(entry for entry in self.entries if entry.name.purpose is purpose)

    def live(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions that vaults read by, primary included, ascending."""
        return tuple(entry.name.version for entry in self.of(purpose) if entry.state in LIVE)

    def primary(self, purpose: KeyPurpose) -> int:
        """The version that vaults write under. Raises ConfigurationError where there is none."""
        for entry in self.of(purpose):
            if entry.state is KeyState.PRIMARY:
                return entry.name.version
        raise ConfigurationError(
            f"the key table has no primary {purpose.value} key: run tokenvault.provision", code="KEY_MISSING"
        )

    # Changes: each gives the next table.

    def with_readable(self, name: KeyName, custody: Custody, check: bytes, now_ms: int) -> KeyTable:
        """The table with another version that vaults read by. Raises InvalidInputError where it is there or older."""
        if any(entry.name.version >= name.version for entry in self.of(name.purpose)):
            raise InvalidInputError(f"the key table has {name} or a newer version already")
        needed = sum(map(_bytes_of, (*(entry.name for entry in self.entries), name)))
        if needed > _BYTES_MAX:
            raise LifecycleError(
                f"the key table has no room for more than these {len(self.entries)} key versions",
                code="KEY_TABLE_FULL",
            )
        return self._next({name: KeyEntry(name, KeyState.READABLE, custody, check, now_ms)})

    def restated(self) -> KeyTable:
        """The same table with the next number: every vault looks again for the keys that it lacked."""
        return self._next({})

    def with_primary(self, name: KeyName) -> KeyTable:
        """The table in which vaults write under a version. Raises LifecycleError unless it is readable and newer."""
        entry = self._require(name, KeyState.READABLE)
        former = self.entry(KeyName(name.purpose, self.primary(name.purpose)))
        if former is None or former.name.version > name.version:
            raise LifecycleError(
                "an older version is not made primary again: make a new one", code="KEY_STATE_NOT_FITTING"
            )
        return self._next(
            {
                name: attrs.evolve(entry, state=KeyState.PRIMARY),
                former.name: attrs.evolve(former, state=KeyState.READABLE),
            }
        )

    def with_retired(self, name: KeyName, carried: tuple[CarriedKey, ...] | None = None) -> KeyTable:
        """The table in which a version is retired, and of a FINGERPRINT version the index key is carried on.

        Raises LifecycleError unless it is readable and not primary.
        """
        entry = self._require(name, KeyState.READABLE)
        table = self._next({name: attrs.evolve(entry, state=KeyState.RETIRED)})
        return table if carried is None else attrs.evolve(table, carried=carried)

    def with_destroyed(self, name: KeyName) -> KeyTable:
        """The table in which a version is destroyed. Raises LifecycleError unless it is retired."""
        entry = self._require(name, KeyState.RETIRED)
        return self._next({name: attrs.evolve(entry, state=KeyState.DESTROYED)})

    def _require(self, name: KeyName, state: KeyState) -> KeyEntry:
        entry = self.entry(name)
        if entry is None or entry.state is not state:
            found = "not in the key table" if entry is None else entry.state.name.lower()
            raise LifecycleError(
                f"{name} is {found}: it has to be {state.name.lower()}", code="KEY_STATE_NOT_FITTING"
            )
        return entry

    def _next(self, changed: dict[KeyName, KeyEntry]) -> KeyTable:
        entries = {entry.name: entry for entry in self.entries} | changed
        return attrs.evolve(self, number=self.number + 1, entries=in_order(entries.values()))

    # Bytes.

    def encode(self, mac: Cmac) -> bytes:
        """The table as a store keeps it; `mac` is under the AUDIT version that it makes primary."""
        counts = len(self.entries), len(self.carried)
        body = _HEADER.pack(ENCODING_VERSION, self.number, self.delay_ms, *counts)
        for entry in self.entries:
            body += _ENTRY.pack(
                _PURPOSES[entry.name.purpose],
                entry.name.version,
                entry.state.value,
                _CUSTODIES[entry.custody],
                entry.check,
                entry.created_ms,
            )
        body += b"".join(_CARRIED.pack(*carried) for carried in self.carried)
        return body + mac.tag(hashlib.sha256(_LABEL + body).digest())

    def is_genuine(self, value: bytes, mac: Cmac) -> bool:
        """Whether a value is what `encode` makes of this table. Raises KeyStoreError."""
        return hmac.compare_digest(self.encode(mac), value)

    @classmethod
    def parse(cls, value: bytes) -> KeyTable:
        """The table of a value, strictly; `is_genuine` is to follow. Raises IntegrityError."""
        try:
            return cls._parse(value)
        except (struct.error, LookupError, ValueError, InvalidInputError):
            pass
        raise IntegrityError(_MALFORMED)

    @classmethod
    def _parse(cls, value: bytes) -> KeyTable:
        version, number, delay_ms, count, carried_count = _HEADER.unpack_from(value)
        body = value[_HEADER.size : -TAG_BYTES]
        end = count * _ENTRY.size
        if version != ENCODING_VERSION or len(body) != end + carried_count * _CARRIED.size:
            raise ValueError(_MALFORMED)
        entries = tuple(
            KeyEntry(
                KeyName(_PURPOSE_OF[purpose], version),
                KeyState(state),
                _CUSTODY_OF[custody],
                check,
                created_ms,
            )
            for purpose, version, state, custody, check, created_ms in _ENTRY.iter_unpack(body[:end])
        )
        carried = tuple(CarriedKey(*fields) for fields in _CARRIED.iter_unpack(body[end:]))
        versions = [each.version for each in carried]
        if entries != in_order(entries) or versions != sorted(set(versions)):
            raise ValueError(_MALFORMED)
        if not DELAY_MS_MIN <= delay_ms <= DELAY_MS_MAX or number < 1:
            raise ValueError(_MALFORMED)
        return cls(number, delay_ms, entries, carried)


def _bytes_of(name: KeyName) -> int:
    """What a version takes of a table in the end: a FINGERPRINT version its entry and a carried index key."""
    return _ENTRY.size + (_CARRIED.size if name.purpose is KeyPurpose.FINGERPRINT else 0)


def in_order(entries: Iterable[KeyEntry]) -> tuple[KeyEntry, ...]:
    """Entries by purpose and version, each version once."""
    by_name = {entry.name: entry for entry in entries}
    return tuple(
        sorted(by_name.values(), key=lambda entry: (_PURPOSES[entry.name.purpose], entry.name.version))
    )
