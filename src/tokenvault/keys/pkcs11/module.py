"""A PKCS#11 module in this process: loaded once, entered by one thread, begun anew only when nothing else helps.

A module's state belongs to the process, not to the objects that use it: login, sessions and initialization
are shared by all stores on it, whichever token they use. So it is kept here, once per library file.

- One thread enters the module: its worker (see `worker`). Every method but the constructor runs there.
- Each token is logged in to once, on a session of its own (the anchor) that nothing else uses, and worked on with
  another one. Both stay open until the last store on the token closes. A module that allows no second session gets
  along with one.
- `Module.epoch` rises whenever sessions died or were replaced. Who holds object handles of an older epoch finds the
  objects again.
- Some losses end only with C_Finalize and C_Initialize. SoftHSM: once a token's folder was gone for a moment,
  its objects stay invalid, searches find nothing and report no error. So that is the last resort, and it is never
  done to a library that other code of this process initialized.
- A forked child has other `Module` objects than its parent (see `registry`), with a worker of their own.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11 import pins
from tokenvault.keys.pkcs11.constants import Code, TokenFlag, code_name
from tokenvault.keys.pkcs11.cryptoki import CallError, Session, Token
from tokenvault.keys.pkcs11.errors import (
    LOST,
    NOT_FOUND,
    PIN_CODES,
    LoginFailedError,
    TokenMissingError,
    is_exhaustion,
)
from tokenvault.keys.pkcs11.host_lock import host_lock
from tokenvault.keys.pkcs11.library import Library
from tokenvault.keys.pkcs11.limits import BlockLimits
from tokenvault.keys.pkcs11.worker import Worker
from tokenvault.keys.secrets import Secret
from tokenvault.keys.uri import Pkcs11Uri

ReadPin = Callable[[], Secret]

TRANSIENT: Final = LOST | {Code.HOST_MEMORY, Code.DEVICE_ERROR, Code.DEVICE_MEMORY, Code.SESSION_COUNT}
"""Return codes of C_Login that say that the token is away or the session is gone, and nothing of the PIN."""

OTHERS_LOGGED_IN: Final[dict[int, str]] = {
    Code.USER_ANOTHER_ALREADY_LOGGED_IN: "other code of this process is logged in to the token as another user ({}), "
    "its security officer perhaps: let it log out, then try again",
    Code.USER_TOO_MANY_TYPES: "as many users as the token allows are logged in to it ({}): let other programs that "
    "use the token, its security officer's for one, log out, then try again",
}
"""Return codes of C_Login that say that others stand in the way, and nothing of the PIN."""

SETTLE_SECONDS: Final = 0.2
"""SoftHSM never sees an object that it met half-written: it is to be whole by the time that it is looked for."""


@attrs.define(eq=False)
class Login:
    """The one login of this process to one token.

    Attributes:
        anchor: the session that was logged in on; while it is open, the login stands.
        session: the session that all reading and encrypting is done on; the anchor where there is no other.
        suspect: whether the last call on it failed, so that its session is to be replaced.
    """

    token: Token
    anchor: Session
    session: Session
    pin_digest: bytes = attrs.field(repr=False)
    users: weakref.WeakSet[object]
    suspect: bool = False


class Module:
    """One library file in one process.

    Attributes:
        limits: how much it takes in one call.
        without_ecb: whether it refused AES-ECB and is asked for AES-CBC instead.
        library: its file, loaded and initialized when first needed.
    """

    def __init__(self, path: str, *, parent: Module | None) -> None:
        self.worker: Final = Worker()
        self.limits: Final = BlockLimits()
        self.without_ecb: bool = parent is not None and parent.without_ecb
        self.library: Final[Library] = Library(path, parent=None if parent is None else parent.library)
        self.epoch = 0
        self.logins_tried = 0
        self._logins: dict[int, Login] = {}
        self._writing = False
        self._undisturbed: bool | None = False

    def log_in(self, uri: Pkcs11Uri, read_pin: ReadPin, user: object) -> Login:
        """Log in to the token that the URI selects, or share the login that exists.

        Raises:
            PinRefusedError: the token refused the PIN.
            TokenMissingError: there is no such token.
            KeyStoreError: several tokens fit, or the process is logged in with another PIN.
            CallError: the module failed.
        """
        token = self._select(uri)
        slot_id = token.slot_id
        login = self._logins.get(slot_id)
        if login is not None and not login.users:  # of stores that are gone and were not closed
            self.log_out(login, user)
            login = None
        if login is not None and login.suspect and not self._renewed(login, token):
            del self._logins[slot_id]
            login = None
        if login is None:
            login = self._logins[slot_id] = self._new_login(token, read_pin)
        elif user not in login.users and login.pin_digest != self._pin(token, read_pin)[1]:
            # The module would not look at the PIN, being logged in: without this check any PIN would do.
            raise KeyStoreError(
                "this process is logged in to the token with another PIN: check pin-source, or close the "
                "other key stores on this token first",
                code="KEY_STORE_PIN_OTHER",
            )
        login.users.add(user)
        return login

    def _new_login(self, token: Token, read_pin: ReadPin) -> Login:
        pin, digest = self._pin(token, read_pin)
        anchor = self._open(token)
        self._log_in_on(anchor, token, pin)
        return Login(token, anchor, self._second(token, anchor), digest, weakref.WeakSet())

    def _pin(self, token: Token, read_pin: ReadPin) -> tuple[Secret | None, bytes]:
        """The PIN and its digest; None for a token that wants none."""
        if not token.flags & TokenFlag.LOGIN_REQUIRED:
            return None, b""
        pin = read_pin()
        return pin, pins.pin_digest(pin)

    def log_out(self, login: Login, user: object) -> None:
        """End a user's share of a login; the last one logs out."""
        login.users.discard(user)
        slot_id = login.token.slot_id
        if not login.users and self._logins.get(slot_id) is login:
            del self._logins[slot_id]
            for session in (login.session, login.anchor):
                close_quietly(session)

    def suspect(self, login: Login) -> None:
        """Have the working session replaced: an operation that failed may still be active on it."""
        login.suspect = True
        self.epoch += 1

    def check(self, login: Login, read_pin: ReadPin) -> None:
        """Prove that the token is there and logged in: a search shows neither, as it then finds nothing.

        Asks for no right that the vault's work does not need.

        Raises:
            CallError: the token is gone, or logged out.
            PinRefusedError: it was logged out, and wants another PIN by now.
        """
        # This fails in SoftHSM, also later, once the token's folder was away.
        token = self.library.cryptoki().token(login.token.slot_id)
        if not token.flags & TokenFlag.LOGIN_REQUIRED:
            return
        try:
            logged_in = login.session.logged_in()
        except CallError as error:
            if error.code in LOST:
                raise
            logged_in = self._proves_logged_in(login.session, token, read_pin())
        if not logged_in:
            raise CallError("C_GetSessionInfo", Code.USER_NOT_LOGGED_IN)

    def _proves_logged_in(self, session: Session, token: Token, pin: Secret) -> bool:
        """Whether a session was logged in, by another login: for modules that do not tell of their sessions.

        Where every login succeeds, logged in or not, the one that stood before is believed.
        """
        return not self._try_pin(session, token, pin) or self._try_pin(session, token, pin)

    @contextlib.contextmanager
    def writing(self, lock_path: str) -> Iterator[None]:
        """Keep other processes of this host from initializing, logging in, creating and destroying meanwhile.

        SoftHSM shows them half-written tokens and objects. Best effort: after a bounded wait it goes on
        without the lock.

        Args:
            lock_path: a file that the processes share; it is locked, not changed.
        """
        if self._writing:  # further up
            yield
            return
        self._writing = True
        try:
            with host_lock(lock_path) as self._undisturbed:
                yield
        finally:
            self._writing = False

    def settle(self) -> None:
        """Wait for the end of what others may be writing, where they do not wait for us, before looking again."""
        if not self._undisturbed:
            time.sleep(SETTLE_SECONDS)

    @contextlib.contextmanager
    def writable_session(self, login: Login, read_pin: ReadPin) -> Iterator[Session]:
        """A session that may change the token; where the module allows no further one, in place of another."""
        session = self._further_writable(login)
        if session is not None:
            try:
                yield session
            finally:
                close_quietly(session)
            return
        if not login.anchor.rw:
            self._replace_anchor(login, read_pin)
        yield login.anchor

    def _further_writable(self, login: Login) -> Session | None:
        """One session more, if need be after closing the working session; None where even that is too many."""
        for closed in (False, True):
            if closed:
                self._drop_session(login)
            try:
                return self._open_one(login.token, rw=True)
            except CallError as error:
                if not is_exhaustion(error):
                    raise
        return None

    def _drop_session(self, login: Login) -> None:
        if login.session is not login.anchor:
            close_quietly(login.session)
            login.session = login.anchor
        self.suspect(login)  # the next use opens another, if it can by then

    def _replace_anchor(self, login: Login, read_pin: ReadPin) -> None:
        """Log in on a session that may write, after closing the only one, which may not."""
        close_quietly(login.anchor)
        self._logins.pop(login.token.slot_id, None)
        session = self._open_one(login.token, rw=True)
        self._log_in_on(session, login.token, read_pin() if login.pin_digest else None)
        login.anchor = login.session = session
        self._logins[login.token.slot_id] = login

    def reinitialize(self) -> None:
        """Initialize the library again, where we did before: every session and login of this process is gone.

        Raises:
            CallError: the module did not come back; the next use tries again.
        """
        self._logins.clear()
        self.epoch += 1
        self.library.initialize_again()

    def _select(self, uri: Pkcs11Uri) -> Token:
        library = self.library.initialized()
        slots = library.slots()
        fitting = []
        failures = ""
        for slot_id in slots:
            try:
                token = library.token(slot_id)
            except CallError as error:  # of another token, perhaps
                failures += f", {error}"
                continue
            if _fits(token, uri):
                fitting.append(token)
        if not fitting:
            raise TokenMissingError(f"{NOT_FOUND} (C_GetSlotList: {len(slots)} tokens{failures})")
        if len(fitting) > 1:
            told = ", ".join(f"serial={token.serial};slot-id={token.slot_id}" for token in fitting)
            raise KeyStoreError(
                f"several tokens fit the URI ({told}): add serial= to it, or slot-id= where they have the same",
                code="KEY_STORE_TOKEN_AMBIGUOUS",
            )
        self._leave_slots(slots)
        return fitting[0]

    def _leave_slots(self, slots: list[int]) -> None:
        """Close what is open in slots that are gone: where they are numbered anew, their tokens are in others now."""
        for slot_id in self._logins.keys() - set(slots):
            login = self._logins.pop(slot_id)
            self.epoch += 1
            for session in (login.session, login.anchor):
                close_quietly(session)

    def _open(self, token: Token) -> Session:
        """A session that reads; on a module that has none which only read, one that writes too."""
        try:
            return self._open_one(token, rw=False)
        except CallError as error:
            refused = error
        try:
            return self._open_one(token, rw=True)
        except CallError:
            raise refused from None

    def _open_one(self, token: Token, *, rw: bool) -> Session:
        return self.library.cryptoki().open_session(token.slot_id, rw=rw)

    def _second(self, token: Token, anchor: Session) -> Session:
        try:
            return self._open(token)
        except CallError:
            return anchor

    def _renewed(self, login: Login, token: Token) -> bool:
        """Replace the working session of a login. False where the login is gone, or has no other session."""
        alone = login.session is login.anchor
        if not alone:
            close_quietly(login.session)
        if alone or (token.flags & TokenFlag.LOGIN_REQUIRED and not self._is_logged_in(login.anchor)):
            close_quietly(login.anchor)
            return False
        login.token = token
        login.session = self._second(token, login.anchor)
        login.suspect = False
        return True

    def _is_logged_in(self, session: Session) -> bool:
        try:
            return session.logged_in()
        except CallError:
            return False

    def _log_in_on(self, session: Session, token: Token, pin: Secret | None) -> None:
        if pin is None or self._is_logged_in(session):
            return  # by other code of this process: its login serves, unproved as our PIN then is
        try:
            self._try_pin(session, token, pin)
        except BaseException:
            close_quietly(session)
            raise

    def _try_pin(self, session: Session, token: Token, pin: Secret) -> bool:
        """Log in. False where that was done before."""
        pins.check_untried(token, pin)
        pins.check_state(token)
        self.logins_tried += 1
        try:
            session.login(pin.reveal().encode())
        except CallError as error:
            code = error.code
        else:
            return True
        if code == Code.USER_ALREADY_LOGGED_IN:
            return False
        if code in PIN_CODES:
            pins.note_refused(token, pin, code)
            raise pins.refused(code)
        if code in TRANSIENT or code == Code.FUNCTION_NOT_SUPPORTED:
            raise CallError("C_Login", code)
        if code in OTHERS_LOGGED_IN:
            raise LoginFailedError(OTHERS_LOGGED_IN[code].format(f"C_Login: {code_name(code)}"))
        raise LoginFailedError(
            f"the token refused the login (C_Login: {code_name(code)}). It is not tried again by this call, since "
            "tokens lock after a few wrong PINs: check the PIN, and that the device is connected"
        )


def _fits(token: Token, uri: Pkcs11Uri) -> bool:
    return (
        uri.token in (None, token.label)
        and uri.serial in (None, token.serial)
        and uri.manufacturer in (None, token.manufacturer_id)
        and uri.model in (None, token.model)
        and uri.slot_id in (None, token.slot_id)
    )


def close_quietly(session: Session) -> None:
    """Close a session that may be gone already."""
    with contextlib.suppress(CallError):
        session.close()
