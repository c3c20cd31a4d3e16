"""Keys in a file, for development on machines without a PKCS#11 module. Do not use it in production.

Whoever reads the file and learns the passphrase has the keys; nothing logs that or slows it down. Both custodies
run in this process. An older copy of the whole file put back is not noticed.

The file is a JSON object in ASCII; bytes are written as lower-case hex:

    format      "tokenvault-keys-1"
    scrypt      {"n": 131072, "p": 1, "r": 8, "salt": 16 bytes}
    nonce       12 bytes, new with each write
    keys        ciphertext and a 16-byte tag

`keys` is AES-256-GCM under a wrapping key of 32 bytes, scrypt of the passphrase; the associated data is format and
scrypt as canonical JSON. What is encrypted is canonical JSON too:

    keys        [{"purpose", "version", "custody", "key": 32 bytes}]
    newest      {purpose: number of the newest version ever made}

Creating and destroying hold a lock on `<file>.lock`, so that one process writes at a time. They write a new file
and rename it over the old one: after a power cut there is the old file or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn, Self, TypeVar

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError, without_numbers
from tokenvault.interrupts import is_interrupt
from tokenvault.keys.port import KEY_BYTES, Custody, KeyName, KeyPurpose, next_name
from tokenvault.keys.private_files import open_lock, open_private, replace_file
from tokenvault.keys.secrets import Secret, read_secret_file
from tokenvault.keys.uri import FileUri, parse_file_uri
from tokenvault.model import checks
from tokenvault.runtime import put_result

T = TypeVar("T")

FILE_BYTES_MAX: Final = 4 * 2**20

# scrypt (RFC 7914) with the parameters that the OWASP Password Storage Cheat Sheet recommends; takes 128 MiB.
SCRYPT: Final = {"n": 2**17, "r": 8, "p": 1}
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12

LOCK_SECONDS_MAX: Final = 30.0
"""How long creating and destroying wait for another process that does so, which takes less than a second."""

_LOCK_POLL_SECONDS: Final = 0.01
_LOCKED: Final = (
    "another process held the key file's lock for too long; nothing was written: look for one that hangs"
)


@attrs.frozen
class StoredKey:
    """A key's bytes and its custody."""

    custody: Custody
    value: bytes = attrs.field(repr=False)


@attrs.frozen
class Content:
    """What a key file holds, decrypted, and the salt of its wrapping key."""

    keys: dict[KeyName, StoredKey] = attrs.field(factory=dict, repr=False)
    newest: dict[KeyPurpose, int] = attrs.field(factory=dict)
    salt: bytes = attrs.field(factory=lambda: os.urandom(SALT_BYTES))


class FileKeyStore:
    """Keeps keys in an encrypted file. For development only; custody IN_MODULE runs in this process too.

    The file appears with the first `create`. Version numbers of destroyed keys are not given out again.

    Args:
        uri: `file:keys.json`, with `?passphrase-source=file:...` or `?passphrase-env=NAME`; without either
            the environment variable TOKENVAULT_PASSPHRASE holds the passphrase.

    Raises:
        InvalidInputError: the URI is not right.
        KeyStoreError: there is no passphrase, it is wrong, or the file was changed.
    """

    def __init__(self, uri: str | FileUri) -> None:
        parsed = uri if isinstance(uri, FileUri) else parse_file_uri(uri)
        self._path: Final = parsed.path
        self._passphrase: Final = _passphrase(parsed)
        self._aeads: dict[bytes, AESGCM] = {}  # by salt: scrypt is slow on purpose
        self._closed = False
        self._read()

    def cipher(self, key: KeyName) -> BlockCipher:
        """The cipher of one key version. Raises KeyStoreError when the file has no such key."""
        checks.instance("key", key, KeyName)
        stored = self._read().keys.get(key)
        if stored is None:
            raise KeyStoreError(
                f"the key file has no key {key}: create it (provision does)", code="KEY_STORE_KEY_MISSING"
            )
        return LocalBlockCipher(stored.value)

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions in the file, ascending. Raises KeyStoreError."""
        checks.instance("purpose", purpose, KeyPurpose)
        return tuple(sorted(key.version for key in self._read().keys if key.purpose is purpose))

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        """Generate the next version of a purpose's key; `version` as in the port. Raises KeyStoreError."""
        checks.instance("purpose", purpose, KeyPurpose)
        checks.instance("custody", custody, Custody)

        def add(content: Content) -> KeyName:
            name = next_name(purpose, content.newest.get(purpose, 0), version)
            content.keys[name] = StoredKey(custody, secrets.token_bytes(KEY_BYTES))
            content.newest[purpose] = name.version
            return name

        return self._change(add)

    def signer(self) -> None:
        """None: checkpoints stay unsigned. Raises KeyStoreError."""
        self._require_open()

    def create_signer(self) -> None:
        """None: this store makes no key pair. Raises KeyStoreError."""
        self._require_open()

    def destroy(self, key: KeyName) -> None:
        """Remove one version from the file. Backups of the file still have it. Raises KeyStoreError."""
        checks.instance("key", key, KeyName)

        def remove(content: Content) -> None:
            if content.keys.pop(key, None) is None:
                raise KeyStoreError(f"the key file has no key {key}", code="KEY_STORE_KEY_MISSING")

        self._change(remove)

    def close(self) -> None:
        """Forget every key; idempotent. Ciphers that callers keep hold their keys themselves."""
        self._closed = True
        self._aeads.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return without_numbers(f"FileKeyStore({self._path!r})")

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError("a key store can not be pickled or copied: open it where it is needed")

    def _require_open(self) -> None:
        if self._closed:
            raise KeyStoreError("this key store is closed: open another", code="KEY_STORE_CLOSED")

    def _aead(self, salt: bytes) -> AESGCM:
        aead = self._aeads.get(salt)
        if aead is None:
            aead = self._aeads[salt] = AESGCM(wrapping_key(self._passphrase, salt))
        return aead

    def _read(self) -> Content:
        self._require_open()
        with _explained("read", "correct the path or its mode"):
            try:
                with open_private(self._path, "the key file") as file:
                    text = file.read(FILE_BYTES_MAX + 1)
            except FileNotFoundError:
                return Content()
        return parse(text, self._aead)

    def _write(self, content: Content) -> None:
        text = serialize(content, self._aead(content.salt))
        folder = os.path.dirname(self._path)
        with _explained("written", "look at its folder"):
            replace_file(self._path, text)
            handle: list[int] = []
            try:
                put_result(handle, os.open, folder, os.O_RDONLY)
                os.fsync(handle[0])
            finally:
                if handle:
                    os.close(handle[0])

    def _change(self, change: Callable[[Content], T]) -> T:
        """Write the file as a function changes what it holds, while no other thread or process can; its result."""
        self._require_open()
        lock: list[
            int
        ] = []  # filled and emptied by one step each (see `runtime`): no interrupt leaves it held
        try:
            with _explained("locked", "look at its folder"):
                open_lock(lock, self._path + ".lock", os.O_WRONLY | os.O_CREAT)
                _wait_for_lock(lock[0])
            content = self._read()
            result = change(content)
            self._write(content)
            return result
        finally:
            if lock:
                # Not by closing alone: a child forked meanwhile has a copy of the handle, which would keep the lock.
                fcntl.flock(lock[0], fcntl.LOCK_UN)
                os.close(lock[0])


def _wait_for_lock(lock: int) -> None:
    """Lock a file for this process alone. Raises KeyStoreError where others hold it for LOCK_SECONDS_MAX."""
    until = time.monotonic() + LOCK_SECONDS_MAX
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > until:
            raise KeyStoreError(_LOCKED, code="KEY_STORE_FILE_LOCKED")
        time.sleep(_LOCK_POLL_SECONDS)


@contextmanager
def _explained(done: str, advice: str) -> Iterator[None]:
    """Raise KeyStoreError for an OSError, without the path that this one names."""
    try:
        yield
    except OSError as error:
        if is_interrupt(error):  # a time limit may be a TimeoutError
            raise
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise KeyStoreError(
            f"the key file can not be {done} ({reason}): {advice}", code="KEY_STORE_FILE_FAILED"
        ) from None


def _passphrase(uri: FileUri) -> Secret:
    if uri.passphrase_path is not None:
        return read_secret_file(uri.passphrase_path, "passphrase-source")
    passphrase = os.environ.get(uri.passphrase_env or "")
    if not passphrase:
        raise KeyStoreError(
            "there is no passphrase for the key file: set the environment variable TOKENVAULT_PASSPHRASE "
            "(or the one that passphrase-env names), or write passphrase-source=file:... into the URI",
            code="KEY_STORE_PASSPHRASE_MISSING",
        )
    return Secret(passphrase)


def wrapping_key(passphrase: Secret, salt: bytes) -> bytes:
    """The wrapping key of a passphrase and a salt."""
    scrypt = Scrypt(salt=salt, length=KEY_BYTES, **SCRYPT)
    return scrypt.derive(passphrase.reveal().encode("utf-8", "surrogateescape"))


def serialize(content: Content, aead: AESGCM) -> bytes:
    """The file's bytes, encrypted under the wrapping key of the content's salt."""
    keys = [
        {
            "purpose": name.purpose.value,
            "version": name.version,
            "custody": key.custody.value,
            "key": key.value.hex(),
        }
        for name, key in content.keys.items()
    ]
    newest = {purpose.value: version for purpose, version in content.newest.items()}
    plain, nonce = _canonical({"keys": keys, "newest": newest}), os.urandom(NONCE_BYTES)
    sealed = aead.encrypt(nonce, plain, _canonical(_header(content.salt)))
    return json.dumps(_document(content.salt, nonce, sealed), indent=1).encode() + b"\n"


def parse(text: bytes, aead_of: Callable[[bytes], AESGCM]) -> Content:
    """Read a file's bytes; `aead_of` gives AES-GCM under the wrapping key of a salt.

    Raises:
        KeyStoreError: it is no key file, was changed, or the passphrase is another.
    """
    try:
        return _content(text, aead_of)
    except InvalidTag:
        code = "KEY_STORE_PASSPHRASE_WRONG"
        reason = "the passphrase is not the one that the key file was written with, or the file was changed"
    except (ValueError, TypeError, LookupError, RecursionError):  # what reading something else raises
        code = "KEY_STORE_FILE_DAMAGED"
        reason = "the key file is damaged, was changed, or is no key file: restore it from a backup"
    raise KeyStoreError(reason, code=code)  # after the except: the original holds what was decrypted


def _content(text: bytes, aead_of: Callable[[bytes], AESGCM]) -> Content:
    if len(text) > FILE_BYTES_MAX:
        raise ValueError
    document = json.loads(text.decode("ascii"), object_pairs_hook=_no_repeats)
    salt = bytes.fromhex(document["scrypt"]["salt"])
    nonce, sealed = bytes.fromhex(document["nonce"]), bytes.fromhex(document["keys"])
    # Other scrypt parameters could ask for all memory before the tag shows that the file was changed.
    if _canonical(document) != _canonical(_document(salt, nonce, sealed)):
        raise ValueError
    content = json.loads(aead_of(salt).decrypt(nonce, sealed, _canonical(_header(salt))))
    keys = {
        KeyName(KeyPurpose(key["purpose"]), key["version"]): StoredKey(
            Custody(key["custody"]), bytes.fromhex(key["key"])
        )
        for key in content["keys"]
    }
    newest = {KeyPurpose(purpose): version for purpose, version in content["newest"].items()}
    return Content(keys, newest, salt)


def _header(salt: bytes) -> dict[str, object]:
    return {"format": "tokenvault-keys-1", "scrypt": {**SCRYPT, "salt": salt.hex()}}


def _document(salt: bytes, nonce: bytes, sealed: bytes) -> dict[str, object]:
    return {**_header(salt), "nonce": nonce.hex(), "keys": sealed.hex()}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError
    return names
