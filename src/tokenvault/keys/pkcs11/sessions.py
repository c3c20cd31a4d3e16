"""One store's sessions on its token: opened when needed, used under a lock, discarded after any error."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import attrs

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.errors import (
    MODULE_ERRORS,
    PERMANENT_ERRORS,
    CollisionError,
    DoubtfulError,
    PinRefusedError,
    TokenMissingError,
    advice,
)
from tokenvault.keys.pkcs11.module import Login, Module, close_quietly, module_at, pin_digest
from tokenvault.keys.secrets import Secret, read_secret_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from pkcs11 import Session

    from tokenvault.keys.pkcs11.coalescer import Coalescer
    from tokenvault.keys.port import Custody, KeyName, KeyPurpose
    from tokenvault.keys.uri import Pkcs11Uri

PAUSES_SECONDS: Final = (0.0, 0.0, 0.02, 0.04, 0.08)
"""Pause before each attempt: with the open session, with a new one, then with the library initialized again."""
REINITIALIZE_FROM: Final = 2

CLOSED: Final = "this key store is closed: open another"
_Result = TypeVar("_Result")


@attrs.define(eq=False)
class HeldKey:
    """A key and the session that it was found on; each key has a session of its own."""

    session: Session
    key: objects.TokenKey
    epoch: int


@attrs.define(eq=False)
class State:
    """What a store holds in one process. A forked child has another."""

    module: Module
    login: Login | None = None
    epoch: int = -1
    held: dict[KeyName, HeldKey] = attrs.field(factory=dict)
    coalescers: dict[KeyName, Coalescer] = attrs.field(factory=dict)


class TokenSessions:
    """What one store does in its token. Methods that take a State are called inside `run`."""

    def __init__(self, uri: Pkcs11Uri) -> None:
        self.closed = False
        self._uri: Final = uri
        self._real_path: Final = os.path.realpath(uri.module_path)
        # Processes that share a token share a PIN file; a process that can not read it can not lock it either.
        self._lock_path: Final = uri.pin_path or self._real_path
        self._states: dict[Module, State] = {}
        self._refused_pin: bytes | None = None

    def state(self) -> State:
        """What the store holds in this process; what it held in a parent process is not touched."""
        module = module_at(self._uri.module_path, self._real_path)
        state = self._states.get(module)
        return self._states.setdefault(module, State(module)) if state is None else state

    def run(self, action: Callable[[State], _Result]) -> _Result:
        """Run an action on a logged-in token, and again after recovering from a failure of the module.

        Raises:
            KeyStoreError: it failed each time, or in a way that nothing here cures.
        """
        state = self.state()
        failure = ""
        lost = False
        with state.module.lock:
            for attempt, pause in enumerate(PAUSES_SECONDS):
                if self.closed:
                    raise KeyStoreError(CLOSED)
                time.sleep(pause)
                try:
                    if lost and attempt >= REINITIALIZE_FROM:
                        with state.module.writing(self._lock_path):
                            state.module.reinitialize()
                    self._log_in(state)
                    return action(state)
                except DoubtfulError as error:
                    failure = str(error)
                    lost = lost or isinstance(error, TokenMissingError)
                except PERMANENT_ERRORS as error:
                    failure = advice(error)
                    self._close_held(state)
                    break
                except MODULE_ERRORS as error:
                    failure = advice(error)
                    lost = True
                # The failed operation may still be active on its session: use none of them again.
                self._close_held(state)
        raise KeyStoreError(failure)

    def close(self) -> None:
        """Close what is open and leave the login."""
        state = self.state()
        with state.module.lock:
            self.closed = True
            self._close_held(state)
            if state.login is not None and state.epoch == state.module.epoch:
                state.module.log_out(state.login, state)
            self._states.clear()

    def hold(self, state: State, name: KeyName) -> objects.TokenKey:
        """A key's handle: found and verified once, then held with its session."""
        held = state.held.get(name)
        if held is not None and held.epoch == state.module.epoch:
            return held.key
        session = _login(state).token.open()
        try:
            key = objects.find(session, name)
            if key is None:
                self._raise_missing(state, name)
            objects.verify(key)
        except BaseException:
            close_quietly(session)
            raise
        state.held[name] = HeldKey(session, key, state.module.epoch)
        return key

    def find(self, state: State, purpose: KeyPurpose) -> list[objects.TokenKey]:
        """All keys of a purpose."""
        login = _login(state)
        session = login.token.open()
        try:
            found = [key for key in objects.find_all(session) if key.name.purpose is purpose]
        finally:
            close_quietly(session)
        state.module.check(login)
        return found

    def in_session(self, state: State, action: Callable[[Session], _Result]) -> _Result:
        """Run an action on a session of its own."""
        session = _login(state).token.open()
        try:
            return action(session)
        finally:
            close_quietly(session)

    def write_fresh(self, state: State, action: Callable[[Session], _Result]) -> _Result:
        """Run an action that writes, on a session that sees what other processes have written by now."""
        with state.module.writing(self._lock_path):
            # The library may have missed a key that another process made a moment ago.
            self._close_held(state)
            state.module.reinitialize()
            self._log_in(state)
            session = _login(state).token.open(rw=True)
            try:
                return action(session)
            finally:
                close_quietly(session)

    def generate(self, state: State, name: KeyName, custody: Custody, identity: bytes) -> KeyName:
        """Make a key, or raise CollisionError when there is one or another process makes it too.

        Run again with the same identity, it goes on with what the first run made.
        """
        return self.write_fresh(state, lambda session: self._generate(session, name, custody, identity))

    def _generate(self, session: Session, name: KeyName, custody: Custody, identity: bytes) -> KeyName:
        before = [key for key in objects.find_all(session) if key.name == name]
        if not objects.find_made(session, identity):
            if before:
                raise CollisionError
            objects.generate(session, name, custody, identity)
        made = objects.find_made(session, identity)
        named = [key for key in objects.find_all(session) if key.name == name]
        if len(made) != 1 or not named:
            raise TokenMissingError("the token does not show the key that it has just made: try again")
        if len(named) > 1:
            made[0].destroy()
            raise CollisionError
        objects.verify_made(named[0])
        return name

    def withdraw(self, state: State, identity: bytes) -> None:
        """Destroy what `generate` made and could not prove, if it is there."""
        with state.module.writing(self._lock_path):
            session = _login(state).token.open(rw=True)
            try:
                for each in objects.find_made(session, identity):
                    each.destroy()
            finally:
                close_quietly(session)

    def destroy(self, state: State, name: KeyName) -> None:
        """Destroy a key, whatever its attributes."""
        with state.module.writing(self._lock_path):
            self._destroy(state, _login(state).token.open(rw=True), name)
        held = state.held.pop(name, None)
        if held is not None:
            close_quietly(held.session)

    def _destroy(self, state: State, session: Session, name: KeyName) -> None:
        try:
            key = objects.find(session, name)
            if key is None:
                self._raise_missing(state, name)
            key.object.destroy()
        finally:
            close_quietly(session)

    def _raise_missing(self, state: State, name: KeyName) -> NoReturn:
        state.module.check(_login(state))  # or nothing was found because the token is gone
        raise DoubtfulError(
            f"the token has no key {name}: create it (provision does), or check that this is the right token"
        )

    def _log_in(self, state: State) -> None:
        if state.login is not None and state.epoch == state.module.epoch:
            return
        self._close_held(state)
        state.login = None
        try:
            with state.module.writing(self._lock_path):  # SoftHSM notes each login in the token
                state.login = state.module.log_in(self._uri, self._read_pin, state)
        except PinRefusedError as error:
            self._refused_pin = error.digest
            raise
        state.epoch = state.module.epoch
        self._refused_pin = None

    def _close_held(self, state: State) -> None:
        for held in state.held.values():
            if held.epoch == state.module.epoch:  # a dead session's handle may be someone else's by now
                close_quietly(held.session)
        state.held.clear()

    def _read_pin(self) -> Secret:
        if self._uri.pin_path is not None:
            pin = read_secret_file(self._uri.pin_path, "pin-source")
        else:
            pin = Secret(self._uri.pin_value or "")
        if self._refused_pin is not None and pin_digest(pin) == self._refused_pin:
            raise PinRefusedError(
                "the token refused this PIN before. It is not tried again, since tokens lock after a few "
                "wrong ones: put the right PIN where the URI's pin-source says, or open the key store anew",
                self._refused_pin,
            )
        return pin


def _login(state: State) -> Login:
    if state.login is None:
        raise KeyStoreError(CLOSED)
    return state.login
