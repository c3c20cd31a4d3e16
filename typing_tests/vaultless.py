"""The vaultless tokenizer and FF1: columns come back as what they were given."""

from typing import assert_type

import numpy as np
import numpy.typing as npt

import tokenvault as tv
from tokenvault import ff1
from tokenvault.keys import BlockCipher, KeyStore, LocalBlockCipher


def tokenized(
    keys: KeyStore, pan: tv.Pan, words: npt.NDArray[np.uint64], texts: npt.NDArray[np.bytes_]
) -> None:
    tokenizer = tv.VaultlessTokenizer(
        keys, program="lake", requestor="40012345678", keep_first=6, keep_last4=True, key_version=1
    )
    tv.VaultlessTokenizer(
        keys, program="lake", requestor="40012345678", format=tv.TokenFormat(bin="9", length=19, luhn=False)
    )
    assert_type(tokenizer.tokenize(pan), str)
    assert_type(tokenizer.tokenize("4111111111111111"), str)
    assert_type(tokenizer.detokenize("4111110000001111"), tv.Pan)
    assert_type(tokenizer.tokenize_many(["4111111111111111"]), list[str])
    assert_type(tokenizer.tokenize_many(words, length=16), npt.NDArray[np.uint64])
    assert_type(tokenizer.detokenize_many(texts), npt.NDArray[np.bytes_])
    tv.VaultlessTokenizer(keys, "lake", "40012345678")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def format_preserving(cipher: BlockCipher, words: npt.NDArray[np.uint64]) -> None:
    assert_type(LocalBlockCipher(bytes(16)).encrypt_blocks(bytes(16)), bytes)
    assert_type(ff1.encrypt(cipher, [0, 1, 2], radix=10, tweak=b""), list[int])
    assert_type(ff1.decrypt(cipher, (0, 1, 2), radix=10), list[int])
    assert_type(ff1.encrypt_digits(cipher, "0123456789", tweak=b"t"), str)
    assert_type(ff1.decrypt_digits(cipher, "0123456789"), str)
    assert_type(ff1.encrypt_many(cipher, words, length=16, tweaks=[b"a", b"b"]), npt.NDArray[np.uint64])
    assert_type(ff1.decrypt_many(cipher, words, length=16), npt.NDArray[np.uint64])
    ff1.encrypt(cipher, [0, 1, 2])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
