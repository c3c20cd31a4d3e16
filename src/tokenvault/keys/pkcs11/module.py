"""A PKCS#11 module in this process: loaded once, called by one thread at a time, initialized again when lost.

A module's state belongs to the process, not to the objects that use it: login, sessions and initialisation
are shared by all stores on it, whichever token they use. So it is kept here, once per library file.

- python-pkcs11 initialises modules without asking them to lock, and calls them without the GIL. `Module.lock`
  keeps all but one thread out.
- Each token is logged in to once, on a session of its own (the anchor) that nothing else uses. It stays open
  until the last store on the token closes.
- `Module.epoch` rises whenever sessions died: after a new login or a new initialisation. Sessions of an older
  epoch are replaced.
- Some losses end only with C_Finalize and C_Initialize. SoftHSM: once a token's folder was gone for a moment,
  its objects stay invalid, searches find nothing and report no error.
- A forked child has other `Module` objects than its parent, with free locks, and initialises the library
  itself. While a process forks, its modules are kept free of threads, since a copy taken in the middle of a
  call is not sound.

No other code of the process may use the same library: it would lose its sessions when the library is
initialised again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Final

import attrs
import pkcs11
from pkcs11 import KeyType, MechanismFlag, PKCS11Error, Session, Token

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.errors import (
    MODULE_ERRORS,
    NOT_FOUND,
    PIN_ERRORS,
    PinRefusedError,
    TokenMissingError,
)
from tokenvault.keys.pkcs11.host_lock import host_lock
from tokenvault.keys.secrets import Secret
from tokenvault.keys.uri import Pkcs11Uri

FORK_WAIT_SECONDS: Final = 5.0
"""How long a fork waits for a module call to end. Then it goes on: an unsound child is better than a hung parent."""

_DIGEST_KEY: Final = os.urandom(32)


@attrs.define(eq=False)
class Login:
    """The one login of this process to one token."""

    token: Token
    anchor: Session
    pin_digest: bytes = attrs.field(repr=False)
    users: weakref.WeakSet[object]


class Module:
    """One library file in one process. Callers of every method but the constructor hold `lock`."""

    def __init__(self, path: str, *, inherited: bool) -> None:
        self.lock: Final = threading.RLock()
        self.epoch = 0
        self.logins_tried = 0
        self._path = path
        self._inherited = inherited
        self._logins: dict[int, Login] = {}
        self._writers = 0

    def log_in(self, uri: Pkcs11Uri, read_pin: Callable[[], Secret], user: object) -> Login:
        """Log in to the token that the URI selects, or share the login that exists.

        Raises:
            PinRefusedError: the token refused the PIN.
            TokenMissingError: there is no such token.
            KeyStoreError: several tokens fit, or the process is logged in with another PIN.
            PKCS11Error: the module failed.
        """
        token = self._select(uri)
        pin = read_pin()
        digest = pin_digest(pin)
        login = self._logins.get(token.slot.slot_id)
        if login is None:
            login = Login(token, self._open_anchor(token, pin), digest, weakref.WeakSet())
            self._logins[token.slot.slot_id] = login
        elif login.pin_digest != digest:
            # The module would not look at the PIN, being logged in: without this check any PIN would do.
            raise KeyStoreError(
                "this process is logged in to the token with another PIN: check pin-source, or close the "
                "other key stores on this token first"
            )
        login.users.add(user)
        return login

    def log_out(self, login: Login, user: object) -> None:
        """End a user's share of a login; the last user logs out."""
        login.users.discard(user)
        slot_id = login.token.slot.slot_id
        if not login.users and self._logins.get(slot_id) is login:
            del self._logins[slot_id]
            close_quietly(login.anchor)

    def check(self, login: Login) -> None:
        """Prove that the token is there and logged in: a search shows neither, as it then finds nothing.

        A login that is gone is repeated by the next `log_in`.

        Raises:
            PKCS11Error: the token is gone.
        """
        login.token.slot.get_token()  # fails in SoftHSM, also later, once the token's folder was away
        session = login.token.open()
        try:
            # Private objects are for users who are logged in; this one lives no longer than its session.
            probe = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.ENCRYPT, store=False)
            probe.destroy()
        except pkcs11.UserNotLoggedIn:
            # The anchor is left behind: to close it is to log out, which a token that is logged out refuses.
            self._logins.pop(login.token.slot.slot_id, None)
            self.epoch += 1
            raise
        finally:
            close_quietly(session)

    @contextlib.contextmanager
    def writing(self, lock_path: str) -> Iterator[None]:
        """Keep other processes of this host from initializing, logging in, creating and destroying meanwhile.

        SoftHSM shows them half-written tokens and objects. Best effort: after a bounded wait it goes on
        without the lock.

        Args:
            lock_path: a file that the processes share; it is locked, not changed.
        """
        self._writers += 1
        try:
            if self._writers > 1:  # by this very thread, further up
                yield
            else:
                with host_lock(lock_path):
                    yield
        finally:
            self._writers -= 1

    def reinitialize(self) -> None:
        """Initialize the library again: every session and login of this process on it is gone.

        Raises:
            PKCS11Error: the module did not come back; the next use tries again.
        """
        library = pkcs11.lib(self._path)  # initialises it, when it was not
        self._forget()
        self._restart(library)

    def _restart(self, library: pkcs11._pkcs11.lib) -> None:
        # It may be finalized already, or not know a forked child: it can be initialized in both cases.
        with contextlib.suppress(PKCS11Error):
            library.finalize()
        library.initialize()

    def _forget(self) -> None:
        self._logins.clear()
        self.epoch += 1

    def _library(self) -> pkcs11._pkcs11.lib:
        if not os.path.isfile(self._path):
            raise KeyStoreError(
                "there is no file at module-path: install the PKCS#11 module or correct the path"
            )
        library = pkcs11.lib(self._path)
        if self._inherited:
            # The copy of the parent's state may look alive (SoftHSM stays logged in): it is not ours.
            self._restart(library)
            self._inherited = False
        return library

    def _tokens(self) -> Iterator[Token]:
        # Not library.get_tokens: it gives up at the first token that fails, also when that is another one.
        for slot in self._library().get_slots(token_present=True):
            try:
                token = slot.get_token()
            except PKCS11Error:
                continue
            yield token

    def _select(self, uri: Pkcs11Uri) -> Token:
        fitting = [token for token in self._tokens() if _fits(token, uri)]
        if not fitting:
            raise TokenMissingError(NOT_FOUND)
        if len(fitting) > 1:
            raise KeyStoreError("several tokens fit the URI: add serial= to it")
        return fitting[0]

    def _open_anchor(self, token: Token, pin: Secret) -> Session:
        self.logins_tried += 1
        refusal = None
        try:
            return token.open(user_pin=pin.reveal())
        except pkcs11.UserAlreadyLoggedIn:
            pass  # by other code of this process; its login serves, unproved as our PIN then is
        except PIN_ERRORS as error:
            refusal = type(error).__name__
        if refusal is not None:
            raise PinRefusedError(
                f"the token refused the PIN ({refusal}). It is not tried again, since tokens lock after a "
                "few wrong ones: put the right PIN where the URI's pin-source says, or open the key store "
                "anew",
                pin_digest(pin),
            )
        return token.open()


def _fits(token: Token, uri: Pkcs11Uri) -> bool:
    serial = bytes(token.serial).rstrip(b" \0").decode("utf-8", "replace")
    return (
        uri.token in (None, token.label)
        and uri.serial in (None, serial)
        and uri.manufacturer in (None, token.manufacturer_id)
        and uri.model in (None, token.model)
        and uri.slot_id in (None, token.slot.slot_id)
    )


def pin_digest(pin: Secret) -> bytes:
    """Tells PINs apart within this process and its children, without holding them."""
    return hashlib.blake2b(pin.reveal().encode(), key=_DIGEST_KEY, digest_size=16).digest()


def close_quietly(session: Session) -> None:
    """Close a session that may be gone already."""
    with contextlib.suppress(*MODULE_ERRORS):
        session.close()


# The one piece of process-wide state: a library can be initialised only once in a process. Keys are the
# process id and the file, so that a forked child finds nothing of its parent's, however it was forked.
_modules: Final[dict[tuple[int, str], Module]] = {}
_inherited: Final[set[str]] = set()
_hooks: Final[list[int]] = []
_held_for_fork: Final[list[Module]] = []


def module_at(path: str, real_path: str) -> Module:
    """The module of a library file in this process.

    Args:
        path: how to load it.
        real_path: the same file without links, by which it is known.
    """
    key = (os.getpid(), real_path)
    module = _modules.get(key)
    if module is None:
        if not _hooks:
            _hooks.append(os.getpid())
            os.register_at_fork(
                before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
            )
        # setdefault is one step for all threads: no lock that a fork could copy while it is held.
        module = _modules.setdefault(key, Module(path, inherited=_is_inherited(real_path)))
    return module


def _is_inherited(real_path: str) -> bool:
    return real_path in _inherited or any(known == real_path for _, known in _modules)


def _before_fork() -> None:
    pid = os.getpid()
    for key, module in sorted(_modules.items()):
        if key[0] == pid and module.lock.acquire(timeout=FORK_WAIT_SECONDS):
            _held_for_fork.append(module)


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().lock.release()


def _after_fork_in_child() -> None:
    _held_for_fork.clear()
    # Process ids come round again: what is left here must not be taken for our own one day.
    _inherited.update(known for _, known in _modules)
    _modules.clear()
