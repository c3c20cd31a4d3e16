"""The limits of FF1, CCM, CMAC and key derivation: the documented numbers, taken at the border, refused past it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation, Mode

import tokenvault as tv
from tests.ciphers import CountingCipher, FailingCipher, library_locals
from tokenvault.crypto import (
    block_columns,
    ccm,
    ccm_columns,
    cmac,
    cmac_columns,
    ff1,
    ff1_columns,
    ff1_parameters,
    kdf,
    local_cipher,
)
from tokenvault.crypto.block_cipher import BlockCipher
from tokenvault.crypto.block_columns import ColumnCipher
from tokenvault.crypto.cmac import Cmac
from tokenvault.keys import LocalBlockCipher

KEY = bytes(range(32))
LOCAL = LocalBlockCipher(KEY)
Bytes = npt.NDArray[np.uint8]

LIMITS = {
    (ff1_parameters, "RADIX_MIN"): 2,
    (ff1_parameters, "RADIX_MAX"): 65_536,
    (ff1_parameters, "NUMERALS_MIN"): 2,
    (ff1_parameters, "NUMERALS_MAX"): 4_096,
    (ff1_parameters, "DOMAIN_MIN"): 1_000_000,
    (ff1_parameters, "TWEAK_BYTES_MAX"): 65_536,
    (ff1_parameters, "ROUNDS"): 10,
    (ff1, "DIGITS_MAX"): 1_280,
    (ff1_columns, "LENGTH_MIN"): 6,
    (ff1_columns, "LENGTH_MAX"): 19,
    (ccm, "NONCE_BYTES"): 13,
    (ccm, "TAG_BYTES"): 16,
    (ccm, "PLAINTEXT_BYTES_MAX"): 65_535,
    (ccm, "ASSOCIATED_BYTES_MAX"): 65_279,
    (cmac, "TAG_BYTES"): 16,
    (cmac, "MESSAGE_BYTES_MAX"): 1_048_576,
    (kdf, "DERIVED_BYTES_MAX"): 4_096,
    (kdf, "LABEL_BYTES_MAX"): 1_024,
    (kdf, "CONTEXT_BYTES_MAX"): 1_024,
    (local_cipher, "AES_KEY_BYTES"): (16, 24, 32),
    (block_columns, "CHUNK_BLOCKS_LOCAL"): 8_192,
    (block_columns, "CHUNK_BLOCKS_MODULE"): 131_072,
    (block_columns, "CHUNK_BLOCKS_MODULE_IN_PARTS"): 1_048_576,
}


@pytest.mark.parametrize(("module", "name"), LIMITS, ids=lambda each: getattr(each, "__name__", each))
def test_each_limit_is_the_one_that_is_documented(module: object, name: str) -> None:
    """Written out: the other tests take them from the library."""
    assert getattr(module, name) == LIMITS[module, name]  # type: ignore[index]  # a module is an object


def test_the_longest_message_is_authenticated_and_one_byte_more_is_refused() -> None:
    longest = bytes(range(256)) * 4_096
    openssl = CMAC(AES(KEY))
    openssl.update(longest)
    tag = openssl.finalize()
    assert Cmac(LOCAL).tag(longest) == tag
    columns = np.frombuffer(longest, np.uint8).reshape(1, -1)
    assert cmac_columns.tag_many(LOCAL, columns).tobytes() == tag
    with pytest.raises(tv.InvalidInputError, match="message"):
        Cmac(LOCAL).tag(longest + b"\0")
    with pytest.raises(tv.InvalidInputError, match="message"):
        cmac_columns.tag_many(LOCAL, np.zeros((1, 2**20 + 1), np.uint8))


@pytest.mark.parametrize("wrap", [lambda cipher: cipher, CountingCipher])
def test_the_longest_label_and_context_and_the_shortest_key_derive(
    wrap: Callable[[BlockCipher], BlockCipher],
) -> None:
    label, context = b"l" * 1_024, b"c" * 1_024
    for length in (1, 2, 16, 17):
        expected = KBKDFCMAC(
            AES, Mode.CounterMode, length, 4, 4, CounterLocation.BeforeFixed, label, context, None
        ).derive(KEY)
        assert kdf.derive(wrap(LOCAL), label=label, context=context, length=length) == expected


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_deriving_costs_one_tag_for_each_block_of_key_material(length: int, blocks: int) -> None:
    cipher = CountingCipher(LOCAL)
    kdf.derive(cipher, label=b"l", context=b"", length=length)
    assert cipher.sizes == [1] * (1 + blocks)  # the subkeys, and messages of one block


def random_bytes(rows: int, width: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (rows, width), np.uint8)


def test_a_column_of_the_longest_ciphertexts_opens_and_one_byte_more_is_refused() -> None:
    nonces, associated = random_bytes(1, 13), random_bytes(1, 65_279)
    plaintexts = random_bytes(1, 65_535)
    sealed = ccm_columns.encrypt_many(LOCAL, nonces, plaintexts, associated)
    opened, genuine = ccm_columns.decrypt_many(LOCAL, nonces, sealed, associated)
    assert genuine.all()
    assert (opened == plaintexts).all()
    longer = np.zeros((1, 65_536 + 16), np.uint8)
    with pytest.raises(tv.InvalidInputError, match="a plaintext must be at most 65535 bytes"):
        ccm_columns.encrypt_many(LOCAL, nonces, longer[:, :65_536], associated)
    with pytest.raises(tv.InvalidInputError, match="a plaintext must be at most 65535 bytes"):
        ccm_columns.decrypt_many(LOCAL, nonces, longer, associated)
    for function in (ccm_columns.encrypt_many, ccm_columns.decrypt_many):
        with pytest.raises(tv.InvalidInputError, match="associated_data must be at most 65279 bytes"):
            function(LOCAL, nonces, sealed[:, :32], np.zeros((1, 65_280), np.uint8))


def test_long_associated_data_does_not_count_as_payload() -> None:
    nonces, associated = random_bytes(1, 13), random_bytes(1, 100)
    with patch.object(ccm_columns, "PLAINTEXT_BYTES_MAX", 50):
        sealed = ccm_columns.encrypt_many(LOCAL, nonces, random_bytes(1, 50), associated)
        with pytest.raises(tv.InvalidInputError):
            ccm_columns.encrypt_many(LOCAL, nonces, random_bytes(1, 51), associated[:, :9])
    assert sealed.shape == (1, 66)


NO_COLUMN: Any = "x"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ccm_columns.encrypt_many(LOCAL, NO_COLUMN, NO_COLUMN, NO_COLUMN), "nonces must"),
        (
            lambda: ccm_columns.encrypt_many(LOCAL, random_bytes(1, 13), NO_COLUMN, NO_COLUMN),
            "plaintexts must",
        ),
        (
            lambda: ccm_columns.decrypt_many(LOCAL, random_bytes(1, 13), NO_COLUMN, NO_COLUMN),
            "ciphertexts must",
        ),
        (
            lambda: ccm_columns.encrypt_many(LOCAL, random_bytes(1, 13), random_bytes(1, 1), NO_COLUMN),
            "associated_data must",
        ),
        (lambda: cmac_columns.tag_many(LOCAL, NO_COLUMN), "messages must"),
        (lambda: ff1_columns.encrypt_many(LOCAL, NO_COLUMN, length=9), "values must"),
    ],
)
def test_an_argument_that_is_no_column_is_named(call: Callable[[], object], named: str) -> None:
    with pytest.raises(tv.InvalidInputError, match=f"^{named}"):
        call()


def digits(text: bytes) -> Bytes:
    return np.frombuffer(text, np.uint8).reshape(1, -1)


@pytest.mark.parametrize(
    "call",
    [
        lambda cipher: ccm.encrypt(cipher, bytes(13), b"4111111111111111", b""),
        lambda cipher: ccm_columns.encrypt_many(
            cipher, random_bytes(1, 13), digits(b"4111111111111111"), digits(b"1")
        ),
        lambda cipher: ccm_columns.decrypt_many(
            cipher, random_bytes(1, 13), digits(b"4111111111111111"), digits(b"1")
        ),
        lambda cipher: cmac_columns.tag_many(cipher, digits(b"4111111111111111")),
        lambda cipher: ff1_columns.encrypt_many(cipher, np.array([4111111111111111], np.uint64), length=16),
        lambda cipher: ff1_columns.decrypt_many(cipher, np.array([4111111111111111], np.uint64), length=16),
    ],
)
def test_a_key_store_lost_on_the_way_leaves_no_frame_that_holds_a_card_number(
    call: Callable[[BlockCipher], object],
) -> None:
    for answers in range(2):
        with pytest.raises(tv.KeyStoreError) as caught:
            call(FailingCipher(LOCAL, answers))
        shown = library_locals(caught.value)
        assert "4111111111111111" not in shown
        assert not {"plaintexts", "ciphertexts", "messages", "values", "column"} & {
            line.partition("=")[0] for line in shown.splitlines()
        }


class ByteArrayCipher(CountingCipher):
    """Answers with the right bytes in another type, which a caller might change afterwards."""

    def encrypt_blocks(self, blocks: bytes) -> bytes:
        return bytearray(super().encrypt_blocks(blocks))  # type: ignore[return-value]  # the wrong type is the point


def test_an_answer_of_another_type_is_a_key_store_error() -> None:
    with pytest.raises(tv.KeyStoreError):
        Cmac(ByteArrayCipher(LOCAL))
    with pytest.raises(tv.KeyStoreError):
        ff1.encrypt_digits(ByteArrayCipher(LOCAL), "1234567")


# Many short messages at once.


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("generic", [False, True])
def test_the_tags_of_many_blocks_are_those_of_each_in_one_call(count: int, generic: bool) -> None:
    cipher = CountingCipher(LOCAL) if generic else LOCAL
    messages = [bytes([i]) * 16 for i in range(count)]
    expected = b"".join(map(Cmac(LOCAL).tag, messages))
    tags = Cmac(cipher)
    if isinstance(cipher, CountingCipher):
        cipher.reset()
    assert tags.tags(b"".join(messages)) == expected
    assert not isinstance(cipher, CountingCipher) or cipher.sizes == [count]


@pytest.mark.parametrize("messages", [bytes(15), bytes(17), bytearray(16), "0" * 16, None, 16, [bytes(16)]])
@pytest.mark.parametrize("generic", [False, True])
def test_what_is_no_row_of_blocks_has_no_tags(messages: object, generic: bool) -> None:
    cmac_of_a_key = Cmac(CountingCipher(LOCAL) if generic else LOCAL)
    with pytest.raises(tv.InvalidInputError, match="messages"):
        cmac_of_a_key.tags(messages)  # type: ignore[arg-type]  # the wrong type is the point


# Chunks of columns.


@pytest.mark.parametrize(
    ("local", "in_parts", "blocks_per_row", "rows", "chunk_rows", "part_rows"),
    [
        (True, False, 1, 10**7, 8_192, 8_192),
        (True, False, 3, 10**7, 2_730, 2_730),
        (True, False, 3, 5, 5, 5),
        (True, False, 8_193, 10, 1, 1),
        (True, False, 3, 0, 1, 1),
        (False, False, 1, 10**7, 131_072, 8_192),
        (False, False, 3, 10**7, 43_690, 2_730),
        (False, False, 3, 2_731, 2_731, 2_730),
        (False, False, 131_073, 10, 1, 1),
        (False, True, 1, 10**7, 1_048_576, 8_192),
        (False, True, 2, 100, 100, 100),
    ],
)
def test_a_chunk_is_as_many_rows_as_a_call_takes_and_at_least_one(
    local: bool, in_parts: bool, blocks_per_row: int, rows: int, chunk_rows: int, part_rows: int
) -> None:
    cipher = LOCAL if local else CountingCipher(LOCAL)
    columns = ColumnCipher(cipher, blocks_per_row=blocks_per_row, rows=rows, in_parts=in_parts)
    assert (columns.chunk_rows, columns.part_rows) == (chunk_rows, part_rows)


def test_a_mode_computes_on_whole_chunks_unless_it_says_otherwise() -> None:
    assert ColumnCipher(CountingCipher(LOCAL), blocks_per_row=1, rows=10**7).chunk_rows == 131_072


def test_the_last_chunk_may_be_smaller_than_those_before_it() -> None:
    native = AESCCM(KEY, tag_length=16)
    rows = 2_733  # a chunk of 2,730 rows of 3 blocks, and three more
    columns = random_bytes(rows, 13), random_bytes(rows, 16, 2), random_bytes(rows, 20, 3)
    sealed = ccm_columns.encrypt_many(LOCAL, *columns)
    for i in (0, 2_729, 2_730, 2_732):
        assert sealed[i].tobytes() == native.encrypt(*(column[i].tobytes() for column in columns))
    opened, genuine = ccm_columns.decrypt_many(LOCAL, columns[0], sealed, columns[2])
    assert genuine.all()
    assert (opened == columns[1]).all()


def test_the_blocks_of_a_call_are_those_of_its_rows_and_no_more() -> None:
    cipher = CountingCipher(LOCAL)
    columns = random_bytes(10, 13), random_bytes(10, 16), random_bytes(10, 14)
    with patch.object(block_columns, "CHUNK_BLOCKS_MODULE", 12):  # four rows
        ccm_columns.encrypt_many(cipher, *columns)
    assert cipher.sizes == [12, 4, 4] * 2 + [6, 2, 2]
    cipher.reset()
    with patch.object(block_columns, "CHUNK_BLOCKS_MODULE", 8):
        cmac_columns.tag_many(cipher, columns[0])
    assert cipher.sizes == [1, 8, 2]


# FF1 of columns.


def test_without_tweaks_a_column_encrypts_as_each_string_does() -> None:
    values = np.array([0, 4111111111111111, 10**16 - 1], np.uint64)
    encrypted = ff1_columns.encrypt_many(LOCAL, values, length=16)
    assert [f"{each:016}" for each in encrypted.tolist()] == [
        ff1.encrypt_digits(LOCAL, f"{each:016}") for each in values.tolist()
    ]
    assert (ff1_columns.decrypt_many(LOCAL, encrypted, length=16) == values).all()


@pytest.mark.parametrize("kind", [list, tuple])
def test_tweaks_may_be_a_list_or_a_tuple(kind: Callable[[list[bytes]], list[bytes]]) -> None:
    values = np.array([1, 2], np.uint64)
    encrypted = ff1_columns.encrypt_many(LOCAL, values, length=9, tweaks=kind([b"a", b"b"]))
    assert [f"{each:09}" for each in encrypted.tolist()] == [
        ff1.encrypt_digits(LOCAL, "000000001", tweak=b"a"),
        ff1.encrypt_digits(LOCAL, "000000002", tweak=b"b"),
    ]


def test_the_longest_tweak_of_a_column_works() -> None:
    tweak = bytes(65_535) + b"\1"
    encrypted = ff1_columns.encrypt_many(LOCAL, np.array([7], np.uint64), length=9, tweaks=tweak)
    assert f"{encrypted[0]:09}" == ff1.encrypt_digits(LOCAL, "000000007", tweak=tweak)


def test_a_thread_keeps_its_context() -> None:
    """Making one costs more than a block."""
    cipher = LocalBlockCipher(KEY)
    assert cipher.thread_context() is cipher.thread_context()
