"""One store's sessions on its token: opened when needed, used under a lock, discarded after any error."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, TypeVar

import attrs
from pkcs11 import Session

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11 import objects
from tokenvault.keys.pkcs11.coalescer import Coalescer
from tokenvault.keys.pkcs11.errors import (
    MODULE_ERRORS,
    PERMANENT_ERRORS,
    DoubtfulError,
    PinRefusedError,
    TokenMissingError,
    advice,
)
from tokenvault.keys.pkcs11.module import Login, Module, close_quietly, module_at, pin_digest
from tokenvault.keys.port import KeyName, KeyPurpose
from tokenvault.keys.secrets import Secret, read_secret_file
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
    """What one store does in its token."""

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

    def read(self, action: Callable[[Session], _Result]) -> _Result:
        """Run an action on a session of its own, as `run` does."""

        def on_session(state: State) -> _Result:
            with _session(state) as session:
                return action(session)

        return self.run(on_session)

    def write(self, action: Callable[[Session], _Result]) -> _Result:
        """Run an action that writes, as `run` does, on a session that sees what other processes have written."""

        def on_fresh_session(state: State) -> _Result:
            with state.module.writing(self._lock_path):
                # The library may have missed a key that another process made a moment ago.
                self._close_held(state)
                state.module.reinitialize()
                self._log_in(state)
                with _session(state, rw=True) as session:
                    return action(session)

        return self.run(on_fresh_session)

    def use(self, name: KeyName, action: Callable[[objects.TokenKey], _Result]) -> _Result:
        """Run an action on a key, as `run` does. The key is found and verified once, then held with its session."""
        return self.run(lambda state: action(self._hold(state, name)))

    def find(self, purpose: KeyPurpose) -> list[objects.TokenKey]:
        """All keys of a purpose."""

        def search(state: State) -> list[objects.TokenKey]:
            with _session(state) as session:
                found = [key for key in objects.find_all(session) if key.name.purpose is purpose]
            state.module.check(_login(state))
            return found

        return self.run(search)

    def withdraw(self, identity: bytes) -> None:
        """Destroy the keys with a CKA_ID, if there are any: what was made and could not be proved."""

        def destroy(state: State) -> None:
            with state.module.writing(self._lock_path), _session(state, rw=True) as session:
                for each in objects.find_made(session, identity):
                    each.destroy()

        self.run(destroy)

    def destroy(self, name: KeyName) -> None:
        """Destroy a key, whatever its attributes."""

        def destroy(state: State) -> None:
            with state.module.writing(self._lock_path), _session(state, rw=True) as session:
                key = objects.find(session, name)
                if key is None:
                    self._raise_missing(state, name)
                key.object.destroy()
            held = state.held.pop(name, None)
            if held is not None:
                close_quietly(held.session)

        self.run(destroy)

    def _hold(self, state: State, name: KeyName) -> objects.TokenKey:
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


@contextlib.contextmanager
def _session(state: State, *, rw: bool = False) -> Iterator[Session]:
    session = _login(state).token.open(rw=rw)
    try:
        yield session
    finally:
        close_quietly(session)
