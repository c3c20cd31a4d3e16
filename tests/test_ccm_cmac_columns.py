"""CMAC and CCM of columns: the results of OpenSSL byte for byte, few calls, no plaintext for what was changed."""

from __future__ import annotations

import contextlib
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st

import tokenvault as tv
from tests.ciphers import CountingCipher, FailingCipher
from tests.test_ff1 import ANYTHING
from tests.test_ff1_columns import ARRAYS
from tokenvault.crypto import block_columns as _block_columns
from tokenvault.crypto import ccm, ccm_columns, cmac_columns
from tokenvault.crypto.cmac import Cmac
from tokenvault.keys import KeyStore, LocalBlockCipher
from tokenvault.keys.pkcs11.store import Pkcs11KeyStore
from tokenvault.keys.port import KeyName

KEY = bytes(range(32))
LOCAL = LocalBlockCipher(KEY)
Bytes = npt.NDArray[np.uint8]
CHUNKS = st.sampled_from([1, 2, 5, _block_columns.CHUNK_BLOCKS_LOCAL])


def random_bytes(rows: int, width: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (rows, width), np.uint8)


@given(st.integers(0, 9), st.integers(0, 70), st.booleans(), CHUNKS, st.integers(0, 2**32))
def test_the_tags_of_messages_are_those_of_openssl(
    rows: int, width: int, generic: bool, chunk: int, seed: int
) -> None:
    messages = random_bytes(rows, width, seed)
    with patch.multiple(_block_columns, CHUNK_BLOCKS_LOCAL=chunk, CHUNK_BLOCKS_MODULE=chunk):
        tags = cmac_columns.tag_many(CountingCipher(LOCAL) if generic else LOCAL, messages)
    assert tags.shape == (rows, 16)
    for message, tag in zip(messages, tags, strict=True):
        native = CMAC(AES(KEY))
        native.update(message.tobytes())
        assert native.finalize() == tag.tobytes() == Cmac(LOCAL).tag(message.tobytes())


@given(
    st.integers(0, 7), st.integers(0, 50), st.integers(0, 70), st.booleans(), CHUNKS, st.integers(0, 2**32)
)
def test_what_is_sealed_is_what_openssl_seals_and_opens_again(
    rows: int, width: int, associated_width: int, generic: bool, chunk: int, seed: int
) -> None:
    nonces, plaintexts = random_bytes(rows, 13, seed), random_bytes(rows, width, seed + 1)
    associated = random_bytes(rows, associated_width, seed + 2)
    cipher = CountingCipher(LOCAL) if generic else LOCAL
    with patch.multiple(_block_columns, CHUNK_BLOCKS_LOCAL=chunk, CHUNK_BLOCKS_MODULE=chunk):
        sealed = ccm_columns.encrypt_many(cipher, nonces, plaintexts, associated)
        opened, genuine = ccm_columns.decrypt_many(cipher, nonces, sealed, associated)
    assert sealed.shape == (rows, width + 16)
    native = AESCCM(KEY, tag_length=16)
    for i in range(rows):
        arguments = nonces[i].tobytes(), plaintexts[i].tobytes(), associated[i].tobytes()
        assert sealed[i].tobytes() == native.encrypt(*arguments) == ccm.encrypt(LOCAL, *arguments)
    assert genuine.all()
    assert (opened == plaintexts).all()


@given(st.data(), st.integers(1, 40), st.integers(0, 40))
def test_any_bit_changed_in_a_row_refuses_that_row_alone_and_gives_no_plaintext(
    data: st.DataObject, width: int, associated_width: int
) -> None:
    rows = 5
    columns = [
        random_bytes(rows, 13, 1),
        random_bytes(rows, width, 2),
        random_bytes(rows, associated_width, 3),
    ]
    plaintexts = columns[1]
    columns[1] = ccm_columns.encrypt_many(LOCAL, *columns)
    row = data.draw(st.integers(0, rows - 1))
    changed = data.draw(st.sampled_from([each for each in columns if each.shape[1]]))
    changed[row, data.draw(st.integers(0, changed.shape[1] - 1))] ^= 1 << data.draw(st.integers(0, 7))
    opened, genuine = ccm_columns.decrypt_many(LOCAL, *columns)
    assert genuine.tolist() == [i != row for i in range(rows)]
    assert not opened[row].any()
    assert (opened[genuine] == plaintexts[genuine]).all()


def test_the_longest_payload_and_associated_data_agree_with_openssl() -> None:
    nonces = random_bytes(2, 13)
    plaintexts = random_bytes(2, ccm.PLAINTEXT_BYTES_MAX)
    associated = random_bytes(2, ccm.ASSOCIATED_BYTES_MAX)
    sealed = ccm_columns.encrypt_many(LOCAL, nonces, plaintexts, associated)
    for i in range(2):
        arguments = nonces[i].tobytes(), plaintexts[i].tobytes(), associated[i].tobytes()
        assert sealed[i].tobytes() == AESCCM(KEY, tag_length=16).encrypt(*arguments)


@pytest.mark.parametrize(("associated_width", "calls"), [(14, 3), (64, 7)])
def test_seals_of_a_batch_cost_the_calls_of_one_and_of_softhsm_at_most_ten(
    associated_width: int, calls: int, keys: KeyStore
) -> None:
    rows = 10_000
    columns = random_bytes(rows, 13), random_bytes(rows, 16), random_bytes(rows, associated_width)
    cipher = CountingCipher(keys.cipher(KeyName(tv.KeyPurpose.SEAL, 1)))
    sealed = ccm_columns.encrypt_many(cipher, *columns)
    assert cipher.calls == calls
    before = keys.operations if isinstance(keys, Pkcs11KeyStore) else 0
    opened, genuine = ccm_columns.decrypt_many(cipher, columns[0], sealed, columns[2])
    assert genuine.all()
    assert (opened == columns[1]).all()
    assert isinstance(keys, Pkcs11KeyStore)
    assert keys.operations - before <= 10


def test_fingerprints_of_a_batch_cost_the_calls_of_one() -> None:
    for width, calls in ((0, 2), (13, 2), (16, 2), (17, 3), (19, 3)):
        cipher = CountingCipher(LOCAL)
        cmac_columns.tag_many(cipher, random_bytes(20_000, width))
        assert cipher.calls == calls


def test_no_rows_need_no_key() -> None:
    cipher = FailingCipher(LOCAL, 0)
    none = random_bytes(0, 13)
    assert cmac_columns.tag_many(cipher, none).shape == (0, 16)
    assert ccm_columns.encrypt_many(cipher, none, none, none).shape == (0, 29)


@given(ARRAYS, st.one_of(ARRAYS, ANYTHING), ARRAYS)
def test_whatever_goes_in_only_invalid_input_comes_out(first: Bytes, second: object, third: Bytes) -> None:
    good = random_bytes(3, 13)
    for one, two, three in ((first, second, third), (good, second, good), (good, good, second)):
        with contextlib.suppress(tv.InvalidInputError):
            ccm_columns.encrypt_many(LOCAL, one, two, three)  # type: ignore[arg-type] # wrong on purpose
        with contextlib.suppress(tv.InvalidInputError):
            ccm_columns.decrypt_many(LOCAL, one, two, three)  # type: ignore[arg-type] # wrong on purpose
    with contextlib.suppress(tv.InvalidInputError):
        cmac_columns.tag_many(LOCAL, second)  # type: ignore[arg-type] # wrong on purpose


def test_columns_that_do_not_fit_together_are_refused() -> None:
    nonces, data = random_bytes(3, 13), random_bytes(3, 20)
    for columns in (
        (nonces[:2], data, data),
        (nonces, data[:2], data),
        (nonces, data, data[:2]),
        (data, data, data),
    ):
        for function in (ccm_columns.encrypt_many, ccm_columns.decrypt_many):
            with pytest.raises(tv.InvalidInputError):
                function(LOCAL, *columns)
    with pytest.raises(tv.InvalidInputError):
        ccm_columns.decrypt_many(LOCAL, nonces, data[:, :15], data)
