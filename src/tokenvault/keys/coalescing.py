"""Merging of block requests that wait for the same slow call.

One lock guards the call. Who waits for the lock has left its blocks in the queue before; who gets the lock
sends what the queue holds in one call and hands everyone their part. So with n threads waiting, the next call
serves all of them. Nobody depends on one leader: each waiter takes the lock in its turn and finds its answer
there, or sends its blocks itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from tokenvault.errors import KeyStoreError
from tokenvault.keys.port import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

BLOCKS_PER_CALL_MAX: Final = 4_096
"""Blocks in one module call unless told otherwise (64 KiB): longer calls gain nothing with SoftHSM."""

_INTERRUPTED: Final = (
    "the call that carried this request was interrupted; nothing is known to be wrong: retry"
)


class _Request:
    """Blocks on their way, then their answer or the reason why there is none."""

    __slots__ = ("answer", "blocks", "failure")

    def __init__(self, blocks: bytes) -> None:
        self.blocks = blocks
        self.answer: bytes | None = None
        self.failure: str | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.failure is not None


class Coalescer:
    """Sends requests of many threads through one call at a time.

    Args:
        call: encrypts blocks, returns as many bytes; runs with the lock held; fails with KeyStoreError.
        lock: held around each call; may be shared with other users of the same module.
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
        self._queue: deque[_Request] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue at this moment."""
        return len(self._queue)

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, alone or merged with what else waits.

        Raises:
            KeyStoreError: the call failed; every request in it gets an error of its own.
        """
        if len(blocks) <= self._bytes_max:
            return self._send(blocks)
        # The lock is free between the pieces, so that others need not wait for all of them.
        starts = range(0, len(blocks), self._bytes_max)
        return b"".join(self._send(blocks[start : start + self._bytes_max]) for start in starts)

    def _send(self, blocks: bytes) -> bytes:
        request = _Request(blocks)
        self._queue.append(request)
        # Each round serves the oldest requests, so this ends after at most as many rounds as stand before us.
        try:
            while not request.done:
                with self._lock:
                    if not request.done:
                        self._serve()
        except BaseException:
            self._withdraw(request)
            raise
        if request.answer is None:
            raise KeyStoreError(request.failure)
        return request.answer

    def _withdraw(self, request: _Request) -> None:
        """Take back a request whose thread was interrupted while it waited."""
        try:
            self._queue.remove(request)
        except ValueError:
            return  # served, or being served, by another thread: nobody waits for the answer

    def _serve(self) -> None:
        """Make one call for the oldest requests that fit into it. The lock is held."""
        batch = [self._queue.popleft()]
        size = len(batch[0].blocks)
        while self._queue and size + len(self._queue[0].blocks) <= self._bytes_max:
            batch.append(self._queue.popleft())
            size += len(batch[-1].blocks)
        failure = _INTERRUPTED  # stands when something other than a KeyStoreError ends the call
        try:
            answer = self._call(b"".join(request.blocks for request in batch))
            if len(answer) == size:
                start = 0
                for request in batch:
                    request.answer = answer[start : start + len(request.blocks)]
                    start += len(request.blocks)
                return
            failure = "the module returned another number of bytes than it was given: do not use this module"
        except KeyStoreError as error:
            failure = str(error)
        finally:
            for request in batch:
                if request.answer is None:
                    request.failure = failure
