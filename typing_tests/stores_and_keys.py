"""Token stores and key stores: how they are opened, and the ports that an adapter of one's own fits."""

from typing import assert_type

import tokenvault as tv
from tokenvault import keys, stores
from tokenvault.stores.port import SealedRecord


def opened() -> None:
    assert_type(tv.__version__, str)
    assert_type(tv.open_token_store("sqlite:///vault.db"), stores.TokenStore)
    assert_type(tv.open_async_token_store("memory:"), stores.AsyncTokenStore)
    assert_type(tv.open_key_store("file:keys.json"), keys.KeyStore)
    tv.open_token_store(b"memory:")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def key_stores(store: keys.KeyStore) -> None:
    name = keys.KeyName(tv.KeyPurpose.SEAL, 1)
    assert_type(store.cipher(name), keys.BlockCipher)
    assert_type(store.versions(tv.KeyPurpose.SEAL), tuple[int, ...])
    assert_type(store.create(tv.KeyPurpose.SEAL, tv.Custody.IN_MODULE, version=2), keys.KeyName)
    assert_type(store.signer(), keys.Signer | None)
    assert_type(store.create_signer(), keys.Signer | None)
    assert_type(store.destroy(name), None)
    assert_type(store.close(), None)
    key_stores(keys.FileKeyStore("file:keys.json"))
    key_stores(keys.Pkcs11KeyStore("pkcs11:token=vault"))


class OwnCipher:
    """Fits the port by its method alone."""

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        return blocks


def adapters(store: stores.TokenStore, over: stores.AsyncTokenStore, cipher: keys.BlockCipher) -> None:
    """What takes a port takes every adapter of it."""
    adapters(stores.MemoryTokenStore(), stores.ThreadedTokenStore(store), OwnCipher())
    adapters(stores.SqliteTokenStore("vault.db"), over, keys.LocalBlockCipher(bytes(16)))
    assert_type(cipher.encrypt_blocks(b""), bytes)


def own_adapters(keys: keys.KeyStore) -> None:
    """An adapter of one's own, blocking or awaited, is what a vault takes."""

    class Own(stores.MemoryTokenStore):
        pass

    tv.Vault(keys, Own())
    tv.AsyncVault(keys, stores.ThreadedTokenStore(Own()))
    assert_type(Own().find(bytes(16), limit=1), list[SealedRecord])
    stores.TokenStoreBase()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]


async def awaited(store: stores.AsyncTokenStoreBase) -> None:
    assert_type(await store.by_reference(bytes(16)), SealedRecord | None)
    over: stores.AsyncTokenStore = store
    await over.close()
