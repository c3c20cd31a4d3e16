"""The calls of PKCS#11 that python-pkcs11 does not offer, made through ctypes on the same library.

python-pkcs11 passes C_Initialize no arguments, and NSS wants some. It logs in only while it opens a session, and
loses that session where the PIN is refused: modules with few sessions run out of them. It does not offer
C_GetSessionInfo, which tells whether a login still stands without needing any right. And it calls C_Finalize with
the interpreter's lock held, so that a module that hangs would stop every thread.
"""

from __future__ import annotations

import ctypes
from typing import Final

import pkcs11
from pkcs11 import PKCS11Error

CKR_OK: Final = 0
CKR_PIN_INCORRECT: Final = 0xA0
CKR_USER_ALREADY_LOGGED_IN: Final = 0x100
CKR_CRYPTOKI_ALREADY_INITIALIZED: Final = 0x191

_CKU_USER: Final = 1
_USER_STATES: Final = (1, 3)  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS

# Where the functions stand in CK_FUNCTION_LIST, after the version.
_INITIALIZE, _FINALIZE, _GET_SESSION_INFO, _LOGIN = 0, 1, 15, 18
_FUNCTIONS: Final = 68

NAMES: Final = {
    0x1: "CKR_CANCEL",
    0x2: "CKR_HOST_MEMORY",
    0x3: "CKR_SLOT_ID_INVALID",
    0x5: "CKR_GENERAL_ERROR",
    0x6: "CKR_FUNCTION_FAILED",
    0x7: "CKR_ARGUMENTS_BAD",
    0xA: "CKR_CANT_LOCK",
    0x30: "CKR_DEVICE_ERROR",
    0x31: "CKR_DEVICE_MEMORY",
    0x32: "CKR_DEVICE_REMOVED",
    0x54: "CKR_FUNCTION_NOT_SUPPORTED",
    CKR_PIN_INCORRECT: "CKR_PIN_INCORRECT",
    0xA1: "CKR_PIN_INVALID",
    0xA2: "CKR_PIN_LEN_RANGE",
    0xA3: "CKR_PIN_EXPIRED",
    0xA4: "CKR_PIN_LOCKED",
    0xB0: "CKR_SESSION_CLOSED",
    0xB1: "CKR_SESSION_COUNT",
    0xB3: "CKR_SESSION_HANDLE_INVALID",
    0xE0: "CKR_TOKEN_NOT_PRESENT",
    0xE1: "CKR_TOKEN_NOT_RECOGNIZED",
    0xE2: "CKR_TOKEN_WRITE_PROTECTED",
    CKR_USER_ALREADY_LOGGED_IN: "CKR_USER_ALREADY_LOGGED_IN",
    0x101: "CKR_USER_NOT_LOGGED_IN",
    0x102: "CKR_USER_PIN_NOT_INITIALIZED",
    0x103: "CKR_USER_TYPE_INVALID",
    0x104: "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
    0x105: "CKR_USER_TOO_MANY_TYPES",
    0x150: "CKR_BUFFER_TOO_SMALL",
    0x190: "CKR_CRYPTOKI_NOT_INITIALIZED",
    CKR_CRYPTOKI_ALREADY_INITIALIZED: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
    0x200: "CKR_FUNCTION_REJECTED",
}
"""Of the codes that the calls here may give, or that python-pkcs11 has no class for."""


class CallError(PKCS11Error):
    """A call failed.

    Attributes:
        code: the return code, a CK_RV.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code_name(code))
        self.code = code


def code_name(code: int) -> str:
    """The name of a return code, or its number."""
    return NAMES.get(code, hex(code))


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * _FUNCTIONS))


class _InitializeArguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS, and the NULL that NSS looks for after it."""

    _fields_ = (
        ("mutex_functions", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_char_p),
        ("end", ctypes.c_void_p),
    )


_CKF_OS_LOCKING_OK: Final = 0x2


class _SessionInfo(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_ulong),
        ("state", ctypes.c_ulong),
        ("flags", ctypes.c_ulong),
        ("device_error", ctypes.c_ulong),
    )


class Cryptoki:
    """A loaded library. It stays loaded as long as the process lives.

    Raises:
        OSError: the library can not be loaded; the text is the loader's.
        AttributeError: it is not a PKCS#11 module.
        CallError: it does not give its functions.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        functions = ctypes.POINTER(_FunctionList)()
        get_functions = self._library.C_GetFunctionList
        get_functions.restype = ctypes.c_ulong
        _check(get_functions(ctypes.byref(functions)))
        self._functions: Final = functions.contents.functions

    def initialize(self, arguments: str | None) -> int:
        """C_Initialize; with `arguments` as pReserved. The return code."""
        if arguments is None:
            return self._call(_INITIALIZE, ctypes.c_void_p(None))
        passed = _InitializeArguments(flags=_CKF_OS_LOCKING_OK, reserved=arguments.encode())
        return self._call(_INITIALIZE, ctypes.byref(passed))

    def finalize(self) -> None:
        """C_Finalize. What it answers does not matter: it may be down already."""
        self._call(_FINALIZE, ctypes.c_void_p(None))

    def login(self, session: pkcs11.Session, pin: bytes) -> int:
        """C_Login as user. The return code."""
        handle = ctypes.c_ulong(_handle(session))
        return self._call(_LOGIN, handle, ctypes.c_ulong(_CKU_USER), pin, ctypes.c_ulong(len(pin)))

    def logged_in(self, session: pkcs11.Session) -> bool:
        """Whether a session is one of the logged-in user, by C_GetSessionInfo. Raises CallError."""
        info = _SessionInfo()
        _check(self._call(_GET_SESSION_INFO, ctypes.c_ulong(_handle(session)), ctypes.byref(info)))
        return info.state in _USER_STATES

    def _call(self, index: int, *arguments: object) -> int:
        function = ctypes.CFUNCTYPE(ctypes.c_ulong)(self._functions[index])
        return int(function(*arguments))


def _handle(session: pkcs11.Session) -> int:
    return int(session.handle)  # type: ignore[attr-defined] # it has one: CK_SESSION_HANDLE


def _check(code: int) -> None:
    if code != CKR_OK:
        raise CallError(code)
