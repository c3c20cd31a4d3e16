"""Keys in a PKCS#11 token: SoftHSM for tests, a hardware security module in production.

What is asked of the module: CKM_AES_KEY_GEN, CKM_AES_ECB, searching by label and reading attributes.
Each key is one object; its label holds purpose, version and custody (see `objects`).

IN_MODULE: every block goes through the module, requests of concurrent threads merged into one call.
IN_PROCESS: the module's key encrypts a few blocks once, at the first `cipher` of that key, to derive a data key
    that stays in this process's memory for as long as anyone holds the cipher. From then on the module is not
    needed, not even by a forked child.
"""

from __future__ import annotations

import random
import secrets
import time
from functools import partial
from types import TracebackType
from typing import Final, NoReturn, Self

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.crypto.kdf import derive
from tokenvault.crypto.local_cipher import LocalBlockCipher
from tokenvault.errors import InvalidInputError, KeyStoreError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.coalescer import BLOCKS_PER_CALL_MAX, Coalescer
from tokenvault.keys.pkcs11.constants import Mechanism
from tokenvault.keys.pkcs11.cryptoki import CallError, Session
from tokenvault.keys.pkcs11.errors import (
    LOST,
    NOT_OFFERED,
    PERMANENT,
    CollisionError,
    both_refused,
    refuses_ecb,
)
from tokenvault.keys.pkcs11.sessions import CLOSED, State, TokenSessions
from tokenvault.keys.pkcs11.signer import ModuleSigner, create_signer, find_signer
from tokenvault.keys.pkcs11.worker import CALL_SECONDS
from tokenvault.keys.port import KEY_BYTES, Custody, KeyName, KeyPurpose, next_name
from tokenvault.keys.secrets import Secret
from tokenvault.keys.uri import Pkcs11Uri, parse_pkcs11_uri
from tokenvault.model import checks

DERIVATION_LABEL: Final = b"tokenvault data key"
CREATE_ATTEMPTS_MAX: Final = 8
LOOKS_MAX: Final = 5
PAUSE_SECONDS: Final = (0.02, 0.08)
"""Bounds of the random pause before looking again at what another process may be about to withdraw."""
UNTRIED_SIZE_TRIES: Final = 2
"""Calls with more blocks than ever went through, before fewer are tried."""

BLOCKS_PER_CALL_LIMIT: Final = 2**20
BLOCKS_PER_CALL_ATTRIBUTE: Final = "x-blocks-per-call-max"
CALL_SECONDS_LIMIT: Final = 3_600
CALL_SECONDS_ATTRIBUTE: Final = "x-call-seconds-max"


class _ModuleCipher:
    """A key in IN_MODULE custody."""

    __slots__ = ("_key", "_store")

    def __init__(self, store: Pkcs11KeyStore, key: KeyName) -> None:
        self._store = store
        self._key = key

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        return self._store._encrypt(self._key, _checked(blocks))


class _DerivingCipher:
    """A key while a data key is derived from it: straight into the module, whose lock the thread holds."""

    __slots__ = ("_key", "_store")

    def __init__(self, store: Pkcs11KeyStore, key: KeyName) -> None:
        self._store = store
        self._key = key

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        return self._store._call(self._key, _checked(blocks))


class Pkcs11KeyStore:
    """Keeps keys in the token that a `pkcs11:` URI names. Logs in at once.

    Safe to share between threads, and usable in forked children. All stores of a process on one token share
    one login; closing one of them leaves it to the others. After a failure the next call looks for the module
    again.

    A PIN that the token refused is not tried again in this process until the PIN source gives another one. No call
    waits for the module for longer than a bound; what it asked for may still happen after that.

    A version that is destroyed leaves a mark in the token: its number is not used again.

    Args:
        uri: see `tokenvault.keys.uri`. Vendor attributes of its query: `x-call-seconds-max`, how long a call may
            take (20 seconds unless told otherwise); `x-blocks-per-call-max`, how many blocks go into one module
            call at most, for modules that are not to be busy for long (what a module takes is found out by use);
            `x-init-args`, what C_Initialize is given.

    Raises:
        InvalidInputError: the URI is not right; the message never shows its PIN.
        KeyStoreError: the module, the token or the PIN is not right; the message says what to do.
    """

    def __init__(self, uri: str | Pkcs11Uri) -> None:
        self._uri: Final = uri if isinstance(uri, Pkcs11Uri) else parse_pkcs11_uri(uri)
        self._blocks_per_call_max: Final = (
            _whole_number(self._uri, BLOCKS_PER_CALL_ATTRIBUTE, BLOCKS_PER_CALL_LIMIT) or BLOCKS_PER_CALL_MAX
        )
        self._call_seconds: Final = (
            _whole_number(self._uri, CALL_SECONDS_ATTRIBUTE, CALL_SECONDS_LIMIT) or CALL_SECONDS
        )
        self._sessions: Final = TokenSessions(self._uri, self._call_seconds)
        self._data_keys: dict[KeyName, LocalBlockCipher] = {}
        self._operations = 0
        self._sessions.run(lambda state: None)

    @property
    def operations(self) -> int:
        """Encryptions that the module was asked for since the store was opened, each of many blocks."""
        return self._operations

    def cipher(self, key: KeyName) -> BlockCipher:
        """The cipher of one key version.

        One in IN_PROCESS custody is a LocalBlockCipher: it holds its data key itself, so it works as long as
        the caller keeps it, also when the module is gone or this store is closed.

        Raises:
            KeyStoreError: the token has no such key, or two, or one with unsafe attributes, or can not be
                reached.
        """
        checks.instance("key", key, KeyName)
        if self._sessions.closed:
            raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
        data_key = self._data_keys.get(key)
        return self._sessions.alone(lambda: self._cipher(key)) if data_key is None else data_key

    def _cipher(self, key: KeyName) -> BlockCipher:
        custody = self._sessions.run(lambda state: self._sessions.hold(state, key).custody)
        if custody is Custody.IN_MODULE:
            return _ModuleCipher(self, key)
        if key not in self._data_keys:
            self._data_keys[key] = self._derive(key)
        return self._data_keys[key]

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        """The versions that the token holds, ascending. Raises KeyStoreError."""
        checks.instance("purpose", purpose, KeyPurpose)
        for _ in range(LOOKS_MAX):
            versions, _newest = self._found(purpose)
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
        checks.instance("purpose", purpose, KeyPurpose)
        checks.instance("custody", custody, Custody)
        lost = 0
        for _ in range(CREATE_ATTEMPTS_MAX):
            try:
                # Alone, so that threads of one process get a version each.
                return self._sessions.alone(partial(self._create, purpose, custody, version, lost))
            except CollisionError as error:
                lost = error.version
            _pause()
        raise KeyStoreError(
            "too many processes create keys at once: nothing was created here, try again later",
            code="KEY_STORE_VERSION_TAKEN",
        )

    def _create(self, purpose: KeyPurpose, custody: Custody, version: int | None, lost: int) -> KeyName:
        """Make the next version, but not the one after a version that another process has just made."""
        _, newest = self._found(purpose)
        name = next_name(purpose, newest, version)
        if 0 < lost < name.version:
            raise KeyStoreError(
                f"another process created {purpose.value} version {lost} at the same moment; "
                "nothing was created here: look at versions() before you ask again",
                code="KEY_STORE_VERSION_TAKEN",
            )
        try:
            return self._generate(name, custody)
        except CollisionError:
            raise CollisionError(name.version) from None

    def bring_in(self, name: KeyName, custody: Custody, key: Secret) -> None:
        """Make an object of a key from outside (64 hexadecimal digits), as `keys.ceremony` puts it together.

        Raises:
            KeyStoreError: the token has this version or a newer one, or had it, or does not take a key from outside,
                or can not be reached.
        """
        self._sessions.alone(partial(self._bring_in, name, custody, key))

    def _bring_in(self, name: KeyName, custody: Custody, key: Secret) -> None:
        _, newest = self._found(name.purpose)
        if name.version <= newest:
            raise KeyStoreError(
                f"the token has or had {name} or a newer version: bring older ones in first",
                code="KEY_STORE_VERSION_TAKEN",
            )
        try:
            self._generate(name, custody, key)
        except CollisionError:
            raise KeyStoreError(
                f"another process made {name} at the same moment; nothing was brought in",
                code="KEY_STORE_VERSION_TAKEN",
            ) from None

    def _generate(self, name: KeyName, custody: Custody, key: Secret | None = None) -> KeyName:
        """Make a key; what can not be proved is destroyed again. CollisionError: another process makes it too."""
        identity = secrets.token_bytes(objects.IDENTITY_BYTES)
        try:
            return self._sessions.run(
                partial(self._sessions.generate, name=name, custody=custody, identity=identity, key=key)
            )
        except KeyStoreError as error:
            failure = error
        self._sessions.run(partial(self._sessions.withdraw, identity=identity), undoing=True)
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
            "find out with the module's own tools, and remove the one that is not used",
            code="KEY_STORE_KEY_DUPLICATE",
        )

    def destroy(self, key: KeyName) -> None:
        """Destroy one version for ever. Other processes may hold its data key until they close.

        Raises:
            KeyStoreError: there is no such key, or there are two, or the token can not be reached.
        """
        checks.instance("key", key, KeyName)
        try:
            self._sessions.run(lambda state: self._sessions.destroy(state, key))
        finally:  # the worker may destroy it though nobody waits any more
            self._data_keys.pop(key, None)

    def close(self) -> None:
        """Log out, unless others in this process use the token too, and forget every key. Idempotent."""
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

    def _found(self, purpose: KeyPurpose) -> tuple[list[int], int]:
        return self._sessions.run(lambda state: self._sessions.find(state, purpose))

    def _encrypt(self, name: KeyName, blocks: bytes) -> bytes:
        if self._sessions.closed:
            raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
        if not blocks:
            return b""
        state = self._sessions.state()
        coalescer = state.coalescers.get(name)
        if coalescer is None:
            coalescer = state.coalescers.setdefault(
                name,
                Coalescer(
                    partial(self._call, name),
                    state.module.worker,
                    blocks_per_call_max=self._blocks_per_call_max,
                    seconds=self._call_seconds,
                ),
            )
        self._sessions.back_off(state)
        return coalescer.encrypt(blocks)

    def _call(self, name: KeyName, blocks: bytes) -> bytes:
        """Encrypt in the module. In the worker's thread."""
        return self._sessions.run(
            lambda state: self._encrypt_in_module(self._sessions.hold(state, name), blocks)
        )

    def _encrypt_in_module(self, key: objects.TokenKey, blocks: bytes) -> bytes:
        """The one place where blocks enter the module; tests slow it down or break it here."""
        state = self._sessions.state()
        answers = []
        start = 0
        while start < len(blocks):
            size = min(state.module.limits.size * BLOCK_BYTES, len(blocks) - start)
            key, answer = self._encrypt_piece(state, key, blocks[start : start + size])
            answers.append(answer)
            start += max(len(answer), BLOCK_BYTES)
        return b"".join(answers)

    def _encrypt_piece(
        self, state: State, key: objects.TokenKey, piece: bytes
    ) -> tuple[objects.TokenKey, bytes]:
        """Encrypt as much as one call takes: less, where so much was never tried before and is refused.

        Refused whatever the return code: so it is refused when it fails twice and less goes through. That what went
        through before fails is no matter of size.
        """
        limits = state.module.limits
        size, known = len(piece) // BLOCK_BYTES, max(limits.good, 1)
        for _ in range(UNTRIED_SIZE_TRIES if size > known else 0):
            try:
                answer = self._enter(state, key, piece)
            except CallError as error:
                if error.code in NOT_OFFERED or error.code in LOST:
                    raise
                key = self._sessions.hold_anew(state, key.name)
            else:
                limits.worked(size)
                return key, answer
        answer = self._enter(state, key, piece[: known * BLOCK_BYTES])
        if size > known:
            limits.failed(size)
        else:
            limits.worked(size)
        return key, answer

    def _enter(self, state: State, key: objects.TokenKey, blocks: bytes) -> bytes:
        """One call into the module; in CBC mode, one for each block."""
        session = self._sessions.session(state)
        if state.module.without_ecb and key.custody is Custody.IN_PROCESS:
            return self._enter_with_cbc(session, key, blocks)
        self._operations += 1
        try:
            return session.encrypt(key.handle, Mechanism.AES_ECB, blocks)
        except CallError as error:
            refused = error
        if key.custody is Custody.IN_PROCESS and refuses_ecb(refused):
            try:
                answer = self._enter_with_cbc(session, key, blocks)
            except CallError as error:
                raise both_refused(refused, error) from None
            # Other codes may be about this key, or this moment.
            state.module.without_ecb = refused.code in NOT_OFFERED
            return answer
        if refuses_ecb(refused) and refused.code in PERMANENT:
            raise KeyStoreError(
                f"the module refuses AES-ECB ({refused}), which keys in custody IN_MODULE need; custody IN_PROCESS "
                "gets along with AES-CBC",
                code="KEY_STORE_MODULE_UNFIT",
            )
        raise refused

    def _enter_with_cbc(self, session: Session, key: objects.TokenKey, blocks: bytes) -> bytes:
        """With an initialization vector of zeros, CBC of one block is ECB of that block (SP 800-38A)."""
        answers = []
        for start in range(0, len(blocks), BLOCK_BYTES):
            self._operations += 1
            block = blocks[start : start + BLOCK_BYTES]
            answers.append(session.encrypt(key.handle, Mechanism.AES_CBC, block, bytes(BLOCK_BYTES)))
        return b"".join(answers)

    def _derive(self, name: KeyName) -> LocalBlockCipher:
        context = f"{name.purpose.value}/{name.version}".encode()
        return LocalBlockCipher(
            derive(_DerivingCipher(self, name), label=DERIVATION_LABEL, context=context, length=KEY_BYTES)
        )


def _pause(times: int = 1) -> None:
    time.sleep(times * random.uniform(*PAUSE_SECONDS))  # noqa: S311 # spreads retries, no secret


def _checked(blocks: bytes) -> bytes:
    if type(blocks) is not bytes or len(blocks) % BLOCK_BYTES:
        raise InvalidInputError("blocks must be bytes, a whole number of 16-byte blocks")
    return blocks


def _whole_number(uri: Pkcs11Uri, attribute: str, limit: int) -> int | None:
    """A vendor attribute of a URI that is a whole number from 1 to a limit; None where it is not set."""
    text = uri.vendor(attribute)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(limit))):
        text = "0"
    if not 1 <= int(text) <= limit:
        raise InvalidInputError(f"{attribute} is a whole number from 1 to {limit}")
    return int(text)
