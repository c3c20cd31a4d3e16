"""One store's sessions on its token: opened when needed, used under a lock, discarded after any error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

import attrs

from tokenvault.errors import KeyStoreError
from tokenvault.interrupts import real_path
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.coalescer import Coalescer
from tokenvault.keys.pkcs11.constants import Code
from tokenvault.keys.pkcs11.cryptoki import CallError, Session
from tokenvault.keys.pkcs11.errors import (
    OUT_OF_SESSIONS,
    PERMANENT,
    CollisionError,
    DoubtfulError,
    LoginFailedError,
    TokenMissingError,
    again,
    explained,
    is_exhaustion,
)
from tokenvault.keys.pkcs11.module import Login, Module
from tokenvault.keys.pkcs11.registry import module_at
from tokenvault.keys.port import Custody, KeyName, KeyPurpose
from tokenvault.keys.secrets import Secret, read_secret_file, read_secret_variable
from tokenvault.keys.uri import Pkcs11Uri

PAUSES_SECONDS: Final = (0.0, 0.0, 0.02, 0.04, 0.08)
"""Before each attempt: with the session at hand, with a new one, then with the library initialized again."""
REINITIALIZE_FROM: Final = 2
ATTEMPTS_WHILE_AWAY: Final = (1, REINITIALIZE_FROM)
"""Of these, the ones made for a token that was away at the last call."""
BACK_OFF_SECONDS: Final = (0.05, 0.1, 0.25)
"""Between calls to a token that is away, from the end of one to the start of the next; the last goes on."""

ARGUMENTS_ATTRIBUTE: Final = "x-init-args"

GIVEN_UP: Final = "nobody waits for this call any more"
CLOSED: Final = "this key store is closed: open another"
_Result = TypeVar("_Result")


@attrs.define(eq=False)
class HeldKey:
    """A key's handle, and the session that it was found on."""

    session: Session
    key: objects.TokenKey
    epoch: int


@attrs.define(eq=False)
class State:
    """What a store holds in one process. A forked child has another.

    Attributes:
        failures: calls in a row that did not reach the token.
        failed_at: when the last of them ended.
        failure: what it told.
    """

    module: Module
    login: Login | None = None
    epoch: int = -1
    held: dict[KeyName, HeldKey] = attrs.field(factory=dict)
    coalescers: dict[KeyName, Coalescer] = attrs.field(factory=dict)
    failures: int = 0
    failed_at: float = 0.0
    failure: KeyStoreError = attrs.field(factory=lambda: KeyStoreError(GIVEN_UP, code="KEY_STORE_ABANDONED"))


class TokenSessions:
    """What one store does in its token. The methods that take a State run inside `run`."""

    def __init__(self, uri: Pkcs11Uri, call_seconds: float) -> None:
        self.closed = False
        self._uri: Final = uri
        self._call_seconds: Final = call_seconds
        self._real_path: Final = real_path(uri.module_path)
        # Processes that share a token share a PIN file; who can not read it can not hold up those who do.
        self._lock_path: Final = uri.pin_path or self._real_path
        self._states: dict[Module, State] = {}

    def state(self) -> State:
        """What the store holds in this process; what it held in a parent process is not touched."""
        module = module_at(self._uri.module_path, self._real_path)
        state = self._states.get(module)
        return self._states.setdefault(module, State(module)) if state is None else state

    def run(self, action: Callable[[State], _Result], *, undoing: bool = False) -> _Result:
        """Run an action on a logged-in token, and again after recovering from a failure of the module.

        The module's worker does so; actions that run there already may call this for parts of theirs.

        Args:
            action: what to do.
            undoing: whether it takes back what an action did, and so is done though nobody waits any more.

        Raises:
            KeyStoreError: it failed each time, or in a way that nothing here cures, or took too long.
        """
        state = self.state()
        if self.closed and not undoing:
            raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
        self.back_off(state)
        try:
            return state.module.worker.do(
                lambda: self.attempt(state, action, undoing=undoing), self._call_seconds
            )
        finally:
            if undoing and self.closed:  # it had to log in once more
                self.close()

    def alone(self, action: Callable[[], _Result]) -> _Result:
        """Run an action of several `run`s while nobody else of this process uses the module. Raises KeyStoreError."""
        state = self.state()
        if self.closed:
            raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
        self.back_off(state)
        return state.module.worker.do(action, self._call_seconds)

    def back_off(self, state: State) -> None:
        """Wait until a token that was away a moment ago may be looked for again."""
        if state.failures and not state.module.worker.is_here:
            pause = BACK_OFF_SECONDS[min(state.failures, len(BACK_OFF_SECONDS)) - 1]
            time.sleep(max(min(pause, state.failed_at + pause - time.monotonic()), 0.0))

    def attempt(self, state: State, action: Callable[[State], _Result], *, undoing: bool = False) -> _Result:
        """Run an action in the worker's thread, a few times if need be. Raises KeyStoreError."""
        worker = state.module.worker
        if state.failures and worker.submitted < state.failed_at:
            raise again(state.failure)  # it waited while the token was found to be away
        attempts = ATTEMPTS_WHILE_AWAY if state.failures else range(len(PAUSES_SECONDS))
        failure = KeyStoreError(GIVEN_UP, code="KEY_STORE_ABANDONED")
        lost = bool(state.failures)
        for attempt in attempts:
            if self.closed and not undoing:
                raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
            if worker.abandoned and not undoing:
                break
            time.sleep(PAUSES_SECONDS[attempt])
            try:
                if lost and attempt >= REINITIALIZE_FROM:
                    with state.module.writing(self._lock_path):
                        state.module.reinitialize()
                self._log_in(state)
                result = action(state)
            except DoubtfulError as error:
                failure = again(error)
                lost = lost or isinstance(error, TokenMissingError)
            except LoginFailedError as error:
                failure, lost = again(error), True
                break
            except CallError as error:
                failure = explained(error)
                lost = error.code not in PERMANENT
                self._renew_session(state)
                if attempt >= _last_attempt(error, state):
                    break
            else:
                state.failures = 0
                return result
        if lost:
            state.failures, state.failed_at, state.failure = state.failures + 1, time.monotonic(), failure
        raise again(failure)

    def close(self) -> None:
        """Close what is open and leave the login. A module that hangs is left as it is."""
        self.closed = True
        if not self._states:  # left before
            return
        state = self.state()
        with contextlib.suppress(KeyStoreError):
            state.module.worker.do(lambda: self._leave(state), self._call_seconds)

    def _leave(self, state: State) -> None:
        state.held.clear()
        if state.login is not None and state.epoch == state.module.epoch:
            state.module.log_out(state.login, state)
        self._states.clear()

    def hold(self, state: State, name: KeyName) -> objects.TokenKey:
        """A key's handle: found and verified once, then held."""
        held = state.held.get(name)
        if held is not None and held.epoch == state.module.epoch:
            return held.key
        session = _login(state).session
        key = objects.find(session, name)
        if key is None:
            self._fail_for_absence(state, name)
        objects.verify(session, key)
        state.held[name] = HeldKey(session, key, state.module.epoch)
        return key

    def hold_anew(self, state: State, name: KeyName) -> objects.TokenKey:
        """A key's handle on a session that nothing has failed on."""
        self._renew_session(state)
        self._log_in(state)
        return self.hold(state, name)

    def session(self, state: State) -> Session:
        """The session that a key's handle was found on."""
        return _login(state).session

    def find(self, state: State, purpose: KeyPurpose) -> tuple[list[int], int]:
        """The versions of a purpose, and the newest that there ever was."""
        versions, newest = objects.find_versions(_login(state).session, purpose)
        self.check(state)  # or not all were found because the token is gone, or logged its user out meanwhile
        return versions, newest

    def check(self, state: State) -> None:
        """Prove that a search found nothing because there is nothing. Raises CallError, PinRefusedError."""
        state.module.check(_login(state), self._read_pin)

    def in_session(self, state: State, action: Callable[[Session], _Result]) -> _Result:
        """Run an action on the session that reads."""
        return action(_login(state).session)

    def write(self, state: State, action: Callable[[Session], _Result]) -> _Result:
        """Run an action that writes, while no other process of this host does."""
        module = state.module
        with (
            module.writing(self._lock_path),
            module.writable_session(_login(state), self._read_pin) as session,
        ):
            return action(session)

    def generate(
        self, state: State, name: KeyName, custody: Custody, identity: bytes, key: Secret | None = None
    ) -> KeyName:
        """Make a key, or of one from outside an object; CollisionError: there is one, or another process makes it.

        Run again with the same identity, it goes on with what the first run made.
        """
        return self.write(state, lambda session: self._generate(state, session, name, custody, identity, key))

    def _generate(
        self,
        state: State,
        session: Session,
        name: KeyName,
        custody: Custody,
        identity: bytes,
        key: Secret | None,
    ) -> KeyName:
        if not objects.find_made(session, identity):
            if objects.find_named(session, name):
                raise CollisionError
            if key is None:
                objects.generate(session, name, custody, identity)
            else:
                objects.bring_in(session, name, custody, identity, key)
            state.module.settle()
        made = objects.find_made(session, identity)
        named = objects.find_named(session, name)
        if len(made) != 1 or not named:
            raise TokenMissingError("the token does not show the key that it has just made: try again")
        if len(named) > 1:
            session.destroy(made[0])
            raise CollisionError
        objects.verify_made(session, named[0])
        return name

    def withdraw(self, state: State, identity: bytes) -> None:
        """Destroy what `generate` made and could not prove, if it is there."""

        def destroy(session: Session) -> None:
            made = objects.find_made(session, identity)
            for each in made:
                session.destroy(each)
            if not made:
                self.check(state)

        self.write(state, destroy)

    def destroy(self, state: State, name: KeyName) -> None:
        """Destroy a key, whatever its attributes, and leave a mark of it."""

        def destroy(session: Session) -> None:
            key = objects.find(session, name)
            if key is None:
                self._fail_for_absence(state, name)
            objects.mark_destroyed(session, name)
            session.destroy(key.handle)

        self.write(state, destroy)
        state.held.pop(name, None)

    def _fail_for_absence(self, state: State, name: KeyName) -> NoReturn:
        self.check(state)  # or nothing was found because the token is gone
        raise DoubtfulError(
            f"the token has no key {name}: create it (provision does), or check that this is the right token",
            code="KEY_STORE_KEY_MISSING",
        )

    def _log_in(self, state: State) -> None:
        module = state.module
        login = state.login
        if login is not None and state.epoch == module.epoch and not login.suspect:
            return
        state.held.clear()
        state.login = None
        module.library.use_arguments(self._uri.vendor(ARGUMENTS_ATTRIBUTE))
        with module.writing(self._lock_path):  # SoftHSM notes each login in the token
            state.login = module.log_in(self._uri, self._read_pin, state)
        state.epoch = module.epoch

    def _renew_session(self, state: State) -> None:
        """Use no session again that failed: its operation may still be active on it."""
        if state.login is not None:
            state.module.suspect(state.login)

    def _read_pin(self) -> Secret:
        uri = self._uri
        if uri.pin_path is not None:
            return read_secret_file(uri.pin_path, "pin-source")
        if uri.pin_env is not None:
            return read_secret_variable(uri.pin_env, "pin-source")
        if uri.pin_value is not None:
            return Secret(uri.pin_value)
        raise KeyStoreError(
            "the token wants a PIN: add pin-source=file:... or pin-source=env:... to the URI",
            code="KEY_STORE_PIN_MISSING",
        )


def _last_attempt(error: CallError, state: State) -> int:
    """The last attempt after an error.

    What is used up is mostly used by others: the library is initialized again once, to end sessions of ours that it
    did not close; where these were not what it lacked, not again.
    """
    if error.code in PERMANENT:
        return 0
    if not is_exhaustion(error):
        return len(PAUSES_SECONDS)
    told_before = state.failures > 0 and state.failure.code == OUT_OF_SESSIONS
    return REINITIALIZE_FROM - 1 if told_before and error.code == Code.SESSION_COUNT else REINITIALIZE_FROM


def _login(state: State) -> Login:
    if state.login is None:
        raise KeyStoreError(CLOSED, code="KEY_STORE_CLOSED")
    return state.login
