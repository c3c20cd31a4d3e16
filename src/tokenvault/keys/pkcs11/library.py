"""A PKCS#11 library file: loaded once in a process, initialized by us or by others, finalized only where by us."""

from __future__ import annotations

import sys
from typing import Final, Protocol

from tokenvault.errors import KeyStoreError
from tokenvault.interrupts import is_file, is_interrupt
from tokenvault.keys.pkcs11.constants import Code
from tokenvault.keys.pkcs11.cryptoki import CallError, Cryptoki
from tokenvault.keys.pkcs11.worker import calling

_CALLED_BY_PYTHON_PKCS11: Final = ("C_Initialize", "C_GetInfo", "C_Finalize")
"""What python-pkcs11 calls of a library that it is given, without a look at whether it is there."""


class _OthersLibrary(Protocol):
    """What python-pkcs11 knows of a library."""

    initialized: bool

    def initialize(self) -> None: ...


class Library:
    """One library file in one process. Used by the module's worker alone.

    Attributes:
        ours: whether it was initialized here, and so may be finalized here.
        path: where the file is.
    """

    def __init__(self, path: str, *, parent: Library | None) -> None:
        self.path: Final = path
        self.ours = False
        self._parent: Final = parent  # the same library in the process that this one was forked from
        self._arguments: str | None = None if parent is None else parent._arguments
        self._cryptoki: Cryptoki | None = None
        self._up = False

    def use_arguments(self, arguments: str | None) -> None:
        """What C_Initialize is given; the first key store on a module decides."""
        if not self._up and self._arguments is None:
            self._arguments = arguments

    def cryptoki(self) -> Cryptoki:
        """The library, loaded. Raises KeyStoreError where it can not be."""
        if self._cryptoki is None:
            self._cryptoki = _load(self.path)
        return self._cryptoki

    def initialized(self) -> Cryptoki:
        """The library, loaded and initialized. Raises KeyStoreError, CallError."""
        if not self._up:
            if self._parent is None:
                self._initialize()
            else:
                self._initialize_child(self._parent)
            self._up = True
        return self.cryptoki()

    def initialize_again(self) -> None:
        """Finalize the library, where it was initialized here, and initialize it. Raises KeyStoreError, CallError."""
        if self._up:
            if self.ours:
                self.cryptoki().finalize()
            self._initialize()
        else:
            self.initialized()

    def _initialize(self) -> None:
        cryptoki = self.cryptoki()
        if (
            self._arguments is None
            and cryptoki.has(*_CALLED_BY_PYTHON_PKCS11)
            and _initialize_with_python_pkcs11(self.path)
            and cryptoki.is_initialized()
        ):
            self.ours = True
            return
        code = cryptoki.initialize(self._arguments)
        if code not in (Code.OK, Code.CRYPTOKI_ALREADY_INITIALIZED):
            raise CallError("C_Initialize", code)
        self.ours = code == Code.OK

    def _initialize_child(self, parent: Library) -> None:
        """Initialize in a forked child. The copy of the parent's state may look alive: it is not ours.

        SoftHSM stays logged in, for one, and has to be finalized.
        """
        cryptoki = self.cryptoki()
        code = cryptoki.initialize(self._arguments)
        if code == Code.CRYPTOKI_ALREADY_INITIALIZED and parent.ours:
            cryptoki.finalize()
            code = cryptoki.initialize(self._arguments)
        if code not in (Code.OK, Code.CRYPTOKI_ALREADY_INITIALIZED):
            raise CallError("C_Initialize", code)
        self.ours = code == Code.OK


def _initialize_with_python_pkcs11(path: str) -> bool:
    """Whether python-pkcs11 initialized a library just now.

    It can not use one that others initialized. So where other code of this process has imported it, it is given the
    chance to be the first: what it holds then serves that code, too.
    """
    python_pkcs11 = sys.modules.get("pkcs11")
    if python_pkcs11 is None:
        return False
    known: _OthersLibrary | None = getattr(python_pkcs11, "_loaded", {}).get(path)
    if known is not None and known.initialized:
        return False  # by that other code
    calling("C_Initialize")
    try:
        if known is None:
            python_pkcs11.lib(path)
        else:
            known.initialize()
    except RuntimeError:  # of which its own errors are
        return False
    return True


def _load(path: str) -> Cryptoki:
    if not is_file(path):
        raise KeyStoreError(
            "there is no file at module-path: install the PKCS#11 module or correct the path",
            code="KEY_STORE_MODULE_MISSING",
        )
    try:
        return Cryptoki(path)
    except OSError as error:
        if is_interrupt(error):  # a time limit may be a TimeoutError
            raise
        told = str(error)
    except CallError as error:
        told = str(error)
    except AttributeError:
        told = "it has no function C_GetFunctionList"
    raise KeyStoreError(
        f"the library at module-path can not be loaded as a PKCS#11 module: {told}",
        code="KEY_STORE_MODULE_UNFIT",
    )
