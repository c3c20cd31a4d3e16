"""Failures of a PKCS#11 module: their kinds, and the message for each."""

from __future__ import annotations

import re
from typing import Final

import pkcs11
from pkcs11 import PKCS11Error

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.cryptoki import CallError, code_name
from tokenvault.keys.pkcs11.worker import called

MODULE_ERRORS: Final = (
    PKCS11Error,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    LookupError,
    OSError,
)
"""What python-pkcs11 raises when a module fails, or returns something that python-pkcs11 can not read."""

PERMANENT_ERRORS: Final = (
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
    pkcs11.FunctionNotSupported,
    pkcs11.DataLenRange,
    pkcs11.DataInvalid,
    pkcs11.ArgumentsBad,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.TemplateIncomplete,
    pkcs11.TemplateInconsistent,
    pkcs11.TokenWriteProtected,
    pkcs11.KeySizeRange,
)
"""Failures that no new session cures."""

SESSION_LOST: Final = (
    pkcs11.DeviceRemoved,
    pkcs11.ObjectHandleInvalid,
    pkcs11.KeyHandleInvalid,
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.TokenNotPresent,
    pkcs11.UserNotLoggedIn,
)
"""Failures that say themselves that a session, a login or the token is gone."""

NOT_FOUND: Final = (
    "the module has no token that fits the URI: check token=, serial= and slot-id=, and that the device is "
    "connected (SoftHSM: that SOFTHSM2_CONF was set before the module was loaded, and that the token folder "
    "is there)"
)
_LOST: Final = (
    "the module does not reach its token: check that the device is connected (SoftHSM: that the token "
    "folder is there); no restart is needed afterwards"
)


class CollisionError(Exception):
    """Another process made the same key at the same moment; the one made here is destroyed again.

    Attributes:
        version: of the key, where it has one.
    """

    def __init__(self, version: int = 0) -> None:
        super().__init__(version)
        self.version = version


class PinRefusedError(KeyStoreError):
    """The token refused the PIN, which is not tried again: tokens lock themselves after a few wrong ones."""


class LoginFailedError(KeyStoreError):
    """The token refused the login for a reason that may be the PIN: not to be tried again by the same call."""


class DoubtfulError(KeyStoreError):
    """A finding about a token that may be wrong, and is checked again before it is reported.

    While another process writes to a token, SoftHSM shows its objects, or all of it, as absent, invalid or
    without attributes.
    """


class UnfitModuleError(KeyStoreError):
    """The module does otherwise than it was asked."""


class TokenMissingError(DoubtfulError):
    """No token fits the URI: reported only if none fits after the library was initialized again."""


_NAME_STARTS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER_NAMES: Final = {"AnotherUserAlreadyLoggedIn": "USER_ANOTHER_ALREADY_LOGGED_IN"}
_IN_WORDS: Final = {
    "(already initialized)": "CKR_CRYPTOKI_ALREADY_INITIALIZED",
    "(not initialized)": "CKR_CRYPTOKI_NOT_INITIALIZED",
    "Buffer was too small": "CKR_BUFFER_TOO_SMALL",
}
_NUMBER: Final = re.compile(r"0x[0-9a-f]+")


def cause(error: Exception) -> str:
    """What failed: the function of the module that was called last, and its return code by name or number."""
    return f"{called()}: {_code_of(error)}"


def _code_of(error: Exception) -> str:
    """The return code that python-pkcs11 made an exception of; the exception's name where it was none."""
    name = type(error).__name__
    if isinstance(error, CallError):
        return code_name(error.code)
    if not isinstance(error, PKCS11Error):
        return f"an answer that can not be read, {name}"
    if type(error) is not PKCS11Error:
        return "CKR_" + _OTHER_NAMES.get(name, _NAME_STARTS.sub("_", name).upper())
    text = str(error)
    number = _NUMBER.search(text)
    if number is not None:
        return code_name(int(number.group(), 16))
    return next((code for words, code in _IN_WORDS.items() if words in text), name)


def advice(error: Exception) -> str:
    """The message for a failure. The module's own text is left out: it may quote what was passed in."""
    if isinstance(error, KeyStoreError):
        return str(error)
    told = cause(error)
    if isinstance(error, pkcs11.UserNotLoggedIn):
        return f"the token is logged out again and again ({told}): look for other code that uses it in this process"
    if isinstance(error, (pkcs11.SessionCount, pkcs11.DeviceMemory, pkcs11.HostMemory)):
        return f"the module is out of sessions or memory ({told}): close other users of the token"
    if isinstance(error, pkcs11.TokenWriteProtected):
        return f"the token is write-protected ({told}): allow writing to create or destroy keys"
    if isinstance(
        error, pkcs11.FunctionNotSupported | pkcs11.MechanismInvalid | pkcs11.MechanismParamInvalid
    ):
        return f"the module does not offer what the vault needs ({told}): see docs/howto/hsm.md"
    if isinstance(error, PERMANENT_ERRORS):
        return f"the module refuses what the vault asks for ({told}): the module, its policy or its user does not fit"
    return f"{_LOST} ({told})"
