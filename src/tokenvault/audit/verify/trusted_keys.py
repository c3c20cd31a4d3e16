"""The keys that a verification trusts: the vault's AUDIT keys, the public keys of signatures, or both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tokenvault.audit.checkpoint import SIGNATURE_BYTES, Checkpoint, key_id_of, signed_message
from tokenvault.audit.macs import AuditKeys, CheckedEvent, check_events
from tokenvault.audit.succession import Succession
from tokenvault.errors import InvalidInputError, boundary
from tokenvault.keys.port import KeyStore
from tokenvault.model import checks
from tokenvault.stores.port import SealedEvent

PUBLIC_KEYS_MAX: Final = 100
_INFO: Final = serialization.PublicFormat.SubjectPublicKeyInfo
_PEM: Final = re.compile(r"-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\s]{1,2000}-----END PUBLIC KEY-----")


class TrustedKeys:
    """Checks the MACs of events and the signatures of checkpoints.

    Args:
        keys: a key store with the AUDIT keys; None to check signatures only.
        public_key: one or more public keys in PEM (RFC 7468), one after the other.

    Raises:
        InvalidInputError: neither is given, or the text is no public key of P-256.
        KeyStoreError: the keys can not be reached now.
    """

    def __init__(self, keys: KeyStore | None, public_key: str | None) -> None:
        if keys is None and public_key is None:
            raise InvalidInputError("give keys, a public_key, or both")
        self._audit = None if keys is None else AuditKeys(keys)
        self._public: dict[bytes, ec.EllipticCurvePublicKey] = {}
        if self._audit is not None and self._audit.signer is not None:
            der = self._audit.signer.public_key
            self._public[key_id_of(der)] = signing_key(der)
        for key in () if public_key is None else public_keys_of(public_key):
            self._public[key_id_of(key.public_bytes(serialization.Encoding.DER, _INFO))] = key

    def learn(self, successions: Sequence[Succession]) -> None:
        """Trust the successors of trusted keys, and theirs."""
        left = list(successions)
        while True:
            known = [each for each in left if self._is_signed(each)]
            for each in known:
                self._public.setdefault(key_id_of(each.public_key), signing_key(each.public_key))
            if not known:
                return
            left = [each for each in left if each not in known]

    def _is_signed(self, succession: Succession) -> bool:
        key = self._public.get(succession.former)
        return key is not None and is_signature(key, succession.signature, succession.signed)

    def check(self, rows: Sequence[SealedEvent]) -> list[CheckedEvent]:
        """The events, each with its leaf hash and whether its MAC is right. Raises KeyStoreError."""
        return check_events(self._audit, rows)

    def signature(self, row: SealedEvent, checkpoint: Checkpoint) -> bool | None:
        """Whether a checkpoint's signature is right; None if it has none, or one by a key that is not trusted."""
        key = self._public.get(checkpoint.key_id)
        if key is None:
            return None
        message = signed_message(row.stream, row.number, row.body[:-SIGNATURE_BYTES])
        return is_signature(key, checkpoint.signature, message)


def signing_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a SubjectPublicKeyInfo in DER. Raises InvalidInputError where it is none of P-256."""
    with suppress(ValueError, UnsupportedAlgorithm):
        key = serialization.load_der_public_key(public_key)
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    raise InvalidInputError("a public key of a signer is one of P-256 in DER")


def is_signature(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether r and s are a key's ECDSA signature of a message with SHA-256."""
    r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def public_keys_of(text: str) -> list[ec.EllipticCurvePublicKey]:
    """The public keys of a text in PEM, 1 to 100 of P-256. Raises InvalidInputError."""
    blocks = _PEM.findall(text)[: PUBLIC_KEYS_MAX + 1] if isinstance(text, str) else []
    keys = []
    for block in blocks:
        with suppress(ValueError, UnsupportedAlgorithm):
            key = serialization.load_pem_public_key(block.encode("ascii"))
            if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
                keys.append(key)
    if not blocks or len(keys) != len(blocks) or len(keys) > PUBLIC_KEYS_MAX:
        raise InvalidInputError(f"public_key is 1 to {PUBLIC_KEYS_MAX} public keys of P-256 in PEM")
    return keys


@boundary
def audit_public_key(keys: KeyStore) -> str | None:
    """The public key of the signatures that the vaults of a key store make, PEM; None where they sign nothing.

    Raises KeyStoreError.
    """
    checks.offers("keys", keys, "signer", "a key store, as open_key_store opens one")
    signer = keys.signer()
    if signer is None:
        return None
    key = serialization.load_der_public_key(signer.public_key)
    return key.public_bytes(serialization.Encoding.PEM, _INFO).decode("ascii")
