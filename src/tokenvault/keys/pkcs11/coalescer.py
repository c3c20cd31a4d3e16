"""Merging of block requests that wait for the same slow call.

Each thread that has blocks to encrypt leaves them in a queue, with a task for the module's worker. The first of
these tasks that runs sends what the queue holds by then in one call and answers everyone in it; those whose turn
comes later find themselves answered. So with n threads waiting for a slow call, the next call serves all n, and who
is answered does not wait for the next call.

No thread works for another, so none can strand another: who stops waiting takes its blocks out of the queue, if no
call carries them yet.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.worker import CALL_SECONDS, Task, Worker

BLOCKS_PER_CALL_MAX: Final = 2**20
"""Blocks that go into the module together unless told otherwise: 16 MiB (docs/decisions/10-batches.md)."""

_INTERRUPTED: Final = (
    "the call that carried this request was interrupted; nothing is known to be wrong: retry"
)
_WRONG_LENGTH: Final = "the module returned another number of bytes than it was given: do not use this module"


class _Request:
    """Blocks on their way, and the task that waits for them."""

    __slots__ = ("blocks", "task")

    def __init__(self, blocks: bytes, serve: Callable[[_Request], bytes]) -> None:
        self.blocks = blocks
        self.task: Task[bytes] = Task(lambda: serve(self), shared=True)


class Coalescer:
    """Sends requests of many threads through one call at a time.

    Args:
        call: encrypts blocks, returns as many bytes; fails with KeyStoreError. Runs in the worker's thread.
        worker: runs the calls, and whatever else is asked of the module.
        blocks_per_call_max: no call carries more blocks; longer requests are cut.
        seconds: how long a request waits for its answer.
    """

    def __init__(
        self,
        call: Callable[[bytes], bytes],
        worker: Worker,
        *,
        blocks_per_call_max: int,
        seconds: float = CALL_SECONDS,
    ) -> None:
        self._call = call
        self._worker = worker
        self._seconds = seconds
        self._bytes_max = blocks_per_call_max * BLOCK_BYTES
        self._queue: deque[_Request] = deque()  # appended to by callers, taken from by the worker

    @property
    def waiting(self) -> int:
        """Requests that no call carries yet."""
        return len(self._queue)

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks, alone or merged with what else waits.

        Raises:
            KeyStoreError: the call failed, or took too long; every request in it gets an error of its own.
        """
        if len(blocks) <= self._bytes_max:
            return self._send(blocks)
        # Each piece queues anew, so that others need not wait for all of them.
        starts = range(0, len(blocks), self._bytes_max)
        return b"".join(self._send(blocks[start : start + self._bytes_max]) for start in starts)

    def _send(self, blocks: bytes) -> bytes:
        request = _Request(blocks, self._serve)
        try:
            self._queue.append(request)
            self._worker.run(request.task, self._seconds)
        finally:
            if not request.task.finished:  # interrupted, or the module hangs
                with contextlib.suppress(ValueError):
                    self._queue.remove(request)
        return request.task.outcome()

    def _serve(self, request: _Request) -> bytes:
        """Make calls for the oldest requests that fit into one, until this one is answered."""
        while request in self._queue:
            self._serve_some()
        if not request.task.finished:  # taken out of the queue meanwhile: nobody waits for it
            raise KeyStoreError(_INTERRUPTED, code="KEY_STORE_INTERRUPTED")
        return b""  # the answer was handed over; this one does not count

    def _serve_some(self) -> None:
        batch, size = self._next_batch()
        if not batch:
            return
        try:
            answer = self._call(b"".join(request.blocks for request in batch))
        except KeyStoreError as error:
            for request in batch:
                request.task.fail(KeyStoreError(str(error), code=error.code))
        except BaseException as error:  # noqa: BLE001 # a fault of this library: the first of the callers raises it
            batch[0].task.fail(error)
            for request in batch[1:]:
                request.task.fail(KeyStoreError(_INTERRUPTED, code="KEY_STORE_INTERRUPTED"))
        else:
            _hand_over(batch, answer, size)

    def _next_batch(self) -> tuple[list[_Request], int]:
        batch: list[_Request] = []
        size = 0
        while True:
            try:
                request = self._queue.popleft()
            except IndexError:  # who stops waiting may empty the queue at any moment
                return batch, size
            if batch and size + len(request.blocks) > self._bytes_max:
                self._queue.appendleft(request)
                return batch, size
            batch.append(request)
            size += len(request.blocks)


def _hand_over(batch: list[_Request], answer: bytes, size: int) -> None:
    start = 0
    for request in batch:
        end = start + len(request.blocks)
        if len(answer) == size:
            request.task.finish(answer[start:end])
        else:
            request.task.fail(KeyStoreError(_WRONG_LENGTH, code="KEY_STORE_MODULE_UNFIT"))
        start = end
