"""AES over key bytes in this process: the cipher of IN_PROCESS custody, of vectors and of tests.

The blocks run on OpenSSL through the `cryptography` package. Three things shape the class:

- One ECB context per thread. A context of `cryptography` refuses a second thread while the first one is
  inside it ("Already borrowed"), so sharing one would need a lock around every call.
- Contexts are plain memory, so a forked child goes on with the copy of the thread that forked. No other
  thread's context, which may be half-way through a call, lives on in the child.
- The key can not be read back by accident: no `__dict__`, a bare `repr`, no pickle and no copy. Code in the
  same process that looks for the key will find it; no Python object can prevent that.
"""

from __future__ import annotations

import threading
from typing import Final, NoReturn, SupportsIndex, final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.cmac import CMAC

from tokenvault.crypto.block_cipher import BLOCK_BYTES
from tokenvault.errors import InvalidInputError

AES_KEY_BYTES: Final = (16, 24, 32)
CCM_TAG_BYTES: Final = 16


@final
class LocalBlockCipher:
    """One AES key held by this process, as a `BlockCipher`. Safe to share between threads and across a fork.

    Args:
        key: the AES key, 32 bytes. 16 and 24 bytes are taken for published vectors; the vault makes neither.

    Raises:
        InvalidInputError: the key is not bytes, or of another length.
    """

    __slots__ = ("_cmac", "_ecb", "_threads", "aes_ccm")

    aes_ccm: Final[AESCCM]
    """OpenSSL's AES-CCM under this key, with 16-byte tags (NIST SP 800-38C). Safe between threads."""

    def __init__(self, key: bytes) -> None:
        if type(key) is not bytes or len(key) not in AES_KEY_BYTES:
            del key  # not even a wrong key belongs in a traceback that shows locals
            raise InvalidInputError("an AES key is 32 bytes (16 or 24 for published vectors)")
        algorithm = AES(key)
        self._ecb = Cipher(algorithm, ECB())  # noqa: S305 # the port is ECB; modes are built on top of it
        self._cmac = CMAC(algorithm)
        self.aes_ccm = AESCCM(key, tag_length=CCM_TAG_BYTES)
        self._threads = threading.local()

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        """Encrypt each 16-byte block for itself (ECB, NIST SP 800-38A section 6.1).

        Raises:
            InvalidInputError: not bytes, or the length is not a multiple of 16 bytes.
        """
        # a part of a block would stay in the context and shift every later answer
        if type(blocks) is not bytes or len(blocks) % BLOCK_BYTES:
            raise InvalidInputError("blocks must be bytes, a whole number of 16-byte blocks")
        return self.thread_context().update(blocks)

    def thread_context(self) -> CipherContext:
        """The calling thread's own encryption context: `encrypt_blocks` is its `update`, without the checks.

        For loops inside one call that give it whole blocks only: it must not be kept, nor handed to another
        thread.
        """
        context: CipherContext | None = getattr(self._threads, "context", None)
        if context is None:
            context = self._threads.context = self._ecb.encryptor()
        return context

    def new_cmac(self) -> CMAC:
        """A fresh OpenSSL AES-CMAC computation under this key (NIST SP 800-38B)."""
        return self._cmac.copy()

    def __repr__(self) -> str:
        return "<LocalBlockCipher>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise InvalidInputError("a LocalBlockCipher holds a key and can be neither pickled nor copied")
