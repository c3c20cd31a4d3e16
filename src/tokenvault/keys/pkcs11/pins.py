"""PINs that tokens refused, and what a token tells about its PIN before one is tried.

Tokens lock themselves after a few wrong PINs, for every process that uses them. So a PIN that a token refused is not
tried again in this process, by whichever key store, until the source of the PIN gives another one; and none is tried
where the token says that the next wrong one locks it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from typing import Final

from tokenvault.errors import KeyStoreError
from tokenvault.keys.pkcs11.constants import Code, TokenFlag, code_name
from tokenvault.keys.pkcs11.cryptoki import Token
from tokenvault.keys.pkcs11.errors import CORRECT_THE_PIN, PIN_STATES, PinRefusedError
from tokenvault.keys.secrets import Secret

_log: Final = logging.getLogger(__name__)

REFUSED_MAX: Final = 1_000
"""PINs remembered, of all tokens together; the oldest goes."""

_DIGEST_KEY: Final = os.urandom(32)

_NOT_AGAIN: Final = (
    "It is not tried again in this process, since tokens lock after a few wrong ones: " + CORRECT_THE_PIN
)

_REFUSED: Final = "KEY_STORE_PIN_REFUSED"
_REFUSALS: Final[dict[int, tuple[str, str]]] = {
    Code.PIN_INCORRECT: (_REFUSED, f"the token refused the PIN ({{}}). {_NOT_AGAIN}"),
    Code.PIN_INVALID: (
        _REFUSED,
        f"the token refused the PIN ({{}}): no PIN has the characters of this one. {_NOT_AGAIN}",
    ),
    Code.PIN_LEN_RANGE: (
        _REFUSED,
        f"the token refused the PIN ({{}}): it is too short or too long. {_NOT_AGAIN}",
    ),
    **PIN_STATES,
}
"""Return codes of C_Login that speak of the PIN: our code, and what to do."""

# Digests of refused PINs, each with its token. One dictionary, changed in single steps, for all threads.
_refused: Final[OrderedDict[bytes, int]] = OrderedDict()


def pin_digest(pin: Secret) -> bytes:
    """Tells PINs apart within this process and its children, without holding them."""
    return _digest(b"", pin)


def check_state(token: Token) -> None:
    """Refuse to try any PIN on a token that is about to lock, or has no PIN; warn of one that is to be changed.

    Raises:
        KeyStoreError: none is to be tried.
    """
    flags = token.flags
    if flags & TokenFlag.USER_PIN_LOCKED:
        raise KeyStoreError(
            "the token's PIN is locked, so none was tried: let its security officer set a new one",
            code="KEY_STORE_PIN_LOCKED",
        )
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise KeyStoreError(
            "one more wrong PIN would lock the token, so none was tried: find out what tries wrong ones, then log in "
            "once with the module's own tools, which ends this state",
            code="KEY_STORE_PIN_FINAL_TRY",
        )
    if not flags & TokenFlag.USER_PIN_INITIALIZED:
        raise KeyStoreError(
            "the token has no user PIN yet, so none was tried: let its security officer set one",
            code="KEY_STORE_PIN_UNSET",
        )
    if flags & TokenFlag.USER_PIN_TO_BE_CHANGED:
        _log.warning(
            "the token says that its PIN is to be changed: it is used, but the token may refuse what is asked of it "
            "until another one is set with the token's own tools"
        )


def check_untried(token: Token, pin: Secret) -> None:
    """Raise PinRefusedError for a PIN that this token refused before."""
    code = _refused.get(_digest(_identity(token), pin))
    if code is not None:
        raise refused(code, "this PIN was tried before: ")


def note_refused(token: Token, pin: Secret, code: int) -> None:
    """Remember that a token refused a PIN."""
    _refused[_digest(_identity(token), pin)] = code
    while len(_refused) > REFUSED_MAX:
        _refused.popitem(last=False)


def refused(code: int, before: str = "") -> PinRefusedError:
    """The error for a return code of C_Login that speaks of the PIN, with what to do about it."""
    name, text = _REFUSALS[code]
    return PinRefusedError(before + text.format(f"C_Login: {code_name(code)}"), code=name)


def _identity(token: Token) -> bytes:
    # Not by its slot, if need not be: modules number slots anew, and the PIN would be tried in each.
    place = token.serial or token.slot_id
    parts = (token.manufacturer_id, token.model, token.label, place)
    return "\0".join(map(str, parts)).encode()


def _digest(token: bytes, pin: Secret) -> bytes:
    parts = hashlib.blake2b(token, key=_DIGEST_KEY, digest_size=16)
    parts.update(b"\0" + pin.reveal().encode())
    return parts.digest()
