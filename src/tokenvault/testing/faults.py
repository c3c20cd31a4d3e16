"""Stores and key stores that fail, wait, or lose their answers, as a plan says.

    plan = FaultSchedule([None, LOSE])                  # the second call happens, and its caller gets an error
    store = FaultyTokenStore(MyStore(...), plan)
    vault = tokenvault.Vault(keys, store, ...)

A plan is called before each call, with its name: that of the port's method, and "encrypt_blocks" for a cipher.
Nothing here is random: the same plan and the same calls give the same faults. The worst fault is LOSE on a
write: it happened, and no caller knows. `vault_machine` runs a whole vault under plans that Hypothesis draws.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, TypeVar

import attrs

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import KeyStoreError, TokenStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore, Signer
from tokenvault.runtime import BlockingRuntime, run
from tokenvault.stores.forwarding import AsyncForwarding, Forwarding
from tokenvault.stores.port import AsyncTokenStore, TokenStore

T = TypeVar("T")

_NOT_DONE: Final = "a fault of the test: the call was not made"
_LOST: Final = "a fault of the test: the call was made, and its answer is lost"


class Failure(enum.Enum):
    """How a call fails.

    NOT_DONE: it is not made, and the caller gets an error.
    ANSWER_LOST: it is made, and the caller gets an error instead of the answer.
    """

    NOT_DONE = "not done"
    ANSWER_LOST = "answer lost"


@attrs.frozen
class Fault:
    """What happens to one call.

    Attributes:
        failure: how it fails; None where it does not.
        before_ms: a wait before the call, in milliseconds; 0 lets another thread or task go first, None does not.
        after_ms: likewise after it, before the caller has its answer.
    """

    failure: Failure | None = None
    before_ms: float | None = None
    after_ms: float | None = None


FAIL: Final = Fault(Failure.NOT_DONE)
LOSE: Final = Fault(Failure.ANSWER_LOST)

FaultPlan = Callable[[str], Fault | None]
"""Given the name of a call that is about to be made, what happens to it. Called in the thread of the call."""


class FaultSchedule:
    """A plan that is a list: a fault, or None, for each call in turn. Calls after the list have no fault.

    Args:
        faults: in the order of the calls.
        calls: names of the calls that the list is about; unset, all. Others have no fault and take none.

    Attributes:
        made: name and fault of each call that had one, in order. Cleared by `set`.
    """

    def __init__(self, faults: Iterable[Fault | None] = (), *, calls: Collection[str] | None = None) -> None:
        self._lock = threading.Lock()
        self._calls = None if calls is None else frozenset(calls)
        self.set(faults)

    def set(self, faults: Iterable[Fault | None]) -> None:
        """Begin another list; an empty one ends all faults."""
        listed = list(faults)
        with self._lock:
            self._faults = iter(listed)
            self.made: list[tuple[str, Fault]] = []

    @property
    def failures(self) -> int:
        """How many calls failed since `set`."""
        return sum(fault.failure is not None for _, fault in self.made)

    def __call__(self, call: str) -> Fault | None:
        """The next fault."""
        if self._calls is not None and call not in self._calls:
            return None
        with self._lock:
            fault = next(self._faults, None)
            if fault is not None:
                self.made.append((call, fault))
        return fault


async def _under(
    fault: Fault | None,
    error: type[TokenStoreError | KeyStoreError],
    sleep: Callable[[float], Awaitable[None]],
    call: Callable[[], Awaitable[T]],
) -> T:
    """Make a call under its fault."""
    fault = fault or Fault()
    if fault.before_ms is not None:
        await sleep(fault.before_ms / 1e3)
    if fault.failure is Failure.NOT_DONE:
        raise error(_NOT_DONE)
    answer = await call()
    if fault.after_ms is not None:
        await sleep(fault.after_ms / 1e3)
    if fault.failure is Failure.ANSWER_LOST:
        raise error(_LOST)
    return answer


def _blocking_under(
    fault: Fault | None, error: type[TokenStoreError | KeyStoreError], call: Callable[[], T]
) -> T:
    async def made() -> T:
        return call()

    return run(_under(fault, error, BlockingRuntime().sleep, made))


class FaultyTokenStore(Forwarding):
    """A token store whose calls go as a plan says. What fails raises TokenStoreError, as the port has it.

    Args:
        store: the token store; open, and used by others at will.
        plan: called before each call, `close` included.
    """

    def __init__(self, store: TokenStore, plan: FaultPlan) -> None:
        self._store = store
        self.write_limits = store.write_limits
        self._plan = plan

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(getattr(self._store, name), *args, **kwargs)
        return _blocking_under(self._plan(name), TokenStoreError, call)


class FaultyAsyncTokenStore(AsyncForwarding):
    """As FaultyTokenStore, over a store with coroutines.

    Args:
        store: the token store; open, and used by others at will.
        plan: called before each call, `close` included.
    """

    def __init__(self, store: AsyncTokenStore, plan: FaultPlan) -> None:
        self._store = store
        self.write_limits = store.write_limits
        self._plan = plan

    async def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(getattr(self._store, name), *args, **kwargs)
        return await _under(self._plan(name), TokenStoreError, asyncio.sleep, call)


class FaultyKeyStore:
    """A key store whose calls, and whose ciphers' calls, go as a plan says. What fails raises KeyStoreError.

    Its ciphers take the library's general path, which calls them for every block: a fault may come at each.

    Args:
        keys: the key store; open, and used by others at will.
        plan: called before each call, `close` included, and before each "encrypt_blocks".
    """

    def __init__(self, keys: KeyStore, plan: FaultPlan) -> None:
        self._keys = keys
        self._plan = plan

    def _call(self, name: str, call: Callable[[], T]) -> T:
        return _blocking_under(self._plan(name), KeyStoreError, call)

    def cipher(self, key: KeyName) -> BlockCipher:
        return FaultyBlockCipher(self._call("cipher", lambda: self._keys.cipher(key)), self._plan)

    def versions(self, purpose: KeyPurpose) -> tuple[int, ...]:
        return self._call("versions", lambda: self._keys.versions(purpose))

    def create(self, purpose: KeyPurpose, custody: Custody, *, version: int | None = None) -> KeyName:
        return self._call("create", lambda: self._keys.create(purpose, custody, version=version))

    def signer(self) -> Signer | None:
        return self._call("signer", self._keys.signer)

    def create_signer(self) -> Signer | None:
        return self._call("create_signer", self._keys.create_signer)

    def destroy(self, key: KeyName) -> None:
        self._call("destroy", lambda: self._keys.destroy(key))

    def close(self) -> None:
        self._call("close", self._keys.close)


class FaultyBlockCipher:
    """A cipher whose calls go as a plan says."""

    def __init__(self, cipher: BlockCipher, plan: FaultPlan) -> None:
        self._cipher = cipher
        self._plan = plan

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        fault = self._plan("encrypt_blocks")
        return _blocking_under(fault, KeyStoreError, lambda: self._cipher.encrypt_blocks(blocks))
