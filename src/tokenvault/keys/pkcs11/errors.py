"""Failures of a PKCS#11 module: their kinds, and the message for each."""

from __future__ import annotations

from typing import Final

import pkcs11
from pkcs11 import PKCS11Error

from tokenvault.errors import KeyStoreError

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

PIN_ERRORS: Final = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinExpired,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)

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
    """Another process made the same key at the same moment; the one made here is destroyed again."""


class PinRefusedError(KeyStoreError):
    """The token refused the PIN, which is not tried again: tokens lock themselves after a few wrong ones.

    Attributes:
        digest: of the PIN, to recognize it.
    """

    def __init__(self, message: str, digest: bytes) -> None:
        super().__init__(message)
        self.digest = digest


class DoubtfulError(KeyStoreError):
    """A finding about a token that may be wrong, and is checked again before it is reported.

    While another process writes to a token, SoftHSM shows its objects, or all of it, as absent, invalid or
    without attributes.
    """


class TokenMissingError(DoubtfulError):
    """No token fits the URI: reported only if none fits after the library was initialized again."""


def advice(error: Exception) -> str:
    """The message for a failure. The module's own text is left out: it may quote what was passed in."""
    kind = type(error).__name__
    if isinstance(error, KeyStoreError):
        return str(error)
    if "already initialized" in str(error):
        return (
            "the module was initialised by other code in this process, under another path: write "
            "module-path the same way everywhere"
        )
    if isinstance(error, pkcs11.UserNotLoggedIn):
        return "the token is logged out again and again: look for other code that uses it in this process"
    if isinstance(error, (pkcs11.SessionCount, pkcs11.DeviceMemory, pkcs11.HostMemory)):
        return f"the module is out of sessions or memory ({kind}): close other users of the token"
    if isinstance(error, pkcs11.TokenWriteProtected):
        return "the token is write-protected: allow writing to create or destroy keys"
    if isinstance(error, pkcs11.DataLenRange):
        return "the module does not take that much at once: set x-blocks-per-call-max in the key store's URI"
    if isinstance(error, PERMANENT_ERRORS):
        return f"the module does not offer what the vault needs, AES-256 in ECB mode ({kind})"
    return f"{_LOST} ({kind})"
