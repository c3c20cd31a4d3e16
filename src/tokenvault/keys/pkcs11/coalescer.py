"""Merging of block requests that wait for the same slow call.

Of the threads that have blocks to encrypt, one leads: it takes the lock around the call, sends what the
queue holds by then in one call, and wakes everyone with their part. Before it returns it hands the lead to
the oldest request that came meanwhile. So with n threads waiting for a slow call, the next call serves all n.

A leader leads for one call, which carries its own request: no thread works for others longer than that. Who
waits does not wait for the lock: once answered, a thread goes on, also while the next call is in the module.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import KeyStoreError

BLOCKS_PER_CALL_MAX: Final = 2**20
"""Blocks in one module call, unless the URI sets a smaller number: 16 MiB (docs/decisions/10-batches.md)."""

_INTERRUPTED: Final = (
    "the call that carried this request was interrupted; nothing is known to be wrong: retry"
)
_WRONG_LENGTH: Final = "the module returned another number of bytes than it was given: do not use this module"


class _Request:
    """Blocks to encrypt, then their answer or the reason why there is none."""

    __slots__ = ("answer", "blocks", "failure", "leads", "wake")

    def __init__(self, blocks: bytes) -> None:
        self.blocks = blocks
        self.answer: bytes | None = None
        self.failure = _INTERRUPTED
        self.leads = False
        self.wake = threading.Lock()  # released when the request is answered or is to lead
        self.wake.acquire()


class Coalescer:
    """Sends requests of many threads through one call at a time.

    After a fork the child wants another one: threads that it has not may have left this one half-way.

    Args:
        call: encrypts blocks, returns as many bytes; fails with KeyStoreError. Runs with the lock held.
        lock: held around each call; may be shared with other users of the same module. A thread that
            holds it already must not call `encrypt`.
        blocks_per_call_max: no call carries more blocks; longer requests are cut.
    """

    def __init__(
        self,
        call: Callable[[bytes], bytes],
        lock: AbstractContextManager[object],
        *,
        blocks_per_call_max: int,
    ) -> None:
        self._call = call
        self._lock = lock
        self._bytes_max = blocks_per_call_max * BLOCK_BYTES
        self._mutex = threading.Lock()  # guards what follows; never held while waiting for anything
        self._queue: deque[_Request] = deque()
        self._led = False

    @property
    def waiting(self) -> int:
        """Requests that no call carries yet."""
        return len(self._queue)

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, alone or merged with what else waits.

        Raises:
            KeyStoreError: the call failed; every request in it gets an error of its own.
        """
        if len(blocks) <= self._bytes_max:
            return self._send(blocks)
        # Each piece queues anew, so that others need not wait for all of them.
        starts = range(0, len(blocks), self._bytes_max)
        return b"".join(self._send(blocks[start : start + self._bytes_max]) for start in starts)

    def _send(self, blocks: bytes) -> bytes:
        request = _Request(blocks)
        try:
            with self._mutex:
                self._queue.append(request)
                if not self._led:
                    request.leads = self._led = True
            if not request.leads:
                request.wake.acquire()
            if request.leads:
                with self._lock:
                    self._serve()
        finally:
            # Also when this thread is interrupted while it waits: those behind it must not wait for ever.
            self._leave(request)
        if request.answer is None:
            raise KeyStoreError(request.failure)
        return request.answer

    def _leave(self, request: _Request) -> None:
        with self._mutex:
            if request in self._queue:  # interrupted
                self._queue.remove(request)
            if request.leads:
                self._led = bool(self._queue)
                if self._queue:
                    self._queue[0].leads = True
                    self._queue[0].wake.release()

    def _serve(self) -> None:
        """Make one call for the oldest requests that fit into it, the leader's own among them."""
        with self._mutex:
            batch = [self._queue.popleft()]
            size = len(batch[0].blocks)
            while self._queue and size + len(self._queue[0].blocks) <= self._bytes_max:
                batch.append(self._queue.popleft())
                size += len(batch[-1].blocks)
        failure = _INTERRUPTED  # stands when something other than a KeyStoreError ends the call
        answer = b""
        try:
            answer = self._call(b"".join(request.blocks for request in batch))
            failure = _WRONG_LENGTH
        except KeyStoreError as error:
            failure = str(error)
        finally:
            start = 0
            for request in batch:
                end = start + len(request.blocks)
                request.failure = failure
                request.answer = answer[start:end] if len(answer) == size else None
                start = end
                if not request.leads:
                    request.wake.release()
