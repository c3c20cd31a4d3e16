"""Keys in a file, for development on machines without a PKCS#11 module. Do not use it in production.

Whoever reads the file and learns the passphrase has the keys; nothing logs that or slows it down. Custody is
written down with each key, and that is all: both custodies run in this process.

The passphrase becomes a key by scrypt, and all vault keys together are encrypted and authenticated under it (see
`file_format`). Creating and destroying hold a lock on `<file>.lock`, so that processes
take turns, and write a new file beside the old one that then takes its place: after a power cut there is the
old file or the new one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Final, NoReturn, Self

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys import file_format
from tokenvault.keys.port import (
    KEY_BYTES,
    Custody,
    KeyName,
    KeyPurpose,
    check_custody,
    check_name,
    check_purpose,
    next_name,
)
from tokenvault.keys.secrets import Secret, read_secret_file
from tokenvault.keys.uri import FileUri, parse_file_uri

_CLOSED: Final = "this key store is closed: open another"
_MODE: Final = 0o600


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
        self._wrapping_keys: dict[bytes, bytes] = {}  # by salt: scrypt is slow on purpose
        self._ciphers: dict[KeyName, LocalBlockCipher] = {}
        self._closed = False
        self._read()

    def cipher(self, key: KeyName) -> BlockCipher:
        """The cipher of one key version. Raises KeyStoreError when the file has no such key."""
        check_name(key)
        self._require_open()
        found = self._ciphers.get(key)
        if found is None:
            content = self._read()
            if key not in content.keys:
                raise KeyStoreError(f"the key file has no key {key}: create it (provision does)")
            found = self._ciphers.setdefault(key, LocalBlockCipher(content.keys[key].value))
        return found

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions in the file, ascending. Raises KeyStoreError."""
        check_purpose(purpose)
        return tuple(sorted(key.version for key in self._read().keys if key.purpose is purpose))

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        """Generate the next version of a purpose's key and write the file; with `version`, only if that is the next.

        Raises KeyStoreError.
        """
        check_purpose(purpose)
        check_custody(custody)
        self._require_open()
        with self._writing():
            content = self._read()
            name = next_name(purpose, content.newest.get(purpose, 0), version)
            key = file_format.StoredKey(custody, secrets.token_bytes(KEY_BYTES))
            self._write(content.with_key(name, key))
        return name

    def signer(self) -> None:
        """None: checkpoints stay unsigned. Raises KeyStoreError."""
        self._require_open()

    def create_signer(self) -> None:
        """None, likewise."""
        self._require_open()

    def destroy(self, key: KeyName) -> None:
        """Remove one version from the file. Backups of the file still have it. Raises KeyStoreError."""
        check_name(key)
        self._require_open()
        with self._writing():
            content = self._read()
            if key not in content.keys:
                raise KeyStoreError(f"the key file has no key {key}")
            self._write(content.without_key(key))
        self._ciphers.pop(key, None)

    def close(self) -> None:
        """Forget every key; idempotent. Ciphers that callers keep hold their keys themselves."""
        self._closed = True
        self._ciphers.clear()
        self._wrapping_keys.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FileKeyStore({self._path!r})"

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError("a key store can not be pickled or copied: open it where it is needed")

    def _require_open(self) -> None:
        if self._closed:
            raise KeyStoreError(_CLOSED)

    def _wrapping_key(self, salt: bytes) -> bytes:
        key = self._wrapping_keys.get(salt)
        if key is None:
            key = self._wrapping_keys.setdefault(salt, file_format.wrapping_key(self._passphrase, salt))
        return key

    def _read(self) -> file_format.Content:
        self._require_open()
        with _explained("read", "correct the path or its mode"):
            try:
                with open(self._path, "rb") as file:
                    text = file.read(file_format.FILE_BYTES_MAX + 1)
            except FileNotFoundError:
                return file_format.Content()
        return file_format.parse(text, self._wrapping_key)

    def _write(self, content: file_format.Content) -> None:
        text = file_format.serialize(content, self._wrapping_key)
        folder = os.path.dirname(self._path)
        with _explained("written", "look at its folder"):
            handle, temporary = tempfile.mkstemp(prefix=".keys-", suffix=".tmp", dir=folder)  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise
            _sync_folder(folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other threads and processes from writing."""
        with ExitStack() as opened:
            with _explained("locked", "look at its folder"):
                lock = opened.enter_context(open(self._path + ".lock", "ab", opener=_open_private))
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Not by closing alone: a child forked meanwhile has a copy of the handle, which would keep the lock.
                fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def _explained(done: str, advice: str) -> Iterator[None]:
    """Raise KeyStoreError for an OSError, without the path that this one names."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
    else:
        return
    raise KeyStoreError(f"the key file can not be {done} ({reason}): {advice}")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)


def _passphrase(uri: FileUri) -> Secret:
    if uri.passphrase_path is not None:
        return read_secret_file(uri.passphrase_path, "passphrase-source")
    passphrase = os.environ.get(uri.passphrase_env or "")
    if not passphrase:
        raise KeyStoreError(
            "there is no passphrase for the key file: set the environment variable TOKENVAULT_PASSPHRASE "
            "(or the one that passphrase-env names), or write passphrase-source=file:... into the URI"
        )
    return Secret(passphrase)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
