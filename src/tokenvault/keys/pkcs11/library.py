"""A PKCS#11 library file: loaded once in a process, initialized by us or by others, finalized only where by us."""

from __future__ import annotations

import os
from typing import Final

import pkcs11
from pkcs11 import PKCS11Error, _pkcs11

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.cryptoki import (
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_OK,
    CallError,
    Cryptoki,
    code_name,
)
from tokenvault.keys.pkcs11.errors import cause
from tokenvault.keys.pkcs11.worker import calling


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
        self._library: _pkcs11.lib | None = None

    def use_arguments(self, arguments: str | None) -> None:
        """What C_Initialize is given; the first key store on a module decides."""
        if self._library is None and self._arguments is None:
            self._arguments = arguments

    def cryptoki(self) -> Cryptoki:
        """The calls that python-pkcs11 does not offer. Raises KeyStoreError where the file can not be loaded."""
        if self._cryptoki is None:
            self._cryptoki = _load(self.path)
        return self._cryptoki

    def loaded(self) -> _pkcs11.lib:
        """The library, loaded and initialized."""
        if self._library is not None:
            return self._library
        cryptoki = self.cryptoki()
        library = self._known()
        if self._parent is not None:
            self._initialize_child(cryptoki, self._parent)
        elif library is None and self._arguments is None:
            library = self._initialize_with_python_pkcs11()
        elif library is None or not library.initialized:
            self._initialize()
        self._library = library or _without_constructor(self.path)
        return self._library

    def _known(self) -> _pkcs11.lib | None:
        """What this process uses the same file by through python-pkcs11; other code may share it with us."""
        found = pkcs11._loaded.get(self.path)
        return found if isinstance(found, _pkcs11.lib) else None

    def initialize_again(self) -> None:
        """Finalize the library, where it is ours, and initialize it. Raises PKCS11Error."""
        if self._library is None:
            self.loaded()
            return
        if self.ours:
            calling("C_Finalize")
            self.cryptoki().finalize()
        self._initialize()

    def _initialize_with_python_pkcs11(self) -> _pkcs11.lib | None:
        """Through its own door, so that other code that uses python-pkcs11 finds it there; None where it was up."""
        calling("C_Initialize")
        try:
            library = pkcs11.lib(self.path)
        except PKCS11Error as error:
            if code_name(CKR_CRYPTOKI_ALREADY_INITIALIZED) not in cause(error):
                raise
            return None
        self.ours = True
        return library

    def _initialize(self) -> None:
        library = self._known()
        calling("C_Initialize")
        if library is not None and not library.initialized and self._arguments is None:
            library.initialize()  # which notes it there, too
            self.ours = True
            return
        code = self.cryptoki().initialize(self._arguments)
        if code not in (CKR_OK, CKR_CRYPTOKI_ALREADY_INITIALIZED):
            raise CallError(code)
        self.ours = code == CKR_OK

    def _initialize_child(self, cryptoki: Cryptoki, parent: Library) -> None:
        """Initialize in a forked child. The copy of the parent's state may look alive: it is not ours.

        SoftHSM stays logged in, for one, and has to be finalized.
        """
        calling("C_Initialize")
        code = cryptoki.initialize(self._arguments)
        if code == CKR_CRYPTOKI_ALREADY_INITIALIZED and parent.ours:
            calling("C_Finalize")
            cryptoki.finalize()
            calling("C_Initialize")
            code = cryptoki.initialize(self._arguments)
        if code not in (CKR_OK, CKR_CRYPTOKI_ALREADY_INITIALIZED):
            raise CallError(code)
        self.ours = code == CKR_OK


def _load(path: str) -> Cryptoki:
    if not os.path.isfile(path):
        raise KeyStoreError("there is no file at module-path: install the PKCS#11 module or correct the path")
    try:
        return Cryptoki(path)
    except OSError as error:
        told = str(error)
    except AttributeError:
        told = "it has no function C_GetFunctionList"
    raise KeyStoreError(f"the library at module-path can not be loaded as a PKCS#11 module: {told}")


def _without_constructor(path: str) -> _pkcs11.lib:
    """python-pkcs11's view of a library that is initialized already: its constructor would want to do that."""
    library: _pkcs11.lib = _pkcs11.lib.__new__(_pkcs11.lib, path)  # type: ignore[call-arg] # Cython
    return library
