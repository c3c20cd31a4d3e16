"""Stores and key stores that fail, wait, or lose their answers, as a plan says.

    plan = FaultSchedule([None, LOSE])                  # the second call happens, and its caller gets an error
    store = FaultyTokenStore(MyStore(...), plan)
    vault = tokenvault.Vault(keys, store, ...)

A plan is asked before each call, by the call's name: that of the port's method, and "encrypt_blocks" for a cipher.
Nothing here is random: the same plan and the same calls give the same faults. The worst fault is LOSE on a
write: it happened, and nobody was told. `vault_machine` runs a whole vault under plans that Hypothesis draws.
"""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

import attrs

from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import KeyStoreError, TokenStoreError
from tokenvault.keys.port import Custody, KeyName, KeyPurpose, KeyStore, Signer
from tokenvault.stores.port import PAGE_MAX, AsyncTokenStore, SealedEvent, SealedRecord, TokenStore

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
        after_ms: likewise after it, before the caller hears.
    """

    failure: Failure | None = None
    before_ms: float | None = None
    after_ms: float | None = None


FAIL: Final = Fault(Failure.NOT_DONE)
LOSE: Final = Fault(Failure.ANSWER_LOST)

FaultPlan = Callable[[str], Fault | None]
"""Given the name of a call that is about to be made, what happens to it. Asked from every thread that calls."""


class FaultSchedule:
    """A plan that is a list: a fault, or None, for each call in turn. What comes after the list is left alone.

    Args:
        faults: in the order of the calls.
        calls: names of the calls that the list is about; unset, all. Others are left alone and use nothing up.

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


def _under(
    plan: FaultPlan, error: type[TokenStoreError | KeyStoreError], name: str, call: Callable[[], T]
) -> T:
    """Make a call as the plan has it."""
    fault = plan(name) or Fault()
    if fault.before_ms is not None:
        time.sleep(fault.before_ms / 1e3)
    if fault.failure is Failure.NOT_DONE:
        raise error(_NOT_DONE)
    answer = call()
    if fault.after_ms is not None:
        time.sleep(fault.after_ms / 1e3)
    if fault.failure is Failure.ANSWER_LOST:
        raise error(_LOST)
    return answer


class FaultyTokenStore:
    """A token store whose calls go as a plan says. What fails raises TokenStoreError, as the port has it.

    Args:
        store: the token store; open, and used by others at will.
        plan: asked before each call, `close` included.
    """

    def __init__(self, store: TokenStore, plan: FaultPlan) -> None:
        self._store = store
        self._plan = plan

    def _call(self, name: str, call: Callable[[], T]) -> T:
        return _under(self._plan, TokenStoreError, name, call)

    def provision(self) -> None:
        self._call("provision", self._store.provision)

    def check_schema(self) -> None:
        self._call("check_schema", self._store.check_schema)

    def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return self._call("get", lambda: self._store.get(tokens))

    def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        return self._call(
            "find",
            lambda: self._store.find(
                pan_fingerprint, requestor=requestor, program=program, after=after, limit=limit
            ),
        )

    def by_reference(self, reference: bytes) -> SealedRecord | None:
        return self._call("by_reference", lambda: self._store.by_reference(reference))

    def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        return self._call("insert", lambda: self._store.insert(records, events, document))

    def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return self._call("replace", lambda: self._store.replace(records, events))

    def append(self, events: Sequence[SealedEvent]) -> None:
        self._call("append", lambda: self._store.append(events))

    def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        return self._call(
            "events",
            lambda: self._store.events(stream=stream, reference=reference, after=after, limit=limit),
        )

    def streams(self) -> list[bytes]:
        return self._call("streams", self._store.streams)

    def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return self._call("latest_checkpoints", lambda: self._store.latest_checkpoints(limit))

    def put_domain(self, digest: bytes, document: bytes) -> None:
        self._call("put_domain", lambda: self._store.put_domain(digest, document))

    def get_domain(self, digest: bytes) -> bytes | None:
        return self._call("get_domain", lambda: self._store.get_domain(digest))

    def scan(
        self, *, after: str = "", limit: int = PAGE_MAX, key_version: int | None = None
    ) -> list[SealedRecord]:
        return self._call("scan", lambda: self._store.scan(after=after, limit=limit, key_version=key_version))

    def get_meta(self, name: str) -> bytes | None:
        return self._call("get_meta", lambda: self._store.get_meta(name))

    def put_meta(self, name: str, value: bytes) -> bytes:
        return self._call("put_meta", lambda: self._store.put_meta(name, value))

    def close(self) -> None:
        self._call("close", self._store.close)


class FaultyAsyncTokenStore:
    """As FaultyTokenStore, awaited: the calls that flows make, over a store with coroutines."""

    def __init__(self, store: AsyncTokenStore, plan: FaultPlan) -> None:
        self._store = store
        self._plan = plan

    async def _call(self, name: str, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        fault = self._plan(name) or Fault()
        if fault.before_ms is not None:
            await asyncio.sleep(fault.before_ms / 1e3)
        if fault.failure is Failure.NOT_DONE:
            raise TokenStoreError(_NOT_DONE)
        answer = await call()
        if fault.after_ms is not None:
            await asyncio.sleep(fault.after_ms / 1e3)
        if fault.failure is Failure.ANSWER_LOST:
            raise TokenStoreError(_LOST)
        return answer

    async def provision(self) -> None:
        await self._call("provision", self._store.provision)

    async def check_schema(self) -> None:
        await self._call("check_schema", self._store.check_schema)

    async def get(self, tokens: Sequence[str]) -> Sequence[SealedRecord]:
        return await self._call("get", lambda: self._store.get(tokens))

    async def find(
        self, pan_fingerprint: bytes | Sequence[bytes], *, requestor: str | None = None, program: str | None = None,
        after: str = "", limit: int = PAGE_MAX,
    ) -> list[SealedRecord]:  # fmt: skip
        return await self._call(
            "find",
            lambda: self._store.find(
                pan_fingerprint, requestor=requestor, program=program, after=after, limit=limit
            ),
        )

    async def by_reference(self, reference: bytes) -> SealedRecord | None:
        return await self._call("by_reference", lambda: self._store.by_reference(reference))

    async def insert(
        self, records: Sequence[SealedRecord], events: Sequence[SealedEvent], document: bytes | None = None
    ) -> list[str]:
        return await self._call("insert", lambda: self._store.insert(records, events, document))

    async def replace(self, records: Sequence[SealedRecord], events: Sequence[SealedEvent]) -> list[str]:
        return await self._call("replace", lambda: self._store.replace(records, events))

    async def append(self, events: Sequence[SealedEvent]) -> None:
        await self._call("append", lambda: self._store.append(events))

    async def events(
        self, *, stream: bytes | None = None, reference: bytes | None = None,
        after: int = 0, limit: int = PAGE_MAX,
    ) -> list[SealedEvent]:  # fmt: skip
        return await self._call(
            "events",
            lambda: self._store.events(stream=stream, reference=reference, after=after, limit=limit),
        )

    async def latest_checkpoints(self, limit: int) -> list[SealedEvent]:
        return await self._call("latest_checkpoints", lambda: self._store.latest_checkpoints(limit))

    async def put_domain(self, digest: bytes, document: bytes) -> None:
        await self._call("put_domain", lambda: self._store.put_domain(digest, document))

    async def get_domain(self, digest: bytes) -> bytes | None:
        return await self._call("get_domain", lambda: self._store.get_domain(digest))

    async def get_meta(self, name: str) -> bytes | None:
        return await self._call("get_meta", lambda: self._store.get_meta(name))

    async def put_meta(self, name: str, value: bytes) -> bytes:
        return await self._call("put_meta", lambda: self._store.put_meta(name, value))


class FaultyKeyStore:
    """A key store whose calls, and whose ciphers' calls, go as a plan says. What fails raises KeyStoreError.

    Its ciphers take the library's general path, which asks for every block: a fault may come at each.

    Args:
        keys: the key store; open, and used by others at will.
        plan: asked before each call, `close` included, and before each "encrypt_blocks".
    """

    def __init__(self, keys: KeyStore, plan: FaultPlan) -> None:
        self._keys = keys
        self._plan = plan

    def _call(self, name: str, call: Callable[[], T]) -> T:
        return _under(self._plan, KeyStoreError, name, call)

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
        return _under(
            self._plan, KeyStoreError, "encrypt_blocks", lambda: self._cipher.encrypt_blocks(blocks)
        )
