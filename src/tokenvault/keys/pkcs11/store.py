"""Keys in a PKCS#11 token: SoftHSM for tests, a hardware security module in production.

The module needs CKM_AES_KEY_GEN, CKM_AES_ECB, searching by label and reading attributes.
Each key is one object; its label holds purpose, version and custody (see `objects`).

IN_MODULE: every block goes through the module, requests of concurrent threads merged into one call.
IN_PROCESS: the module's key encrypts a few blocks once, at the first `cipher` of that key, to derive a data key
    that stays in this process's memory for as long as anyone holds the cipher. From then on the module is not
    needed, not even by a forked child.

One call of python-pkcs11's `encrypt` is C_EncryptInit and C_Encrypt twice, first for the length of the answer
and then for the answer. Its chunked form asks twice for each chunk and once more for the end, so nothing in
python-pkcs11 avoids this. Asking for the length does not use the key; over a network it costs a
round trip.
"""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, Self

from pkcs11 import EncryptMixin, Mechanism

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.kdf import derive
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.coalescer import BLOCKS_PER_CALL_MAX, Coalescer
from tokenvault.keys.pkcs11.errors import CollisionError
from tokenvault.keys.pkcs11.sessions import CLOSED, TokenSessions
from tokenvault.keys.pkcs11.signer import ModuleSigner, create_signer, find_signer
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
from tokenvault.keys.uri import Pkcs11Uri, parse_pkcs11_uri

DERIVATION_LABEL: Final = b"tokenvault data key"
_IDENTITY_BYTES: Final = 16
CREATE_ATTEMPTS_MAX: Final = 8
LOOKS_MAX: Final = 5
PAUSE_SECONDS: Final = (0.02, 0.08)
"""Bounds of the random pause before looking again at what another process may be about to withdraw."""
BLOCKS_PER_CALL_ATTRIBUTE: Final = "x-blocks-per-call-max"
_NUMBER: Final = re.compile(r"[0-9]{1,7}", re.ASCII)


class _ModuleCipher:
    """A key of the module as a BlockCipher.

    Args:
        encrypt: encrypts whole blocks under the key.
    """

    __slots__ = ("_encrypt",)

    def __init__(self, encrypt: Callable[[bytes], bytes]) -> None:
        self._encrypt = encrypt

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        if type(blocks) is not bytes or len(blocks) % BLOCK_BYTES:
            raise InvalidInputError("blocks must be bytes, a whole number of 16-byte blocks")
        return self._encrypt(blocks)


class Pkcs11KeyStore:
    """Keeps keys in the token that a `pkcs11:` URI names. Logs in at once.

    Safe to share between threads, and usable in forked children. All stores of a process on one token share
    one login, which the last one to close ends. After a failure the next call connects to the module again.

    A PIN that the token refused is not tried again by this store until the PIN source gives another one.

    Do not destroy the newest version of a purpose: a token keeps no memory of it, and the next version
    created would take its number.

    Args:
        uri: see `tokenvault.keys.uri`. The vendor attribute `x-blocks-per-call-max` of its query sets how
            many blocks go into one module call, for modules that take less than 16 MiB, or are not to be busy
            for so long.

    Raises:
        InvalidInputError: the URI is not right; the message never shows its PIN.
        KeyStoreError: the module, the token or the PIN is not right; the message says what to do.
    """

    def __init__(self, uri: str | Pkcs11Uri) -> None:
        self._uri: Final = uri if isinstance(uri, Pkcs11Uri) else parse_pkcs11_uri(uri)
        self._blocks_per_call_max: Final = _blocks_per_call_max(self._uri)
        self._sessions: Final = TokenSessions(self._uri)
        self._data_keys: dict[KeyName, LocalBlockCipher] = {}
        self._operations = 0
        self._sessions.run(lambda state: None)

    @property
    def operations(self) -> int:
        """Encryptions in the module since the store was opened, each of many blocks."""
        return self._operations

    def cipher(self, key: KeyName) -> BlockCipher:
        """The cipher of one key version.

        One in IN_PROCESS custody is a LocalBlockCipher: it holds its data key itself, so it works as long as
        the caller keeps it, also when the module is gone or this store is closed.

        Raises:
            KeyStoreError: the token has no such key, or two, or one with unsafe attributes, or can not be
                reached.
        """
        check_name(key)
        if self._sessions.closed:
            raise KeyStoreError(CLOSED)
        data_key = self._data_keys.get(key)
        if data_key is not None:
            return data_key
        with self._sessions.state().module.lock:  # so that two threads do not both use the module's key
            custody = self._sessions.use(key, lambda found: found.custody)
            if custody is Custody.IN_MODULE:
                return _ModuleCipher(partial(self._encrypt, key))
            if key not in self._data_keys:
                self._data_keys[key] = self._derive(key)
            return self._data_keys[key]

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions that the token holds, ascending. Raises KeyStoreError."""
        check_purpose(purpose)
        for _ in range(LOOKS_MAX):
            versions = sorted(self._found(purpose))
            if len(set(versions)) == len(versions):
                return tuple(versions)
            _pause()  # two processes may be creating at this moment; then one will withdraw
        raise objects.duplicate(KeyName(purpose, next(v for v in versions if versions.count(v) > 1)))

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        """Generate the next version of a purpose's key in the token; with `version`, only if that is the next.

        Processes that create at the same moment look again after generating: who then sees another key of the
        same name destroys its own and, after a short random pause, finds out whether the other one stayed.

        Raises:
            KeyStoreError: another process created this version meanwhile (nothing was created here: look at
                `versions`), or the module made a key with other attributes than asked for, or can not be
                reached.
        """
        check_purpose(purpose)
        check_custody(custody)
        lost = 0
        for _ in range(CREATE_ATTEMPTS_MAX):
            with self._sessions.state().module.lock:  # so that threads of one process get a version each
                name = next_name(purpose, max(self._found(purpose), default=0), version)
                if 0 < lost < name.version:
                    raise KeyStoreError(
                        f"another process created {purpose.value} version {lost} at the same moment; "
                        "nothing was created here: look at versions() before you ask again"
                    )
                made = self._generate(name, custody)
                if made is not None:
                    return made
                lost = name.version
            _pause()
        raise KeyStoreError(
            "too many processes create keys at once: nothing was created here, try again later"
        )

    def _generate(self, name: KeyName, custody: Custody) -> KeyName | None:
        """Make a key; None where another process makes it too. What can not be proved is destroyed again."""
        identity = secrets.token_bytes(_IDENTITY_BYTES)
        try:
            self._sessions.write(lambda session: objects.make(session, name, custody, identity))
        except CollisionError:
            return None
        except KeyStoreError as error:
            failure = error
        else:
            return name
        self._sessions.withdraw(identity)
        raise failure

    def signer(self) -> ModuleSigner | None:
        """The key pair that signs checkpoints, if the token has one. Raises KeyStoreError."""
        return find_signer(self._sessions)

    def create_signer(self) -> ModuleSigner | None:
        """Make that pair unless there is one; None where the module can not. Raises KeyStoreError.

        Processes that make it at the same moment end up with one, as with `create`.
        """
        for attempt in range(CREATE_ATTEMPTS_MAX):
            try:
                return create_signer(self._sessions)
            except CollisionError:
                _pause(1 + attempt)
        raise KeyStoreError(
            f"the token holds more than one key {objects.SIGNER_LABEL}, or processes keep making them at once: "
            "find out with the module's own tools, and remove the one that is not used"
        )

    def destroy(self, key: KeyName) -> None:
        """Destroy one version for ever. Other processes may hold its data key until they close.

        Raises:
            KeyStoreError: there is no such key, or there are two, or the token can not be reached.
        """
        check_name(key)
        self._sessions.destroy(key)
        self._data_keys.pop(key, None)

    def close(self) -> None:
        """Log out, unless others in this process use the token too, and forget every key. Idempotent."""
        if not self._sessions.closed:
            self._sessions.close()
        self._data_keys.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Pkcs11KeyStore({self._uri!r})"  # the URI's own repr leaves the PIN out

    def __reduce__(self) -> NoReturn:
        raise InvalidInputError("a key store can not be pickled or copied: open it where it is needed")

    def _found(self, purpose: KeyPurpose) -> list[int]:
        return [key.name.version for key in self._sessions.find(purpose)]

    def _encrypt(self, name: KeyName, blocks: bytes) -> bytes:
        if self._sessions.closed:
            raise KeyStoreError(CLOSED)
        if not blocks:
            return b""
        state = self._sessions.state()
        coalescer = state.coalescers.get(name)
        if coalescer is None:
            made = Coalescer(
                partial(self._call, name), state.module.lock, blocks_per_call_max=self._blocks_per_call_max
            )
            coalescer = state.coalescers.setdefault(name, made)
        return coalescer.encrypt(blocks)

    def _call(self, name: KeyName, blocks: bytes) -> bytes:
        return self._sessions.use(name, lambda key: self._encrypt_in_module(key, blocks))

    def _encrypt_in_module(self, key: objects.TokenKey, blocks: bytes) -> bytes:
        """The one place where blocks enter the module; tests slow it down or break it here."""
        self._operations += 1
        key_object = key.object
        if not isinstance(key_object, EncryptMixin):
            raise objects.unfit(key.name, ["ENCRYPT"])
        answer = key_object.encrypt(blocks, mechanism=Mechanism.AES_ECB)
        return answer if isinstance(answer, bytes) else b"".join(answer)

    def _derive(self, name: KeyName) -> LocalBlockCipher:
        """The data key of a key. Its blocks go straight into the module, whose lock the thread holds."""
        cipher = _ModuleCipher(partial(self._call, name))
        context = f"{name.purpose.value}/{name.version}".encode()
        # no local holds the data key
        return LocalBlockCipher(derive(cipher, label=DERIVATION_LABEL, context=context, length=KEY_BYTES))


def _pause(times: int = 1) -> None:
    time.sleep(times * random.uniform(*PAUSE_SECONDS))  # noqa: S311 # spreads retries, no secret


def _blocks_per_call_max(uri: Pkcs11Uri) -> int:
    text = uri.vendor(BLOCKS_PER_CALL_ATTRIBUTE)
    if text is None:
        return BLOCKS_PER_CALL_MAX
    number = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= number <= BLOCKS_PER_CALL_MAX:
        raise InvalidInputError(
            f"{BLOCKS_PER_CALL_ATTRIBUTE} is a whole number from 1 to {BLOCKS_PER_CALL_MAX}"
        )
    return number
