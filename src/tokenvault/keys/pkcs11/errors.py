"""Failures of a PKCS#11 module: their kinds, and the message for each."""

from __future__ import annotations

from typing import Final

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.constants import VENDOR_DEFINED, Code
from tokenvault.keys.pkcs11.cryptoki import CallError

NOT_OFFERED: Final = frozenset(
    {Code.MECHANISM_INVALID, Code.MECHANISM_PARAM_INVALID, Code.FUNCTION_NOT_SUPPORTED}
)

CORRECT_THE_PIN: Final = "put the right PIN where the URI's pin-source says"

PIN_STATES: Final[dict[int, tuple[str, str]]] = {
    Code.PIN_EXPIRED: (
        "KEY_STORE_PIN_EXPIRED",
        f"the token's PIN has expired ({{}}): set another with its own tools, and {CORRECT_THE_PIN}",
    ),
    Code.PIN_LOCKED: (
        "KEY_STORE_PIN_LOCKED",
        "the token's PIN is locked ({}): let its security officer set a new one",
    ),
    Code.USER_PIN_NOT_INITIALIZED: (
        "KEY_STORE_PIN_UNSET",
        "the token has no user PIN yet ({}): let its security officer set one",
    ),
}
"""Return codes of any function that say that the PIN has to be set: our code, and what to do."""

PIN_CODES: Final = PIN_STATES.keys() | {Code.PIN_INCORRECT, Code.PIN_INVALID, Code.PIN_LEN_RANGE}
"""Return codes that say that the PIN, or its state, is not right."""

PERMANENT: Final = (
    NOT_OFFERED
    | PIN_CODES
    | {
        Code.DATA_LEN_RANGE,
        Code.DATA_INVALID,
        Code.ARGUMENTS_BAD,
        Code.ATTRIBUTE_READ_ONLY,
        Code.ATTRIBUTE_TYPE_INVALID,
        Code.ATTRIBUTE_VALUE_INVALID,
        Code.ACTION_PROHIBITED,
        Code.KEY_FUNCTION_NOT_PERMITTED,
        Code.TEMPLATE_INCOMPLETE,
        Code.TEMPLATE_INCONSISTENT,
        Code.TOKEN_WRITE_PROTECTED,
        Code.KEY_SIZE_RANGE,
    }
)
"""Return codes of failures that no new session cures."""

_ECB_REFUSED: Final = NOT_OFFERED | {
    Code.KEY_FUNCTION_NOT_PERMITTED,
    Code.KEY_TYPE_INCONSISTENT,
    Code.FUNCTION_REJECTED,
}
"""Return codes by which modules, their policies and their tokens say that a key does not encrypt in this mode."""

LOST: Final = frozenset(
    {
        Code.CRYPTOKI_NOT_INITIALIZED,
        Code.DEVICE_REMOVED,
        Code.OBJECT_HANDLE_INVALID,
        Code.KEY_HANDLE_INVALID,
        Code.SESSION_CLOSED,
        Code.SESSION_HANDLE_INVALID,
        Code.TOKEN_NOT_PRESENT,
        Code.USER_NOT_LOGGED_IN,
    }
)
"""Return codes that say themselves that a session, a login or the token is gone."""

SESSION_LOST: Final = frozenset(
    {Code.CRYPTOKI_NOT_INITIALIZED, Code.SESSION_CLOSED, Code.SESSION_HANDLE_INVALID}
)

OUT_OF_SESSIONS: Final = "KEY_STORE_OUT_OF_SESSIONS"
_EXHAUSTED: Final = frozenset({Code.SESSION_COUNT, Code.DEVICE_MEMORY, Code.HOST_MEMORY})
"""Return codes that say that the module, or its token, has no more of something."""

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

    code = "KEY_STORE_PIN_REFUSED"


class LoginFailedError(KeyStoreError):
    """The token refused the login for a reason that may be the PIN: not to be tried again by the same call."""

    code = "KEY_STORE_LOGIN_REFUSED"


class DoubtfulError(KeyStoreError):
    """A finding about a token that may be wrong, and is checked again before it is reported.

    While another process writes to a token, SoftHSM shows its objects, or all of it, as absent, invalid or
    without attributes.
    """


class UnfitModuleError(KeyStoreError):
    """The module does otherwise than it was asked."""

    code = "KEY_STORE_MODULE_UNFIT"


class TokenMissingError(DoubtfulError):
    """No token fits the URI: reported only if none fits after the library was initialized again."""

    code = "KEY_STORE_TOKEN_MISSING"


def refuses_ecb(error: CallError) -> bool:
    """Whether another mode may work: by a vendor's own code a module may say anything, this too.

    C_Encrypt refuses sizes, with many of the same codes.
    """
    if error.function != "C_EncryptInit":
        return error.code == Code.MECHANISM_INVALID
    return error.code in _ECB_REFUSED or error.code >= VENDOR_DEFINED


def both_refused(ecb: CallError, cbc: CallError) -> CallError:
    """The error of a block that was encrypted in neither mode, with both codes.

    It counts as the one of CBC; where ECB failed by a vendor's own code as that one, which may be gone next time.
    """
    counts = ecb if ecb.code >= VENDOR_DEFINED else cbc
    return CallError(counts.function, counts.code, f"AES-ECB: {ecb}; AES-CBC: {cbc}")


def is_exhaustion(error: CallError) -> bool:
    """Whether the module has no more sessions, or memory: of C_OpenSession a vendor's own codes say nothing else."""
    return error.code in _EXHAUSTED or (
        error.function == "C_OpenSession"
        and (error.code == Code.SESSION_PARALLEL_NOT_SUPPORTED or error.code >= VENDOR_DEFINED)
    )


def again(error: KeyStoreError) -> KeyStoreError:
    """The same error once more, without what it was raised from: for another caller, or after other attempts."""
    return KeyStoreError(str(error), code=error.code)


def explained(error: CallError) -> KeyStoreError:
    """The error for a failed call, with what to do, the function, and what it returned."""
    code = error.code
    if code in PIN_STATES:
        name, text = PIN_STATES[code]
        return KeyStoreError(text.format(error), code=name)
    if code == Code.USER_NOT_LOGGED_IN:
        return KeyStoreError(
            f"the token is logged out again and again ({error}): look for other code that uses it in this process",
            code="KEY_STORE_LOGGED_OUT",
        )
    if is_exhaustion(error):
        return KeyStoreError(
            f"the module is out of sessions or memory ({error}): close other users of the token",
            code=OUT_OF_SESSIONS,
        )
    if code == Code.TOKEN_WRITE_PROTECTED:
        return KeyStoreError(
            f"the token is write-protected ({error}): allow writing to create or destroy keys",
            code="KEY_STORE_READ_ONLY",
        )
    if code in NOT_OFFERED:
        text = f"the module does not offer what the vault needs ({error}): see docs/howto/hsm.md"
        return KeyStoreError(text, code="KEY_STORE_MODULE_UNFIT")
    if code in PERMANENT:
        text = (
            f"the module refuses what the vault asks for ({error}): it, its policy or its user does not fit"
        )
        return KeyStoreError(text, code="KEY_STORE_MODULE_UNFIT")
    return KeyStoreError(f"{_LOST} ({error})", code="KEY_STORE_UNREACHABLE")
