"""To whom cards are exported: a public key, and the private one that opens what was encrypted to it (RFC 7516).

Key management by RSA-OAEP-256 or ECDH-ES, content by A256GCM, and nothing else, whatever a header says.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from tokenvault.errors import ConfigurationError, InvalidInputError
from tokenvault.model.plain_text import plain_text

try:
    from joserfc import jwe
    from joserfc.errors import JoseError
    from joserfc.jwk import ECKey, RSAKey
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

RSA: Final = "RSA-OAEP-256"
ECDH: Final = "ECDH-ES"
CONTENT: Final = "A256GCM"
RSA_BITS_MIN: Final = 3_072
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
PEM_BYTES_MAX: Final = 16_384
LINE_CHARACTERS_MAX: Final = 2**24
_PUBLIC: Final = (
    f"public_key is a public key in PEM: RSA of {RSA_BITS_MIN} bits or more, or EC on P-256, P-384 or P-521"
)
_PRIVATE: Final = "private_key is the private key of the export in PEM, with its password if it has one"


class Recipient:
    """Who can open an export: the holder of the private key. Raises InvalidInputError, ConfigurationError."""

    def __init__(self, public_key: object) -> None:
        _check_installed()
        key: object = None
        with suppress(ValueError, TypeError):
            key = load_pem_public_key(_pem(public_key, _PUBLIC))
        if isinstance(key, RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
            self._key: RSAKey | ECKey = RSAKey.import_key(key)
            self._algorithm = RSA
        elif isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES:
            self._key = ECKey.import_key(key)
            self._algorithm = ECDH
        else:
            raise InvalidInputError(_PUBLIC)

    @property
    def thumbprint(self) -> bytes:
        """SHA-256 of the key as RFC 7638 writes it, 32 bytes: the two persons compare it."""
        return base64.urlsafe_b64decode(f"{self._key.thumbprint()}==")

    def encrypt(self, plaintext: bytes) -> str:
        """A JWE in compact form."""
        header = {"alg": self._algorithm, "enc": CONTENT, "kid": self._key.thumbprint()}
        return jwe.encrypt_compact(header, plaintext, self._key, registry=_registry(self._algorithm))


class Opener:
    """The holder of the private key. Raises InvalidInputError, ConfigurationError."""

    def __init__(self, private_key: object, password: object = None) -> None:
        _check_installed()
        if password is not None and not isinstance(password, bytes):
            raise InvalidInputError("password is bytes, or unset")
        key: object = None
        with suppress(ValueError, TypeError):
            key = load_pem_private_key(_pem(private_key, _PRIVATE), password)
        if isinstance(key, RSAPrivateKey):
            self._key: RSAKey | ECKey = RSAKey.import_key(key)
            self._algorithm = RSA
        elif isinstance(key, EllipticCurvePrivateKey):
            self._key = ECKey.import_key(key)
            self._algorithm = ECDH
        else:
            raise InvalidInputError(_PRIVATE)

    def decrypt(self, text: str) -> bytes:
        """What a JWE holds. Raises InvalidInputError."""
        if len(text) <= LINE_CHARACTERS_MAX:
            with suppress(JoseError, ValueError, TypeError, KeyError):
                opened = jwe.decrypt_compact(text, self._key, registry=_registry(self._algorithm))
                if opened.plaintext is not None:
                    return opened.plaintext
        raise InvalidInputError(
            "a line of the export is damaged, or encrypted to another key", code="EXPORT_UNREADABLE"
        )


def _registry(algorithm: str) -> jwe.JWERegistry:
    """Accepts one way to encrypt; lines are longer than the 64 KiB that it takes on its own."""
    registry = jwe.JWERegistry(algorithms=[algorithm, CONTENT])
    registry.max_ciphertext_length = LINE_CHARACTERS_MAX
    return registry


def _pem(value: object, accepts: str) -> bytes:
    text = plain_text(value)
    pem = text.encode("ascii", "replace") if isinstance(text, str) else value
    if not isinstance(pem, bytes) or len(pem) > PEM_BYTES_MAX:
        raise InvalidInputError(accepts)
    return pem


def _check_installed() -> None:
    if not INSTALLED:
        raise ConfigurationError(
            "exports are encrypted by joserfc: pip install 'payment-tokenvault[export]'",
            code="EXPORT_NEEDS_JOSERFC",
        )
