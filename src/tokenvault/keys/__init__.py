"""Key stores: where the vault's keys live, and the one operation that it needs of them.

`open_key_store` opens the store at an address. The PKCS#11 adapter is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, boundary
from tokenvault.keys.file import FileKeyStore
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore, Signer
from tokenvault.keys.uri import is_text

if TYPE_CHECKING:
    from tokenvault.keys.pkcs11.store import Pkcs11KeyStore

__all__ = [
    "BlockCipher",
    "Custody",
    "FileKeyStore",
    "KeyName",
    "KeyPurpose",
    "KeyStore",
    "LocalBlockCipher",
    "Pkcs11KeyStore",
    "Signer",
    "open_key_store",
]


@boundary
def open_key_store(uri: str) -> KeyStore:
    """Open the key store that a URI names.

    Args:
        uri: `pkcs11:token=...?module-path=...&pin-source=file:...` for keys in a PKCS#11 token;
            `file:keys.json` for keys in an encrypted file, for development only. See `tokenvault.keys.uri`.

    Raises:
        InvalidInputError: the URI is not one of these; the message never shows a PIN.
        KeyStoreError: the store can not be opened; the message says what to do.
    """
    if is_text(uri) and uri.startswith("pkcs11:"):
        from tokenvault.keys.pkcs11.store import Pkcs11KeyStore  # noqa: PLC0415 # see above

        return Pkcs11KeyStore(uri)
    if is_text(uri) and uri.startswith("file:"):
        return FileKeyStore(uri)
    raise InvalidInputError("a key store's address is text that begins with pkcs11: or file:")


def __getattr__(name: str) -> object:
    if name == "Pkcs11KeyStore":
        from tokenvault.keys.pkcs11.store import Pkcs11KeyStore  # noqa: PLC0415 # see above

        return Pkcs11KeyStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
