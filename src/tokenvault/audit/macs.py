"""The AUDIT keys of a key store: MACs of events, made under the primary key and checked under any version."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final, NamedTuple

from tokenvault.audit.event import AUTHENTICATED_BYTES, leaf_of
from tokenvault.crypto.cmac import TAG_BYTES, Cmac
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore
from tokenvault.model import checks
from tokenvault.stores.port import SealedEvent


class CheckedEvent(NamedTuple):
    """An event as a store keeps it, its leaf hash, and whether its MAC is right; None: there are no keys."""

    row: SealedEvent
    leaf: bytes
    genuine: bool | None


class AuditKeys:
    """The AUDIT keys that there are, and the key that signs checkpoints. Safe to share between threads.

    Attributes:
        signer: signs checkpoints; None where the key store has no key for it.

    Raises:
        KeyStoreError: of every call too: a key can not be reached now.
    """

    def __init__(self, keys: KeyStore) -> None:
        checks.offers("keys", keys, "versions", "a key store, as open_key_store opens one")
        self._keys: Final = keys
        self._macs: dict[int, Cmac] = {}
        self._primary = max(keys.versions(KeyPurpose.AUDIT), default=0)
        self.signer: Final = keys.signer()

    def write_under(self, version: int) -> None:
        """Make MACs under a version from now on, though the key store may have a newer one."""
        self._primary = version

    def tag(self, leaf: bytes) -> bytes:
        """The MAC of an event, given its leaf hash: 16 bytes."""
        return self._mac(self._primary).tag(leaf[:AUTHENTICATED_BYTES])

    def check(self, rows: Sequence[SealedEvent]) -> list[CheckedEvent]:
        """The events with their leaf hashes, and whether their MACs are right.

        A row does not state the version of its key. One call of the key store tries the newest for all events, and
        one more each older version for those that do not match yet.
        """
        leaves = [leaf_of(row) for row in rows]
        genuine = [False] * len(rows)
        left = list(range(len(rows)))
        for version in reversed(self._keys.versions(KeyPurpose.AUDIT)):
            if not left:
                break
            tags = self._mac(version).tags(b"".join([leaves[at][:AUTHENTICATED_BYTES] for at in left]))
            for at, start in zip(left, range(0, len(tags), TAG_BYTES), strict=True):
                genuine[at] = hmac.compare_digest(tags[start : start + TAG_BYTES], rows[at].mac)
            left = [at for at in left if not genuine[at]]
        return list(map(CheckedEvent, rows, leaves, genuine))

    def is_genuine(self, leaf: bytes, tag: bytes) -> bool:
        """Whether a MAC is of a leaf hash, under the AUDIT key of any version."""
        return any(
            hmac.compare_digest(self._mac(version).tag(leaf[:AUTHENTICATED_BYTES]), tag)
            for version in reversed(self._keys.versions(KeyPurpose.AUDIT))
        )

    def genuine(self, rows: Sequence[SealedEvent]) -> list[SealedEvent]:
        """Those of the events whose MAC is right."""
        return [each.row for each in self.check(rows) if each.genuine]

    def _mac(self, version: int) -> Cmac:
        mac = self._macs.get(version)
        if mac is None:
            mac = self._macs.setdefault(version, Cmac(self._keys.cipher(KeyName(KeyPurpose.AUDIT, version))))
        return mac


def check_events(keys: AuditKeys | None, rows: Sequence[SealedEvent]) -> list[CheckedEvent]:
    """As `AuditKeys.check`; without keys it is not known whether a MAC is right."""
    return [CheckedEvent(row, leaf_of(row), None) for row in rows] if keys is None else keys.check(rows)
