"""Tokens without a vault: a PAN's digits encrypted in their own format, for data pipelines.

FF1 (NIST SP 800-38G) under the FPE key, over the digits that are not kept. No record, hence no domain, no
lifecycle and no audit event of a single token: whoever has the key store can reverse every one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from tokenvault import checks, ff1
from tokenvault.boundary import boundary, boundary_init
from tokenvault.errors import ConfigurationError, InvalidInputError
from tokenvault.keys.port import KeyName, KeyPurpose, KeyStore
from tokenvault.pan import Pan, luhn_check_digit, luhn_valid

KEEP_FIRST_MAX: Final = 8
FREE_DIGITS_MIN: Final = 6
"""FF1 over fewer digits (a domain under 10**6) is open to guessing: SP 800-38G Rev. 1, draft of 2025."""

_LAST4: Final = 4
_SCOPE_BYTES: Final = 6
_KEPT_BYTES: Final = 5  # 12 digits
_SEPARATOR: Final = "\x1f"


@boundary_init
class VaultlessTokenizer:
    """Turns PANs into tokens of the same length and back, deterministically.

    The tweak is 11 bytes: 6 of SHA-256 over program, requestor and the shape of what is kept, and the kept digits
    as a number. So the same digits give other tokens under another BIN, program or requestor.

    Args:
        keys: the key store; its FPE key is used.
        program: 1 to 64 printable ASCII characters; a name for this kind of token.
        requestor: 11 digits; whose tokens they are.
        keep_first: leading digits that stay as they are, 0 to 8.
        keep_last4: whether the last four stay as they are. If not, the check digit is made anew, so that a token is
            Luhn-valid; if so, it is so only by chance.
        key_version: of the FPE key; unset, the newest. A token says nothing of its version: keep it with the data.

    Raises:
        InvalidInputError: an argument is of another form.
        ConfigurationError: the key store has no FPE key of this version.
        KeyStoreError: the key store can not be reached.
    """

    def __init__(
        self,
        keys: KeyStore,
        *,
        program: str,
        requestor: str,
        keep_first: int = 0,
        keep_last4: bool = True,
        key_version: int | None = None,
    ) -> None:
        checks.text("program", program)
        checks.requestor_id("requestor", requestor)
        self._first = checks.whole_number("keep_first", keep_first, 0, KEEP_FIRST_MAX)
        if type(keep_last4) is not bool:
            raise InvalidInputError("keep_last4 is True or False")
        self._last = _LAST4 if keep_last4 else 0
        versions = keys.versions(KeyPurpose.FPE)
        version = (versions or (0,))[-1] if key_version is None else key_version
        if version not in versions:
            raise ConfigurationError("the key store has no such FPE key: run tokenvault.provision first")
        self._cipher = keys.cipher(KeyName(KeyPurpose.FPE, version))
        scope = _SEPARATOR.join((program, requestor, str(self._first), str(self._last)))
        self._scope = hashlib.sha256(scope.encode("ascii")).digest()[:_SCOPE_BYTES]

    @boundary
    def tokenize(self, pan: str | Pan) -> str:
        """The token of a PAN.

        Raises:
            InvalidInputError: not a PAN, or too short to leave 6 free digits besides the kept ones.
            KeyStoreError: the key store can not be reached.
        """
        return self._turned(Pan.parse(pan), ff1.encrypt_digits).reveal()

    @boundary
    def detokenize(self, token: str) -> Pan:
        """The PAN of a token.

        Raises:
            InvalidInputError: not a token of this tokenizer (where the last four are kept, a wrong one shows by its
                check digit 9 times in 10; else only a token with a wrong check digit shows).
            KeyStoreError: the key store can not be reached.
        """
        checks.token(token)
        if not self._last and not luhn_valid(token):
            raise InvalidInputError("not a token of this tokenizer: its check digit is wrong")
        pan = self._turned(Pan.trusted(token), ff1.decrypt_digits)
        if not luhn_valid(pan.reveal()):
            raise InvalidInputError("not a token of this tokenizer")
        return pan

    def _turned(self, number: Pan, permute: Callable[..., str]) -> Pan:
        """A number with its free digits permuted; Pans, because they are opaque."""
        end = len(number) - (self._last or 1)
        if end - self._first < FREE_DIGITS_MIN:
            raise InvalidInputError(
                f"{len(number)} digits leave {end - self._first} free, and FF1 needs {FREE_DIGITS_MIN}: keep fewer"
            )
        kept = int(number.reveal()[: self._first] + number.reveal()[len(number) - self._last :] or "0")
        tweak = self._scope + kept.to_bytes(_KEPT_BYTES)
        free = Pan.trusted(permute(self._cipher, number.reveal()[self._first : end], tweak=tweak))
        start = Pan.trusted(number.reveal()[: self._first] + free.reveal())
        ending = number.reveal()[end:] if self._last else luhn_check_digit(start.reveal())
        return Pan.trusted(start.reveal() + ending)
