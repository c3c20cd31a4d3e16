"""Checks the MACs of events, under any version of the AUDIT key."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

from tokenvault.audit.event import AUTHENTICATED_BYTES
from tokenvault.crypto.cmac import TAG_BYTES, Cmac
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore
from tokenvault.stores.port import SealedEvent


class AuditMacs:
    """Checks MACs with the AUDIT keys of a key store: a row does not state the version it was written under."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys: Final = keys
        self._macs: dict[int, Cmac] = {}

    def genuine(self, rows: Sequence[SealedEvent], leaves: Sequence[bytes]) -> list[bool]:
        """Whether the MAC of each event is right, given its leaf hash.

        Takes one call of the key store for all events under the newest key, and one more for each older version that
        is tried for those which do not match yet.

        Raises:
            KeyStoreError: a key can not be reached now.
        """
        found = [False] * len(leaves)
        left = list(range(len(leaves)))
        for version in reversed(self._keys.versions(KeyPurpose.AUDIT)) if leaves else ():
            tags = self._mac(version).tags(b"".join([leaves[at][:AUTHENTICATED_BYTES] for at in left]))
            for at, start in zip(left, range(0, len(tags), TAG_BYTES), strict=True):
                found[at] = hmac.compare_digest(tags[start : start + TAG_BYTES], rows[at].mac)
            left = [at for at in left if not found[at]]
            if not left:
                break
        return found

    def _mac(self, version: int) -> Cmac:
        mac = self._macs.get(version)
        if mac is None:
            mac = self._macs.setdefault(version, Cmac(self._keys.cipher(KeyName(KeyPurpose.AUDIT, version))))
        return mac
