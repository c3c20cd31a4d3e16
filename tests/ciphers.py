"""Block ciphers that observe or fail, for tests of what is built on the port."""

from __future__ import annotations

from types import TracebackType

from tokenvault.crypto.block_cipher import BLOCK_BYTES, BlockCipher
from tokenvault.errors import KeyStoreError


class CountingCipher:
    """Passes blocks on and counts. No LocalBlockCipher, so that it takes the generic path.

    Attributes:
        calls: how many times blocks were asked for.
        sizes: the number of blocks of each call.
    """

    def __init__(self, cipher: BlockCipher) -> None:
        self._cipher = cipher
        self.sizes: list[int] = []

    @property
    def calls(self) -> int:
        return len(self.sizes)

    def reset(self) -> None:
        self.sizes.clear()

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        self.sizes.append(len(blocks) // BLOCK_BYTES)
        return self._cipher.encrypt_blocks(blocks)


class FailingCipher(CountingCipher):
    """Answers so many calls and then loses its key store."""

    def __init__(self, cipher: BlockCipher, answers: int) -> None:
        super().__init__(cipher)
        self._answers = answers

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        if self.calls >= self._answers:
            raise KeyStoreError("the module is gone")
        return super().encrypt_blocks(blocks)


class ShortCipher(CountingCipher):
    """Answers with one byte too few."""

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        return super().encrypt_blocks(blocks)[:-1]


def library_locals(error: BaseException) -> str:
    """What a traceback that prints locals shows of the library's frames, chained errors included."""
    shown: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        shown.append(repr(seen))
        traceback: TracebackType | None = seen.__traceback__
        while traceback is not None:
            if "tokenvault" in str(traceback.tb_frame.f_globals.get("__name__", "")):
                shown.extend(f"{name}={value!r}" for name, value in traceback.tb_frame.f_locals.items())
            traceback = traceback.tb_next
        seen = seen.__cause__ or seen.__context__
    return "\n".join(shown)
