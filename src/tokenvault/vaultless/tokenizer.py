"""Tokens without a vault: a PAN's digits encrypted in their own format, for data pipelines.

FF1 (NIST SP 800-38G) under the FPE key, over the digits that are not kept, or over all into a format with a token
BIN of its own. No record, hence no domain, no lifecycle and no audit event of a single token: whoever has the key
store can reverse every one.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from tokenvault.columns.arrays import plain_array, word_column
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.errors import ConfigurationError, InvalidInputError, boundary, boundary_init
from tokenvault.keys.port import VERSION_MAX, KeyName, KeyPurpose, KeyStore
from tokenvault.model import checks
from tokenvault.model.pan import PAN_LENGTH_MAX, PAN_LENGTH_MIN, Pan
from tokenvault.model.token_format import TokenFormat
from tokenvault.vaultless import containers
from tokenvault.vaultless.shapes import FREE_DIGITS_MIN, OWN_BIN_DIGITS_MIN, KeptDigits, OwnBin
from tokenvault.vaultless.texts import NumberConversion, convert_texts, refuse

__all__ = ["FREE_DIGITS_MIN", "KEEP_FIRST_MAX", "VaultlessTokenizer"]

KEEP_FIRST_MAX: Final = 8

_LAST4: Final = 4
_SCOPE_BYTES: Final = 6
_SEPARATOR: Final = "\x1f"
_NO_PAN: Final = "is no PAN: 13 to 19 digits without separators, of which the last is a check digit (Luhn)"
_NO_TOKEN: Final = "is no token of this tokenizer"  # noqa: S105 # a message

Column = TypeVar("Column")


@boundary_init
class VaultlessTokenizer:
    """Converts PANs to tokens and back, deterministically.

    Without `format` a token has the PAN's length and keeps some of its digits. The tweak is 11 bytes: 6 of SHA-256
    over program, requestor and the shape of what is kept, and the kept digits as a number. So the same digits give
    other tokens under another BIN, program or requestor.

    With `format` a token has a token BIN and a length of its own, by which it can be told from a PAN. All of the PAN
    is in its free digits (length less BIN and check digit), so there must be as many as the PAN has: 19 digits and a
    token BIN of at most 2 hold PANs of up to 16 digits.

    Args:
        keys: the key store; its FPE key is used.
        program: 1 to 64 printable ASCII characters; a name for this kind of token.
        requestor: 11 digits; whose tokens they are.
        keep_first: leading digits that stay as they are, 0 to 8.
        keep_last4: whether the last four stay as they are; unset, they do, unless there is a format. If not, the
            check digit is made anew, so that a token is Luhn-valid; if so, it is so only by chance.
        key_version: of the FPE key; unset, the newest. A token says nothing of its version: keep it with the data.
        format: what tokens look like; its length is set, and it does not keep the last four. Its check digit is
            right, or with `luhn=False` one too high. Nothing else is kept then.

    Raises:
        InvalidInputError: an argument is of another form, or a format can not hold PANs of 16 digits.
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
        keep_last4: bool | None = None,
        key_version: int | None = None,
        format: TokenFormat | None = None,  # noqa: A002 # the name that programs have for it
    ) -> None:
        checks.offers("keys", keys, "cipher", "a key store, as open_key_store opens one")
        checks.text("program", program)
        checks.requestor_id("requestor", requestor)
        checks.whole_number("keep_first", keep_first, 0, KEEP_FIRST_MAX)
        if keep_last4 is not None and type(keep_last4) is not bool:
            raise InvalidInputError("keep_last4 is True or False")
        cipher = _fpe_cipher(keys, key_version)
        self._shape: KeptDigits | OwnBin
        if format is None:
            last = 0 if keep_last4 is False else _LAST4
            self._shape = KeptDigits(
                cipher, keep_first, last, _scope(program, requestor, str(keep_first), str(last))
            )
        else:
            checks.instance("format", format, TokenFormat)
            if keep_first or keep_last4 or format.keep_last4:
                raise InvalidInputError("tokens with a token BIN of their own keep no digits of the PAN")
            self._shape = _own_bin(cipher, format, program, requestor)

    @boundary
    def tokenize(self, pan: str | Pan) -> str:
        """The token of a PAN.

        Raises:
            InvalidInputError: not a PAN, or too short to leave 6 free digits besides the kept ones, or too long for
                the format.
            KeyStoreError: the key store can not be reached.
        """
        return self._shape.tokenize(Pan.parse(pan))

    @boundary
    def detokenize(self, token: str) -> Pan:
        """The PAN of a token.

        Raises:
            InvalidInputError: not a token of this tokenizer. Where the last four are kept, a wrong one shows by its
                check digit 9 times in 10; under a token BIN, one with the right BIN and check digit 8 times in 10;
                else only a token with a wrong check digit shows.
            KeyStoreError: the key store can not be reached.
        """
        return self._shape.detokenize(checks.token(token))

    @boundary
    def tokenize_many(self, pans: Column, *, length: int | None = None) -> Column:
        """The tokens of a column of PANs, the same as `tokenize` gives, in order; all or none.

        Args:
            pans: a list or tuple of str; a numpy array of dtype S or U, shape (rows,); one of dtype uint64 with
                `length`; or a pyarrow Array or ChunkedArray of string or large_string, or of a dictionary of them,
                whose missing values stay missing. Digits only, without separators; lengths may differ.
            length: digits of every PAN, 13 to 19, for uint64; leading zeros count.

        Returns:
            A column of the same kind. Tokens may begin with zeros, which a uint64 does not show.

        Raises:
            InvalidInputError: the column is of another kind, or a row is no PAN or one that `tokenize` refuses: the
                message has the number of the first one, from 0, and never its digits.
            KeyStoreError: the key store can not be reached.
        """
        result: Column = self._column(pans, length, self._shape.tokenize_many, _NO_PAN, by_pan_length=False)
        return result

    @boundary
    def detokenize_many(self, tokens: Column, *, length: int | None = None) -> Column:
        """The PANs of a column of tokens, the same as `detokenize` gives, in order; all or none.

        They are bare digits, not opaque as a `Pan` is: keep them out of logs. Columns and errors are those of
        `tokenize_many`; `length` is that of every PAN, also where tokens have another.
        """
        conversion = self._shape.detokenize_many
        result: Column = self._column(tokens, length, conversion, _NO_TOKEN, by_pan_length=True)
        return result

    def _column(
        self,
        column: object,
        length: int | None,
        conversion: NumberConversion,
        refusal: str,
        *,
        by_pan_length: bool,
    ) -> Any:
        array = plain_array(column)
        if array is None or array.dtype.kind in "SU":
            if length is not None:
                raise InvalidInputError("length is for columns of uint64: strings have their own")
            return containers.convert(column, partial(convert_texts, conversion=conversion, refusal=refusal))
        numbers = word_column("a column that is not of strings", array)
        pan_length = checks.whole_number(
            "length, which a column of uint64 needs,", length, PAN_LENGTH_MIN, PAN_LENGTH_MAX
        )
        given = self._shape.token_length(pan_length) if by_pan_length else pan_length
        refuse(numbers >= np.uint64(10**given), refusal, 0)
        result, lengths, good = conversion(numbers, given)
        refuse(~good | (by_pan_length & (lengths != pan_length)), refusal, 0)
        return result


def _fpe_cipher(keys: KeyStore, key_version: int | None) -> BlockCipher:
    if key_version is not None:
        checks.whole_number("key_version", key_version, 1, VERSION_MAX)
    versions = keys.versions(KeyPurpose.FPE)
    version = (versions or (0,))[-1] if key_version is None else key_version
    if version not in versions:
        raise ConfigurationError(
            "the key store has no such FPE key: run tokenvault.provision first", code="KEY_MISSING"
        )
    return keys.cipher(KeyName(KeyPurpose.FPE, version))


def _own_bin(cipher: BlockCipher, token_format: TokenFormat, program: str, requestor: str) -> OwnBin:
    length = token_format.length or 0
    if length - len(token_format.bin) - 1 < OWN_BIN_DIGITS_MIN:
        raise InvalidInputError(
            f"a format of vaultless tokens needs {OWN_BIN_DIGITS_MIN} digits besides its BIN and check digit,"
            " for PANs of 16: set the length to 19, with a BIN of 1 or 2 digits"
        )
    check = "valid" if token_format.luhn else "invalid"
    scope = _scope(program, requestor, token_format.bin, str(length), check)
    return OwnBin(cipher, token_format.bin, length, token_format.luhn, scope)


def _scope(*parts: str) -> bytes:
    """The constant bytes of the tweak: of SHA-256 over what the tokens belong to."""
    return hashlib.sha256(_SEPARATOR.join(parts).encode("ascii")).digest()[:_SCOPE_BYTES]
